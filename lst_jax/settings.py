"""Settings are checked in one way: a decorator for configuration dataclasses, and its JSON reader.

A configuration declares types and bounds,

    @configuration
    class PackingConfig:
        num_patches: RowSlots
        visibility: Visibility = "causal"

and pydantic, in strict mode, holds every value to them when an instance is made: text is no truth
value, 2.5 and 2.0 and True are no integers, nan and inf are no numbers, a size is within what a
machine can hold. What is refused is a `ValueError` of one line in one format,

    PackingConfig.num_patches is 2.5, expected an integer, 16 … 16777216

which names the setting, its value (cut to 80 characters) and what was expected. Checks across
fields stay in `__post_init__`, which runs after the fields are known to be good, and raise the same
line through `require`.

The class stays a plain frozen dataclass: `replace`, `asdict`, pickling, hashing and the `TypeError`
about a missing argument are the standard library's. `pydantic.dataclasses` would put another
`__init__` in its place, whose `ValidationError` Gin cannot raise again.

Where pydantic is not installed (a bare machine that has JAX and Flax for benchmarks), types and
bounds are not checked; `__post_init__` is.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

_HAS_PYDANTIC = True
try:
    import pydantic
    import pydantic_core
except ImportError:  # see above
    _HAS_PYDANTIC = False
    if typing.TYPE_CHECKING:  # a checker's environment has it
        raise

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T")
_Configuration = TypeVar("_Configuration", bound="DataclassInstance")

_QUOTED = 80  # characters of a value that a message shows
_LONGEST_LINE = 450  # characters of a whole message
_LISTED = 10  # names that a message lists,
_LISTED_LENGTH = 120  # in so many characters beyond the first

_NOUNS = {
    bool: "True or False",
    int: "an integer",
    float: "a finite number",
    str: "text",
    type(None): "None",
    tuple: "a tuple",
    list: "a list",
    dict: "a mapping",
    Mapping: "a mapping",
    Callable: "a function or a class",
    Any: "any value",
}


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Bounds of a number, for `Annotated[int, Bounds(…)]` and `Annotated[float, Bounds(…)]`.

    Attributes:
      least: smallest value.
      most: largest value.
      above: what the value is larger than.
      below: what the value is smaller than.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def describe(self, noun: str) -> str:
        """Returns the noun with the bounds in words."""
        if self.least is not None and self.most is not None:
            return f"{noun}, {self.least} … {self.most}"
        words = {"above": self.above, "at least": self.least, "below": self.below}
        words["at most"] = self.most
        return f"{noun}, " + " and ".join(f"{k} {v}" for k, v in words.items() if v is not None)

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Adds the bounds to the number's schema, in pydantic's words."""
        bounds = {"ge": self.least, "le": self.most, "gt": self.above, "lt": self.below}
        return {**handler(source), **{k: v for k, v in bounds.items() if v is not None}}


@dataclasses.dataclass(frozen=True)
class NotEmpty:
    """Marks text that must have a character, and none that no file name can have."""

    noun: str

    def describe(self, _: str) -> str:
        """Returns what is expected."""
        return self.noun

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Adds the pattern to the text's schema."""
        return {**handler(source), "pattern": r"^[^\x00]+$"}


# Sizes have upper bounds where a number sizes memory, or a loop, before anything else can refuse
# it. They are far above every model and run of today, and far below what hangs a machine.
PositiveInt = Annotated[int, Bounds(least=1, most=2**31 - 1)]  # steps, windows: what int32 holds
NaturalInt = Annotated[int, Bounds(least=0, most=2**31 - 1)]
Width = Annotated[int, Bounds(least=1, most=2**16)]  # features of a layer, heads
Depth = Annotated[int, Bounds(least=1, most=2**10)]  # layers
UnrolledDepth = Annotated[int, Bounds(least=1, most=2**7)]  # each is traced and compiled
TextSize = Annotated[int, Bounds(least=2, most=2**21)]  # pieces of a tokenizer
UnitCount = Annotated[int, Bounds(least=1, most=2**20)]
VocabularySize = Annotated[int, Bounds(least=1, most=2**22)]  # ids: an embedding has as many rows
BatchRows = Annotated[int, Bounds(least=1, most=2**16)]  # each has a packer
RowSlots = Annotated[int, Bounds(least=1, most=2**24)]  # patches or tokens of a row
Workers = Annotated[int, Bounds(least=0, most=2**10)]  # processes, and what they prepare ahead
PositiveFloat = Annotated[float, Bounds(above=0)]
NaturalFloat = Annotated[float, Bounds(least=0)]
Fraction = Annotated[float, Bounds(least=0, most=1)]
Seed32 = Annotated[int, Bounds(least=0, most=2**32 - 1)]  # JAX's keys take no more bits of a seed
Seed64 = Annotated[int, Bounds(least=0, most=2**64 - 1)]
Name = Annotated[str, NotEmpty("text that is not empty")]


