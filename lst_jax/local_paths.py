"""Paths, all through one function: local, of this file system, and such that they can be written.

Remote paths (`gs://…`, `s3://…`, any `scheme://…`) are refused: nothing here reads or writes them,
and as local paths they would make a folder named `gs:`. A leading `~` or `~user` is the home
directory, as in a shell (which leaves it alone after `--flag=`); a file of that name is `./~`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable
from typing import Annotated, Any

from lst_jax.settings import NotEmpty, quote, require

# One slash: `pathlib` makes one of two. A letter alone is no scheme, but a drive.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_LONGEST_NAME = 255  # bytes, of Linux, macOS and every file system in use
_LONGEST_PATH = 4095
_LOCAL = "a local path"


def local_path(value: str | os.PathLike[str], name: str = "path") -> pathlib.Path:
    """Returns a path that can be one of this machine's file system.

    Args:
      value: path, or pattern of paths; not looked up.
      name: of the setting or flag, for the message.

    Returns:
      The path, with the home directory in place of a leading `~`.

    Raises:
      ValueError: it is empty, remote, not UTF-8, has a NUL character, or is too long.
    """
    text = os.fspath(value)
    require(isinstance(text, str) and text != "", name, text, _LOCAL)
    require("\0" not in text, name, text, f"{_LOCAL} without NUL")
    remote = _SCHEME.match(text)
    require(not remote, name, text, f"{_LOCAL}: remote ones are not supported yet")
    try:
        text.encode("utf-8")
        path = pathlib.Path(text)
        if str(path).startswith("~"):  # also `./~`, which pathlib makes one of
            path = path.expanduser() if text.startswith("~") else path.absolute()
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        expected = f"{_LOCAL} that is UTF-8, and that the file system's encoding has"
        raise ValueError(f"{name} is {quote(text)}, expected {expected}") from None
    except RuntimeError:  # of `~user`
        raise ValueError(f"{name} is {quote(text)}, expected {_LOCAL}: no such user") from None
    is_short = len(encoded) <= _LONGEST_PATH and all(
        len(part) <= _LONGEST_NAME for part in encoded.split(b"/")
    )
    expected = f"{_LOCAL} of at most {_LONGEST_PATH} bytes, {_LONGEST_NAME} between slashes"
    require(is_short, name, text, expected)
    return path


@dataclasses.dataclass(frozen=True)
class LocalPath(NotEmpty):
    """Marks text that `local_path` takes, and which is kept as it returns it."""

    noun: str = f"{_LOCAL} (one of digits alone as ./123)"

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Adds the check to the text's schema."""
        return {
            "type": "function-after",
            "function": {"type": "no-info", "function": _check},
            "schema": handler(source),
        }


def _check(text: str) -> str:
    path = str(local_path(text))
    return path if text.startswith("~") else text


PathText = Annotated[str, LocalPath()]  # of what is read or written here
# What a file says of where something was, on another machine perhaps.
RecordedPath = Annotated[str, NotEmpty("a path (one of digits alone as ./123)")]
