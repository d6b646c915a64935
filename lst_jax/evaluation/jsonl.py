"""Files of evaluation examples, one JSON object a line; every mistake is named with its place."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from lst_jax.files import read_numbered_lines
from lst_jax.settings import quote
from lst_jax.strict_json import parse_object

_KINDS = {str: "a string, not empty", int: "an integer", list: "a list", dict: "an object"}


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """What every example has.

    Attributes:
      example_id: name of the example, unique within its set.
      set_name: the evaluation set that it belongs to.
      origin: where it was read, for error messages.
    """

    example_id: str
    set_name: str
    origin: str


T = TypeVar("T", bound=Example)
Value = TypeVar("Value")


def read_examples(
    paths: Sequence[str | pathlib.Path],
    unit_count: int,
    parse: Callable[[Mapping[str, Any], int, str], T],
    encoder_fingerprint: str | None = None,
) -> tuple[T, ...]:
    """Reads and checks example files.

    Args:
      paths: JSONL files.
      unit_count: number of speech units; a unit is 0 … unit_count − 1.
      parse: makes an example of a line's fields, `unit_count` and its origin; raises ValueError.
      encoder_fingerprint: of the encoder of the model's units; None: it is not known. A line may
        have the field `encoder_fingerprint`, of the encoder that made its units.

    Returns:
      The examples in file order.

    Raises:
      ValueError: naming file and line, for a line that is not UTF-8 or not a JSON object, that
        has a key twice, that `parse` refuses, that has units of another encoder, or whose id its
        set already has; or a file without examples.
      OSError: a file cannot be read.
    """
    if unit_count < 1:
        raise ValueError(f"unit_count is {unit_count}; expected at least 1")

    def parse_line(fields: Mapping[str, Any], origin: str) -> T:
        found = fields.get("encoder_fingerprint")
        if found and encoder_fingerprint and found != encoder_fingerprint:
            raise ValueError(
                f"encoder_fingerprint is {quote(found)}, expected {encoder_fingerprint}, that of "
                "the encoder of the model's units"
            )
        return parse(fields, unit_count, origin)

    examples: dict[tuple[str, str], T] = {}
    for path in map(pathlib.Path, paths):
        before = len(examples)
        for example in read_lines(path, parse_line):
            known = examples.setdefault((example.set_name, example.example_id), example)
            if known is not example:
                raise ValueError(
                    f"{example.origin}: id {quote(example.example_id)} of set "
                    f"{quote(example.set_name)} was already used in {known.origin}; "
                    "expected every id once in its set"
                )
        if len(examples) == before:
            raise ValueError(f"{path}: the file is empty; expected one example a line")
    return tuple(examples.values())


def read_lines(
    path: pathlib.Path, parse: Callable[[Mapping[str, Any], str], Value]
) -> Iterator[Value]:
    """Reads and checks a file line by line.

    Args:
      path: JSONL file.
      parse: makes a value of a line's fields and its origin, `path:number`; raises ValueError.

    Yields:
      The values in file order.

    Raises:
      ValueError: naming file and line, for a line that is not UTF-8 or not a JSON object, that
        has a key twice, or that `parse` refuses; or the file itself where it is not UTF-8
        by its first bytes or its name.
      OSError: the file cannot be read.
    """
    for number, line in read_numbered_lines(path):
        origin = f"{path}:{number}"
        try:
            value = parse(parse_object(line), origin)
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from error
        yield value


def field(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    """Returns the value of a required field, of exactly the type `kind`; a string is not empty."""
    if name not in fields:
        raise ValueError(f"{name} is missing; expected {_KINDS[kind]}")
    value = fields[name]
    if type(value) is not kind or value == "":
        raise ValueError(f"{name} is {show(value)}; expected {_KINDS[kind]}")
    if kind is str:
        check_unicode(name, value)
    return value


def check_unicode(name: str, text: str) -> None:
    """Raises a `ValueError` for text that no file can hold: JSON may name half a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            f"{name} is {show(text)}; expected Unicode, not a lone surrogate"
        ) from None


def parse_units(value: Any, name: str, unit_count: int) -> np.ndarray:
    """Returns speech units (U,) int32, U ≥ 1, from a JSON list of integers 0 … unit_count − 1."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is {show(value)}; expected a list of units, not empty")
    for i, unit in enumerate(value):
        # bool is a subclass of int, and true is no unit.
        if type(unit) is not int or not 0 <= unit < unit_count:
            raise ValueError(
                f"{name}[{i}] is {show(unit)}; expected an integer 0 … {unit_count - 1}"
            )
    return np.array(value, np.int32)


def show(value: Any) -> str:
    """Returns a value as JSON, cut to a length that fits into an error message."""
    shown = json.dumps(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
