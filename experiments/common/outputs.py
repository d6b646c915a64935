"""What binaries write besides their tables: JSON files, and lines that say how far they are."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from lst_jax.files import write_json
from lst_jax.strict_json import read_json_object

# Seconds between two lines about the progress.
_PROGRESS_PERIOD_S = 10.0


def make_progress_printer(noun: str = "batches") -> Callable[[int, int], None]:
    """Returns a callback that says on stderr, now and then, how far it is and how long is left.

    Args:
      noun: what it counts.
    """
    start = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_PERIOD_S and jax.process_index() == 0:
            last = now
            left = (now - start) / done * (total - done)
            print(f"{done} of {total} {noun}, {left:.0f} s left", file=sys.stderr, flush=True)

    return report


def check_writable(directory: str | pathlib.Path) -> None:
    """Checks that a folder is there and can be written to, or could be made; makes nothing.

    Raises:
      OSError: it cannot.
    """
    directory = pathlib.Path(directory).absolute()
    there = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


def check_output(path: str | pathlib.Path | None) -> None:
    """Checks, before the work whose result it is, that a file can be written.

    Raises:
      OSError: it cannot, as far as can be told without writing.
      ValueError: there is a file that holds no results.
    """
    if path is None:
        return
    path = pathlib.Path(path)
    if os.path.lexists(path) and not path.is_file():
        raise OSError(errno.EINVAL, "is no file, expected one or nothing", str(path))
    if os.path.lexists(path) and path.stat().st_size:
        read_json_object(path)  # results of an earlier run; whatever else is there stays
    check_writable(path.parent)


@contextlib.contextmanager
def leaving_nothing(directory: str | pathlib.Path) -> Iterator[None]:
    """Removes, where the body raises, the folders that it made and put no file into."""
    directory = pathlib.Path(directory).absolute()
    before = set(directory.iterdir()) if directory.is_dir() else set()
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        yield
    except Exception:
        made = [path for path in directory.glob("*") if path not in before and path.is_dir()]
        below = [path for top in made for path in (top, *top.rglob("*")) if path.is_dir()]
        for path in (*sorted(below, reverse=True), *missing):  # the deepest first
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()
        raise


def keep_results(path: str | None, values: Any, table: Callable[[], str]) -> None:
    """Writes results to a JSON file, if there is to be one, and prints them, on one process.

    Neither is lost where the other fails.
    """
    if jax.process_index() != 0:
        return
    try:
        if path:
            write_json(path, values)
    finally:
        print(table(), flush=True)
