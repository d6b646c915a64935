"""Fields and lines of manifests, each held to what it should be; errors name their place."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from lst_jax.files import check_encoding, check_regular, read_numbered_lines
from lst_jax.settings import list_names, quote
from lst_jax.strict_json import parse_object

_Value = TypeVar("_Value")
_LONGEST_LINE = 2**26
_NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]{1,3})?|[0-9]+\.")


def by_key(pairs: Iterable[tuple[str, _Value]], place: object) -> dict[str, _Value]:
    """Returns values by their keys; raises a `ValueError` where two have one key."""
    table: dict[str, _Value] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"{place} has {quote(key)} twice, expected it once")
        table[key] = value
    return table


def split_lines(path: pathlib.Path, mark: str, expected: str) -> Iterator[tuple[str, str]]:
    """Yields what is before and after the first mark of every line."""
    for number, line in read_numbered_lines(path):
        name, found, rest = decode_text(line, f"{path}:{number}").partition(mark)
        if not found or not name.strip() or not rest.strip():
            raise ValueError(f"{path}:{number}: the line is {quote(line)}, expected {expected}")
        yield name.strip(), rest.strip()


def read_table(
    path: pathlib.Path, columns: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the rows of a table with tabs, each with its place."""
    header: list[str] | None = None
    for number, line in read_numbered_lines(path):
        cells = decode_text(line, f"{path}:{number}").split("\t")
        if header is None:
            header = cells
            _check_header(header, columns, path)
        elif len(cells) != len(header):
            raise ValueError(f"{path}:{number} has {len(cells)} cells, expected {len(header)}")
        else:
            yield f"{path}:{number}", dict(zip(header, map(str.strip, cells), strict=True))


def _check_header(header: list[str], columns: tuple[str, ...], path: pathlib.Path) -> None:
    for column in columns:
        if column not in header:
            raise ValueError(f"{path} has the columns {list_names(header)}, expected {column}")
    by_key(((name, None) for name in header), f"{path}: its header")


def read_csv(path: pathlib.Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the rows of a table with commas and quotes below its header, each with its place."""
    check_encoding(path)
    lines = csv.reader(io.StringIO(decode_text(path.read_bytes(), path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(lines, [])]
        _check_header(header, columns, path)
        for cells in lines:
            place = f"{path}:{lines.line_num}"
            if not cells:
                continue
            if len(cells) != len(header):
                raise ValueError(f"{place} has {len(cells)} cells, expected {len(header)}")
            yield place, dict(zip(header, map(str.strip, cells), strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}:{lines.line_num} is no row of a CSV file: {error}") from None


def read_jsonl(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a file of lines, compressed or not, each with its place."""
    if path.suffix != ".gz":
        for number, line in read_numbered_lines(path):
            yield f"{path}:{number}", parse_line(line, f"{path}:{number}")
        return
    check_regular(path)
    try:
        with gzip.open(path, "rb") as file:
            for number in itertools.count(1):
                line = file.readline(_LONGEST_LINE + 1)
                if not line:
                    return
                if len(line) > _LONGEST_LINE:  # a few bytes may unfold to all memory
                    expected = f"at most {_LONGEST_LINE}"
                    raise ValueError(f"{path}:{number} has more bytes, expected {expected}")
                yield f"{path}:{number}", parse_line(line, f"{path}:{number}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file: {error}") from error


def parse_line(data: bytes, place: str) -> dict[str, Any]:
    """Returns the object that JSON stands for."""
    try:
        return parse_object(data)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def decode_text(data: bytes, place: object) -> str:
    """Returns UTF-8 as text without NUL."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8: byte {data[error.start]:#04x}") from None
    if "\0" in text:
        raise ValueError(f"{place} has a NUL character, expected text")
    return text


def find_text(fields: Mapping[str, Any], key: str, place: object) -> str | None:
    """Returns a text that may be there; None where it is absent, null or blank."""
    value = fields.get(key)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):  # speakers are often numbers
        value = str(value)
    if not isinstance(value, str) or not is_unicode(value):
        raise ValueError(f"{place}: {key} is {quote(value)}, expected text")
    return " ".join(value.split()) or None


def is_unicode(text: str) -> bool:
    """Returns whether a text can be written: JSON may have halves of characters, names anything."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def need_text(fields: Any, key: str, place: object) -> str:
    """Returns a text that must be there."""
    text = find_text(fields, key, place) if isinstance(fields, dict) else None
    if text is None:
        raise ValueError(f"{place}: no {key}, expected one")
    return text


def need_objects(fields: Any, key: str, place: object) -> list[Any]:
    """Returns a list of objects that must be there."""
    value = fields.get(key) if isinstance(fields, dict) else None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{place}: {key} is {quote(value)}, expected a list of objects")
    return value


def need_seconds(value: Any, place: object) -> float:
    """Returns a time, given as a number or in digits."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        number = float(value)
    else:
        number = value if isinstance(value, int | float) and type(value) is not bool else -1.0
    if not 0 <= number < 1e9:
        raise ValueError(f"{place}: a time is {quote(value)}, expected seconds")
    return float(number)
