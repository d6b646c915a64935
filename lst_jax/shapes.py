"""Shapes in signatures: dtypes and dimensions of arrays, checked at trace time where that is asked.

A signature says what shapes it takes and gives, with jaxtyping's types,

    @check_shapes
    def pool_patches(h: Float[Array, "B N d"], patch_ids: Int32[Array, "B N"], …)

and within one call a letter has one value. These letters are used everywhere:

| letter      | dimension                                                                       |
|-------------|---------------------------------------------------------------------------------|
| B           | rows of a batch                                                                 |
| N, P        | tokens and patches of a row                                                     |
| T           | tokens of a document or of a piece of it                                        |
| Q, K        | queries and keys of an attention; Q is also patches of a document               |
| L           | positions of any kind, tokens or patches                                        |
| M           | tokens that run where documents share their beginnings (`shared_prefix`)        |
| S           | places in which such tokens or patches stand                                    |
| _           | any number, not that of another array                                           |
| k           | latent vectors of a patch                                                       |
| Pk          | P · k, the latent vectors of a row                                              |
| d, D        | features of the local modules and of the global transformer                     |
| H, D        | heads of an attention and features of a head                                    |
| V           | entries of the vocabulary, with their padding where it says so                  |
| C           | slots of a ring                                                                 |
| W, U        | words and units of a run of speech                                              |
| n, m        | anything that is counted                                                        |

A name in front that begins with an asterisk, `*b`, stands for any number of dimensions.

With `LST_JAX_CHECK_SHAPES=1` in the environment when `lst_jax` is imported, every call is checked
and one that does not fit is a `ValueError`. JAX calls a function when it traces it, so compiled
code runs just as fast. Without it `check_shapes` gives the function back as it is, jaxtyping is
not imported, and training pays nothing. Which library an array is of is left to type checkers.
Data workers, processes without JAX, check nothing: jaxtyping would load it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin

from lst_jax.settings import quote, require

VARIABLE = "LST_JAX_CHECK_SHAPES"

_TAKEN = {float: (int, float)}  # what a declared type takes beside itself

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _is_asked(value: str) -> bool:
    require(value in ("", "0", "1"), VARIABLE, value, "1 (shapes are checked) or 0")
    return value == "1"


CHECKED = _is_asked(os.environ.get(VARIABLE, ""))

if TYPE_CHECKING or CHECKED:
    import jaxtyping
    from jaxtyping import Bool as Bool
    from jaxtyping import Float as Float
    from jaxtyping import Float32 as Float32
    from jaxtyping import Int as Int
    from jaxtyping import Int32 as Int32
    from jaxtyping import Shaped as Shaped
    from jaxtyping import UInt32 as UInt32
else:

    class Shaped:
        """Stands for jaxtyping's types, which nothing looks at."""

        def __class_getitem__(cls, _: Any) -> Any:
            return Any

    Bool = Float = Float32 = Int = Int32 = UInt32 = Shaped


def check_shapes(function: _Function) -> _Function:
    """Holds a function to the shapes of its signature where `LST_JAX_CHECK_SHAPES=1` asks for it.

    Arrays are found in arguments and results, in tuples and mappings of them, and in the fields of
    a NamedTuple or dataclass that is an argument, where those declare shapes. So they are in
    sequences, where each item has its letters for itself.

    Raises:
      ValueError: (the function, when called) names the argument, its dtype and shape, and what was
        expected.
    """
    return _checked(function) if CHECKED else function


def _checked(function: _Function) -> _Function:
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> dict[str, Any]:  # names that a module imports below the function are there then
        found = typing.get_type_hints(function)
        return {name: hint for name, hint in found.items() if _declares_shapes(hint)}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "jax" not in sys.modules:
            return function(*args, **kwargs)
        values = signature.bind(*args, **kwargs).arguments
        with jaxtyping.jaxtyped("context"):
            for name in filter(hints().__contains__, values):
                _check(function, name, values, hints()[name])
            result = function(*args, **kwargs)
            if "return" in hints():
                _check(function, "return", {**values, "return": result}, hints()["return"])
        return result

    return typing.cast(_Function, call)


