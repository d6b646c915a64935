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
from typing import Any, NoReturn

from lst_jax.files import check_regular
from lst_jax.settings import quote

# Nothing that is read nests deeper than a handful; code that walks a value may recurse.
_MOST_LEVELS = 64


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
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_short_int,
        )
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