def quote(value: object) -> str:
    """Returns a value as a message shows it: its `repr` in one line, cut to 80 characters.

    NumPy's scalars are shown as the numbers that they are.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | bytes):
        value = value[: _QUOTED + 1]  # no megabytes are escaped for 80 characters
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # digits without end, lists without end
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= _QUOTED else text[: _QUOTED - 1] + "…"


def one_line(message: str) -> str:
    """Returns a message, another library's perhaps, as a line of at most 450 characters.

    Spaces and line breaks become a space, what is not printable is escaped. Where it is too long,
    words are cut to 80 characters, and then the middle is left out: a message's beginning says what
    is wrong, its end what was expected.
    """
    words = message[: 10**6].split()
    if sum(map(len, words)) + len(words) > _LONGEST_LINE:
        words = [word if len(word) <= _QUOTED else word[: _QUOTED - 1] + "…" for word in words]
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(words))
    if len(line) <= _LONGEST_LINE:
        return line
    half = _LONGEST_LINE // 2 - 2
    return f"{line[: half + 1]} … {line[-half:]}"


def require(condition: bool, argument: str, value: object, expected: str) -> None:
    """Raises a `ValueError` that names the argument, its value and what was expected."""
    if not condition:
        raise ValueError(f"{argument} is {quote(value)}, expected {expected}")


def given(value: _T | None, argument: str, expected: str) -> _T:
    """Returns a value that may not be None here; raises a `ValueError` that names it if it is."""
    if value is None:
        raise ValueError(f"{argument} is None, expected {expected}")
    return value


def list_names(names: typing.Iterable[str]) -> str:
    """Returns names in a line of bounded length: ten at most, and how many more there are."""
    names = [quote(name).strip("'") for name in names]
    shown, room = names[:1], _LISTED_LENGTH
    for name in names[1:_LISTED]:
        room -= len(name)
        shown += [name] if room > 0 else []
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def describe_type(hint: Any) -> str:
    """Returns a declared type and its bounds in words, for "expected …"."""
    *others, last = _choices(hint)
    return f"{', '.join(others)} or {last}" if others else last


def _choices(hint: Any) -> list[str]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        noun = describe_type(arguments[0])
        markers = [m for m in arguments[1:] if isinstance(m, Bounds | NotEmpty)]
        return [markers[0].describe(noun) if markers else noun]
    if origin in (Union, types.UnionType):
        kinds = sorted(arguments, key=lambda kind: kind is not type(None))  # None first
        return [choice for kind in kinds for choice in _choices(kind)]
    if origin is Literal:
        return list(map(repr, arguments))
    if origin is tuple and arguments[-1:] == (...,):
        return [f"a tuple, each item {describe_type(arguments[0])}"]
    kind = origin or hint
    return [_NOUNS.get(kind) or getattr(kind, "__name__", str(kind))]


def validate_value(hint: Any, value: Any, name: str) -> Any:
    """Returns a value if it is of a declared type.

    Args:
      hint: the type, with its bounds.
      value: what to check. NumPy's numbers are taken as Python's of the same kind, and a list where
        a tuple is declared is taken as one.
      name: of the setting, for the message.

    Returns:
      The value; an integer where a float is declared comes back as a float.

    Raises:
      ValueError: it is of another type, or out of bounds.
    """
    prepared = _prepare(hint, value, None)
    if not _HAS_PYDANTIC:
        return prepared
    try:
        return _adapter(hint).validate_python(prepared)
    except pydantic.ValidationError:
        expected = describe_type(hint)
    raise ValueError(f"{name} is {quote(value)}, expected {expected}")


def validate_fields(
    cls: type[_Configuration], values: Any, source: object, *, ignore_unknown: bool = False
) -> _Configuration:
    """Builds a configuration from what a JSON file holds.

    Objects become the configurations that are declared in their place, arrays become tuples. A
    field that may be one of several configurations must be built by the caller, who knows which.

    Args:
      cls: a class decorated with `configuration`.
      values: a mapping of field names to JSON values (or to what is built of them already).
      source: where they are from, a file for instance; every message begins with it.
      ignore_unknown: whether names that are no fields are left out, instead of refused.

    Raises:
      ValueError: `values` is no mapping, a name is unknown or missing, or a value is not of its
        field's type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: {cls.__name__} is {quote(values)}, expected an object")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    unknown = [name for name in values if name not in fields]
    if unknown and not ignore_unknown:
        raise ValueError(
            f"{source}: {cls.__name__} has no {list_names(unknown)}, expected {list_names(fields)}"
        )
    missing = [n for n, field in fields.items() if n not in values and _is_required(field)]
    if missing:
        raise ValueError(f"{source}: {cls.__name__} is without {list_names(missing)}")
    hints = _type_hints(cls)
    build = functools.partial(validate_fields, source=source, ignore_unknown=ignore_unknown)
    built = {n: _prepare(hints[n], values[n], build) for n in fields if n in values}
    try:
        return cls(**built)
    except ValueError as error:
        message = str(error)
    raise ValueError(f"{source}: {message}")


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _prepare(hint: Any, value: Any, build: Callable[[type, Any], Any] | None) -> Any:
    """Returns the value in the form that strict validation takes.

    NumPy's numbers become Python's, lists become tuples where these are declared, and mappings
    become configurations where there is a `build` that makes them.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _prepare(arguments[0], value, build)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in arguments if kind is not type(None)]
        alone = len(kinds) == 1 and value is not None
        return _prepare(kinds[0] if alone else None, value, build)
    if origin is tuple and isinstance(value, list | tuple):
        items = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        if len(items) != len(value):
            return tuple(value)
        return tuple(_prepare(kind, item, build) for kind, item in zip(items, value, strict=True))
    is_class = isinstance(hint, type) and dataclasses.is_dataclass(hint)
    if build and isinstance(value, Mapping) and is_class:
        return build(hint, value)
    number = isinstance(value, np.bool_ | np.integer | np.floating | np.str_)
    return value.item() if number and not isinstance(value, np.timedelta64) else value


@functools.cache
def _adapter(hint: Any) -> Any:
    """Returns pydantic's strict validator of a type."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        # TypeAdapter takes no `config` for them.
        return pydantic_core.SchemaValidator(_instance_schema(hint))
    config = pydantic.ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return pydantic.TypeAdapter(hint, config=config)


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    """Returns the declared types of a dataclass by field."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@typing.dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def configuration(cls: type[_T]) -> type[_T]:
    """Makes a class a frozen dataclass whose fields are of their declared types, always.

    Instances raise a `ValueError` of one line for a value of another type or out of bounds, before
    the class's own `__post_init__`. Without pydantic that method is the only check.

    Other configurations in a field's type must be decorated, too.
    """
    return _configured(cls)


def _configured(cls: Any) -> Any:
    check_together = cls.__dict__.get("__post_init__")

    def __post_init__(self: Any) -> None:
        for name, hint in _type_hints(type(self)).items():
            value = getattr(self, name)
            checked = validate_value(hint, value, f"{type(self).__name__}.{name}")
            if checked is not value:
                object.__setattr__(self, name, checked)
        if check_together:
            check_together(self)

    cls.__post_init__ = __post_init__
    cls.__get_pydantic_core_schema__ = classmethod(_instance_schema)
    return dataclasses.dataclass(frozen=True)(cls)


def _instance_schema(cls: type, *_: Any) -> Any:
    """Returns the schema of a configuration in a field: an instance, as it was made."""
    return pydantic_core.core_schema.is_instance_schema(cls)