def _check(function: Callable[..., Any], name: str, values: Mapping[str, Any], hint: Any) -> None:
    """Raises an error about the value of that name, if it does not fit."""
    for place, value, expected in _misfits(name, values[name], hint):
        arrays = [pair for item in values.items() for pair in _arrays(*item) if pair[0] != place]
        beside = ", ".join(f"{key} {_describe(x)}" for key, x in arrays)
        raise ValueError(
            f"{function.__qualname__}: {place} is {_describe(value)}, expected {expected}, "
            f"beside {beside[:240] or 'nothing'}"
        )


def _misfits(name: str, value: Any, hint: Any) -> Iterator[tuple[str, Any, str]]:
    """Yields where a value is not as declared: the place, what is there, and what was expected."""
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(origin, type) and _is_struct(origin):
        hint, arguments = origin, ()  # a generic one's parameters are of fields that are structs
    if _is_shape(hint):
        # The letters of this call are bound here, in the context of jaxtyping that is open.
        if not isinstance(value, hint.dtype[Any, hint.dim_str]):
            yield name, value, f'{hint.dtype.__name__} "{hint.dim_str}"'
    elif origin in (Union, types.UnionType):
        found = [list(_misfits(name, value, choice)) for choice in arguments]
        if all(found):
            yield max((misfits[0] for misfits in found), key=lambda misfit: len(misfit[0]))
    elif hint is type(None):
        if value is not None:
            yield name, value, "None"
    elif origin is tuple and isinstance(value, tuple):
        each = arguments[:1] * len(value) if arguments[-1:] == (...,) else arguments
        if len(each) != len(value):
            yield name, value, f"{len(each)} items"
        for index, (item, kind) in enumerate(zip(value, each, strict=False)):
            yield from _misfits(f"{name}[{index}]", item, kind)
    elif isinstance(value, Mapping) and len(arguments) == 2:
        for key, item in value.items():
            yield from _misfits(f"{name}[{key!r}]", item, arguments[1])
    elif isinstance(value, Sequence) and len(arguments) == 1:
        for index, item in enumerate(value):
            with jaxtyping.jaxtyped("context"):  # things of one kind, and as large as they like
                misfits = list(_misfits(f"{name}[{index}]", item, arguments[0]))
            yield from misfits
    elif isinstance(hint, type) and not isinstance(value, _TAKEN.get(hint, hint)):
        yield name, value, hint.__name__
    elif isinstance(hint, type):
        for field, kind in _fields(hint).items():
            yield from _misfits(f"{name}.{field}", getattr(value, field), kind)


def _is_shape(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)


def _declares_shapes(hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if _is_shape(hint) or (isinstance(kind, type) and _fields(kind)):
        return True
    return any(_declares_shapes(argument) for argument in get_args(hint))


def _is_struct(cls: type) -> bool:
    return hasattr(cls, "_fields") or dataclasses.is_dataclass(cls)


@functools.cache
def _fields(cls: type) -> dict[str, Any]:
    """Returns the fields of a NamedTuple or dataclass that declare shapes by themselves.

    Not those that are such classes in turn: their letters mean other things for each.
    """
    if not _is_struct(cls):
        return {}
    shapes = {}
    for name, hint in typing.get_type_hints(cls).items():
        if _is_shape(hint) or any(map(_is_shape, get_args(hint))):
            shapes[name] = hint
    return shapes


def _arrays(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yields an argument that is an array, or the arrays of one that is a struct."""
    if hasattr(value, "shape"):
        yield name, value
    for field in _fields(type(value)):
        yield from _arrays(f"{name}.{field}", getattr(value, field))


def _describe(value: Any) -> str:
    """Returns the dtype and the shape of an array, and any other value cut to a few words."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return f"a {type(value).__name__}" if _fields(type(value)) else quote(value)
