"""JSON as the standard has it, read with one line for whatever is not.

Python's own reader takes NaN and infinities, keeps the last of two equal keys, and ends in a
`RecursionError` where the text is nested deeply. What comes from a file of a user's is read here,
and then held to declared types by `lst_jax.settings`.
"""

from __future__ import annotations

import collections
import json
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NoReturn, TextIO

from lst_jax.files import check_regular
from lst_jax.settings import quote

# Nothing that is read nests deeper than a handful; code that walks a value may recurse.
_MOST_LEVELS = 64
_SPACES = re.compile(r"[ \t\r\n]*")
_BLOCK = 2**20  # characters of a file that is read in parts


def parse_json(text: str | bytes) -> Any:
    """Returns the value that JSON text stands for.

    Args:
      text: JSON; bytes are UTF-8, with or without a byte-order mark.

    Raises:
      ValueError: in one line, that it is not UTF-8 or not JSON, has a key twice in an object, a
        number that is not finite or of thousands of digits, or is nested over 64 levels. The
        line is a reason, which is one of few, or the reason, a colon and particulars.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")  # without the byte-order mark of Windows
        value = json.loads(text, **_HOOKS)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8: byte {error.object[error.start]:#04x} at {error.start}"
        ) from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        place = f"{line}column {error.colno}"
        raise ValueError(f"not JSON: {error.msg}, {place}") from None
    except RecursionError:
        raise ValueError(f"nested too deeply: expected at most {_MOST_LEVELS} levels") from None
    if _is_deeper(value, _MOST_LEVELS):
        raise ValueError(f"nested too deeply: expected at most {_MOST_LEVELS} levels")
    return value


def read_json_object(file: pathlib.Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
      OSError: the file cannot be read.
      ValueError: naming the file, for what `parse_json` refuses and for another value.
    """
    check_regular(file)
    try:
        return parse_object(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Returns the object that JSON text stands for.

    Raises:
      ValueError: see `parse_json`; or it is another value.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object: found {quote(value)}")
    return value


def read_json_items(file: pathlib.Path, key: str) -> Iterator[Any]:
    """Yields the items of one list of the object in a JSON file, which may be larger than memory.

    Args:
      file: whose other values are small.
      key: of the list; where it is absent, nothing is yielded.

    Raises:
      OSError: the file cannot be read.
      ValueError: naming the file and the character where it is no JSON or another value, or what
        `parse_json` refuses in it.
    """
    check_regular(file)
    with file.open(encoding="utf-8-sig") as opened:
        reader = _ItemReader(opened)
        try:
            yield from reader.items(key)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not UTF-8: {error.reason}") from None
        except (ValueError, RecursionError) as error:
            place = f"from character {reader.position:,} on"
            raise ValueError(f"{file}, {place}: {error}") from None


class _ItemReader:
    """Reads the values of an object one after the other, of a text that comes in blocks."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at, self._before = file, "", 0, 0
        self._decoder = json.JSONDecoder(**_HOOKS)

    @property
    def position(self) -> int:
        """Returns how many characters are read and understood."""
        return self._before + self._at

    def items(self, key: str) -> Iterator[Any]:
        """Yields the items of the list that the key has."""
        self._take("{")
        keys: list[tuple[str, None]] = []
        while not self._took("}"):
            if keys:
                self._take(",")
            name = self._value()
            if not isinstance(name, str):
                raise ValueError(f"not JSON: a key is {quote(name)}")
            keys.append((name, None))
            _unique_keys(keys)
            self._take(":")
            if name != key:
                self._value()
                continue
            self._take("[")
            if not self._took("]"):
                yield self._value()
                while not self._took("]"):
                    self._take(",")
                    yield self._value()
        if self._peek():
            raise ValueError("not JSON: more follows the object")

    def _fill(self) -> bool:
        """Reads as much again as there is, at least a block; returns whether there was more."""
        self._before += self._at
        rest = self._text[self._at :]
        more = self._file.read(max(_BLOCK, len(rest)))
        self._text, self._at = rest + more, 0
        return bool(more)

    def _peek(self) -> str:
        """Returns the next character that is no space; "" at the end."""
        while True:
            spaces = _SPACES.match(self._text, self._at)
            assert spaces is not None  # it may be empty
            self._at = spaces.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def _took(self, mark: str) -> bool:
        found = self._peek() == mark
        self._at += found
        return found

    def _take(self, mark: str) -> None:
        if not self._took(mark):
            raise ValueError(f"not JSON as expected: {quote(self._peek())} in place of {mark}")

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # A number may go on in the next block, be it after `1e`.
                whole = end < len(self._text) and self._text[end] not in ".eE"
                if whole or not self._fill():
                    break
            except json.JSONDecodeError as error:
                if not self._fill():
                    raise ValueError(f"not JSON: {error.msg}") from None
        if _is_deeper(value, _MOST_LEVELS):
            raise ValueError(f"nested too deeply: expected at most {_MOST_LEVELS} levels")
        self._at = end
        return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"key twice: {quote(twice)}, expected every key once")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"not JSON: {name} is no number")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"number too large: {quote(digits)}")
    return value


def _short_int(digits: str) -> int:
    if len(digits) > 4000:  # Python refuses more than 4,300 in its own words
        raise ValueError(f"number too large: {quote(digits)} has {len(digits)} digits")
    return int(digits)


_HOOKS: dict[str, Any] = {
    "object_pairs_hook": _unique_keys,
    "parse_constant": _refuse_constant,
    "parse_float": _finite_float,
    "parse_int": _short_int,
}


def _is_deeper(value: Any, levels: int) -> bool:
    """Returns whether lists and objects are nested over so many levels; recurses nowhere."""
    layer = [value]
    for _ in range(levels + 1):
        children: list[Any] = []
        for item in layer:
            if isinstance(item, dict):
                children.extend(item.values())
            elif isinstance(item, list):
                children.extend(item)
        layer = [child for child in children if isinstance(child, dict | list)]
        if not layer:
            return False
    return True
