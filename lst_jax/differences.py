"""What differs between two settings, descriptions or whatever else is made of named values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class _Absent:
    """In place of a value that one side does not have."""

    def __repr__(self) -> str:
        return "unknown"


ABSENT = _Absent()


class Difference(NamedTuple):
    """A value that is not the same on both sides.

    Attributes:
      name: what leads to it: "model.dim_local", "sources[0].path".
      old: there, or `ABSENT`.
      new: here, or `ABSENT`.
    """

    name: str
    old: Any
    new: Any


def differences(there: Any, here: Any, name: str = "") -> Iterator[Difference]:
    """Finds what differs, in the order of `there`.

    Dataclasses of one type and mappings are compared by their names, lists and tuples by their
    positions; all else is a single value.

    Args:
      there: nested values.
      here: others.
      name: what leads to both.

    Yields:
      The differences; none where both are the same.
    """
    old, new = _parts(there), _parts(here)
    if old is None or new is None or type(there) is not type(here):
        if there != here:
            yield Difference(name, there, here)
        return
    for part in {**old, **new}:
        inside = part if part.startswith("[") or not name else f".{part}"
        yield from differences(old.get(part, ABSENT), new.get(part, ABSENT), name + inside)


def _parts(value: Any) -> dict[str, Any] | None:
    """Returns the parts of a value by their names, None where it has none."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    if isinstance(value, list | tuple):
        return {f"[{index}]": part for index, part in enumerate(value)}
    return None
