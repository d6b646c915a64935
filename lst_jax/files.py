"""Files that appear whole or not at all, and lines of text files as every reader here has them.

All that the three packages write for someone to read later comes through `write_file`,
`write_files` or `new_directory`. Whoever looks sees what was there before or what is there now. A
full disk or a kill leaves nothing half written under the name. Three kinds of files are not written
so: those in a folder that has no name yet, Orbax's checkpoints, which do the same, and those that
only grow (metrics, starts, continuations, measurements), whose readers pass over a last line that
is cut.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_LARGEST_ARRAY = 2**30  # bytes that an array of an archive may claim
# UTF-32's little-endian mark begins as UTF-16's does.
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_NUMBERS = itertools.count()  # tell apart what one process writes
# What only writing meets: the disk is full, a quota or the largest file is reached.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# As Rust's libraries and TensorStore's earlier versions tell it, and as its later ones do.
_SYSTEM_ERROR = re.compile(r"\bos[ _]error(?:_code=')? ?(\d+)", re.IGNORECASE)


def write_file(path: str | pathlib.Path, contents: str | bytes) -> pathlib.Path:
    """Writes a file, and its folders where missing; the file appears whole.

    Args:
      path: of the file; one that is there is replaced.
      contents: bytes, or text that is written as UTF-8.

    Returns:
      The path.

    Raises:
      OSError: the file cannot be written; what was there stays.
      ValueError: the text is not valid Unicode.
    """
    (written,) = write_files({path: contents})
    return written


def write_files(contents: Mapping[str | pathlib.Path, str | bytes]) -> list[pathlib.Path]:
    """Writes files that belong together, each as `write_file` does.

    None appears before all of them are on the disk: where one has no room, all are as before.

    Args:
      contents: by path, in the order in which they appear.

    Returns:
      The paths.

    Raises:
      OSError, ValueError: see `write_file`.
    """
    partials: dict[pathlib.Path, pathlib.Path] = {}
    try:
        for path, content in contents.items():
            if not str(path):
                raise ValueError("the output's path is empty, expected that of a file")
            path = pathlib.Path(path)
            data = content if isinstance(content, bytes) else content.encode("utf-8")
            path.parent.mkdir(parents=True, exist_ok=True)
            name = f".{path.name}.partial-{os.getpid()}-{next(_NUMBERS)}"
            partials[path] = path.with_name(name)
            with naming_file(path):
                partials[path].write_bytes(data)
        for path, partial in partials.items():
            with naming_file(path):
                partial.replace(path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
    return list(partials)


def append_line(path: pathlib.Path, line: str) -> None:
    """Appends a line to a file that grows, and makes it where it is missing: whole or not at all.

    A line before it that a crash left half written stays on its own line.

    Raises:
      OSError: it cannot be written.
    """
    with naming_file(path), path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        data = (b"" if file.read() in (b"", b"\n") else b"\n") + line.encode() + b"\n"
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(end)
            if not end:
                path.unlink()
            raise


@contextlib.contextmanager
def naming_file(path: pathlib.Path) -> Iterator[None]:
    """Names a file in what the system raises while it is written: a full disk names none."""
    try:
        yield
    except OSError as error:
        known = error.filename is not None and path.name not in str(error.filename)
        if not known:  # or it is named as it is called until it is whole
            error.filename, error.filename2 = str(path), None
        raise


def write_json(path: str | pathlib.Path, value: Any) -> pathlib.Path:
    """Writes a value as indented JSON, as `write_file` does."""
    return write_file(path, format_json(value))


def format_json(value: Any) -> bytes:
    """Returns a value as indented JSON.

    Text stays readable. What is not Unicode, as the name of a file may be, becomes JSON's escape:
    no results are lost for a name.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def new_directory(
    path: str | pathlib.Path, check_replaceable: Callable[[pathlib.Path], None]
) -> Iterator[pathlib.Path]:
    """Makes a directory that takes its place when the context ends without an error.

    Args:
      path: of the directory. A link is followed: what it leads to is made or replaced.
      check_replaceable: is called with the path where something is there, before the work and
        again at its end, since another may have come meanwhile. Raises where it must stay.

    Yields:
      The directory to write in, empty and beside the path. It vanishes with an error.

    Raises:
      ValueError: the path is empty.
      OSError: see `check_replaceable`; or a file of it cannot be written, whatever library says so.
    """
    if not str(path):
        raise ValueError("the output's path is empty, expected that of a directory")
    path = pathlib.Path(os.path.realpath(path))

    def check() -> None:
        if os.path.lexists(path):
            check_replaceable(path)

    check()
    partial = path.with_name(f"{path.name}.incomplete-{os.getpid()}-{next(_NUMBERS)}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        check()
        _take_place(partial, path)
    except Exception as error:
        _raise_named(error, partial, path)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def system_error(error: BaseException) -> int | None:
    """Returns the number of the system's error that an error is, or that a library tells by it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _SYSTEM_ERROR.search(f"{error} {error.__cause__}")
    return int(found[1]) if found else None


def _raise_named(error: Exception, partial: pathlib.Path, path: pathlib.Path) -> None:
    """Raises a system's error again, named as what could not be written was to be called."""
    code, name = system_error(error), str(getattr(error, "filename", None) or "")
    is_ours = name.startswith(str(partial))
    if code is None or (not is_ours and (name or code not in _NO_ROOM)):
        return  # it may be of what is read meanwhile
    name = str(path) + name.removeprefix(str(partial))
    raise OSError(code, os.strerror(code), name) from error


def refuse_to_replace(path: pathlib.Path) -> None:
    """Raises a `FileExistsError` unless the path is an empty directory."""
    if not path.is_dir() or any(path.iterdir()):
        raise FileExistsError(f"output {path} exists and is not empty")


def _take_place(partial: pathlib.Path, path: pathlib.Path) -> None:
    old = path.with_name(f"{path.name}.replaced-{os.getpid()}")
    try:
        if path.exists():
            path.rename(old)
        partial.rename(path)
    finally:
        if old.exists() and not path.exists():  # an error or a signal came between the two
            old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def check_regular(path: pathlib.Path) -> None:
    """Checks that a path is no device, pipe or socket: these may have no end, or never begin.

    Raises:
      OSError: there is nothing.
      ValueError: it is one.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a directory says so itself
        raise ValueError(f"{path} is a device, a pipe or a socket, expected a file")


def check_encoding(path: pathlib.Path) -> None:
    """Checks that a text file can be read as UTF-8 lines and be named in messages and records.

    Raises:
      OSError: the file cannot be read.
      ValueError: its name is not UTF-8, it begins with the mark of UTF-16 or UTF-32, or it is no
        regular file.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise ValueError(f"input {shown}: expected a name in UTF-8") from None
    check_regular(path)
    with path.open("rb") as file:
        if file.read(4).startswith(_WIDE_MARKS):
            raise ValueError(f"input {path} is UTF-16 or UTF-32 by its first bytes, expected UTF-8")


def read_numbered_lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """Reads a text file line by line.

    Yields:
      The lines' numbers, from 1, and their bytes: without the line break, and without UTF-8's
      byte-order mark, which opens files from Windows and, where files were joined, later lines.

    Raises:
      OSError, ValueError: see `check_encoding`.
    """
    check_encoding(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield number, line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n")


def read_arrays(path: str | pathlib.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads arrays of an .npz file, whatever their headers claim.

    Args:
      path: of the file.
      names: of the arrays to read; others may be there.

    Returns:
      The arrays by name.

    Raises:
      OSError: the file cannot be read.
      ValueError: naming the file, that it is no such archive or damaged, lacks an array, or that
        an array has Python objects or does not have the bytes that its header claims.
    """
    check_regular(pathlib.Path(path))
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _read_member(archive, name) for name in names}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        # A damaged index sends the reader before the file's beginning; others say nothing of it.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        reason = " ".join(str(error).split())[:200] or "it ends too early"
        raise ValueError(f"{path} is no archive of arrays: {reason}") from error


def _read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    if f"{name}.npy" not in archive.namelist():
        raise ValueError(f"it has no {name}")
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        return read_array(file, info.file_size, name)


def read_array(file: Any, num_bytes: int, name: str) -> np.ndarray:
    """Reads an array of an .npy file, whatever its header claims.

    Args:
      file: to read from, at its beginning.
      num_bytes: of the file.
      name: of the array, for messages.

    Raises:
      ValueError: it is no such file, has Python objects or not the bytes that its header claims.
    """
    version = np.lib.format.read_magic(file)
    first = version == (1, 0)
    read_header = (
        np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    )
    shape, by_columns, dtype = read_header(file)
    size = math.prod(shape) * dtype.itemsize
    # Nothing is allocated by what a header says before it is known to be there.
    if dtype.hasobject or min(shape, default=0) < 0 or size > _LARGEST_ARRAY:
        raise ValueError(f"{name} has dtype {dtype} and {size} bytes, expected numbers or text")
    data = file.read() if num_bytes <= _LARGEST_ARRAY + file.tell() else b""
    if len(data) != size:
        raise ValueError(f"{name} has {len(data)} bytes, expected {size} by its header")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")
