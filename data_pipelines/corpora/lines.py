"""Files of one record a line: reading, places of errors, and an account of what was skipped."""

from __future__ import annotations

import collections
import multiprocessing
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, TypeVar, cast

from data_pipelines.processes import end_with_parent, starting_workers
from lst_jax.files import check_encoding, read_numbered_lines
from lst_jax.settings import quote
from lst_jax.strict_json import parse_object

_LINES_PER_TASK = 256
_TASKS_PER_WORKER = 4
_SHOWN_PLACES = 3  # of each reason
T = TypeVar("T")


class BadLine(ValueError):
    """A line that is no record; `reason` is one of few, `detail` says what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class RecordError(ValueError):
    """A bad line and where it stands.

    Attributes:
      path: the file.
      line: the line's number, from 1.
      reason: what is wrong, without particulars.
    """

    def __init__(self, path: pathlib.Path, line: int, bad_line: BadLine) -> None:
        super().__init__(f"{path}:{line}: {bad_line}")
        self.path = path
        self.line = line
        self.reason = bad_line.reason


class SkipReport:
    """Counts the lines that were skipped, by reason, and keeps the first few of each."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.first_errors: dict[str, list[str]] = {}

    @property
    def total(self) -> int:
        """Returns the lines skipped."""
        return self.counts.total()

    def add(self, error: RecordError) -> None:
        """Counts one skipped line."""
        self.counts[error.reason] += 1
        shown = self.first_errors.setdefault(error.reason, [])
        if len(shown) < _SHOWN_PLACES:
            shown.append(str(error))

    def __str__(self) -> str:
        lines = [f"skipped {self.total} bad records"]
        for reason, count in self.counts.most_common():
            lines.append(f"  {count} × {reason}, such as")
            lines += [f"    {error}" for error in self.first_errors[reason]]
        return "\n".join(lines)


def read_lines(
    paths: Iterable[str | pathlib.Path],
    parse: Callable[[bytes, str], T],
    *,
    skipped: SkipReport | None = None,
    num_workers: int = 0,
    unique: bool = False,
) -> Iterator[T]:
    """Parses every line of some files, in order.

    Args:
      paths: the files.
      parse: makes a record of a line without its line break and of a name for it,
        `file name:line number`; raises `BadLine`. Must be picklable where there are workers.
      skipped: where given, bad lines are counted here and passed over.
      num_workers: processes that parse; 0 parses in this one.
      unique: whether a record whose `file_id` was there before makes its line a bad one.

    Yields:
      What `parse` returns.

    Raises:
      FileNotFoundError: a file is missing; found out before the first line is read, as is
      ValueError: a file is UTF-16, or its name is not UTF-8.
      RecordError: a line is bad and `skipped` is None.
    """
    seen: dict[str, str] | None = {} if unique else None
    for path, number, result in _parse_files(_check_files(paths), parse, num_workers):
        if seen is not None and not isinstance(result, BadLine):
            result = _reject_duplicate(result, f"{path}:{number}", seen)
        if isinstance(result, BadLine):
            _handle(RecordError(path, number, result), skipped)
        else:
            yield cast(T, result)


def load_object(line: bytes, fields: dict[str, type]) -> dict[str, Any]:
    """Returns the JSON object in a line.

    Args:
      line: UTF-8.
      fields: keys that must be there, and the types of their values.

    Raises:
      BadLine: not UTF-8, not JSON, not an object, a key twice, missing or of another type.
    """
    text = decode_line(line)
    try:
        value = parse_object(text)
    except ValueError as error:
        reason, _, detail = str(error).partition(": ")
        raise BadLine(reason, detail) from error
    for key, kind in fields.items():
        if key not in value:
            raise BadLine("missing key", repr(key))
        if not isinstance(value[key], kind):
            raise BadLine(f"{key!r} is not a {kind.__name__}", f"found {quote(value[key])}")
        if kind is str:
            _check_unicode(key, value[key])
    return value


def read_known_texts(value: Mapping[str, Any], keys: Iterable[str]) -> dict[str, str | None]:
    """Returns the texts under keys that an object may have.

    Args:
      value: what `load_object` returned.
      keys: that may be there; one that is absent, or null, is not known.

    Raises:
      BadLine: a value is something else, or blank.
    """
    known: dict[str, str | None] = {}
    for key in keys:
        text = known[key] = value.get(key)
        if text is None:
            continue
        if not isinstance(text, str):
            raise BadLine(f"{key!r} is not a str", f"found {quote(text)}")
        if not text.strip():
            raise BadLine(f"empty {key}")
        _check_unicode(key, text)
    return known


def decode_line(line: bytes) -> str:
    """Returns the text of a line.

    Raises:
      BadLine: it is blank or not UTF-8, or holds a NUL, which no text does: UTF-16 without its
        mark looks so.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLine("not UTF-8", f"byte {line[error.start]:#04x} at {error.start}") from error
    if "\0" in text:
        raise BadLine("NUL character", f"at {text.index(chr(0))}; expected UTF-8, not UTF-16")
    if not text.strip():
        raise BadLine("blank line")
    return text


def _check_unicode(key: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadLine("not Unicode", f"{key!r} holds a lone surrogate") from error


def _reject_duplicate(record: Any, place: str, seen: dict[str, str]) -> Any:
    first = seen.setdefault(record.file_id, place)
    if first == place:
        return record
    return BadLine("duplicate file_id", f"{record.file_id!r} is also at {first}")


def _handle(error: RecordError, skipped: SkipReport | None) -> None:
    if skipped is None:
        raise error
    skipped.add(error)


def _check_files(paths: Iterable[str | pathlib.Path]) -> list[pathlib.Path]:
    files = [pathlib.Path(path) for path in paths]
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"input {path}: no such file")
        check_encoding(path)
    return files


def _numbered_lines(paths: Sequence[pathlib.Path]) -> Iterator[tuple[pathlib.Path, int, bytes]]:
    for path in paths:
        number = 0
        for number, line in read_numbered_lines(path):
            yield path, number, line
        if number == 0:  # an empty file is a mistake too: it reads as one blank line
            yield path, 1, b""


def _parse_files(
    paths: Sequence[pathlib.Path], parse: Callable[[bytes, str], T], num_workers: int
) -> Iterator[tuple[pathlib.Path, int, T | BadLine]]:
    lines = _numbered_lines(paths)
    if num_workers == 0:
        return ((path, number, _parse(parse, path, number, line)) for path, number, line in lines)
    return _parse_in_workers(lines, parse, num_workers)


def _parse(
    parse: Callable[[bytes, str], T], path: pathlib.Path, number: int, line: bytes
) -> T | BadLine:
    try:
        return parse(line, f"{path.name}:{number}")
    except BadLine as bad_line:
        return bad_line


def _parse_in_workers(
    lines: Iterator[tuple[pathlib.Path, int, bytes]],
    parse: Callable[[bytes, str], T],
    num_workers: int,
) -> Iterator[tuple[pathlib.Path, int, T | BadLine]]:
    """Parses batches of lines in processes, a bounded number ahead, and yields in order."""
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(num_workers, context, _set_worker_parse, (parse,)) as pool:
        running: collections.deque[futures.Future[list[Any]]] = collections.deque()
        try:
            for batch in _batches(lines, _LINES_PER_TASK):
                with starting_workers():
                    running.append(pool.submit(_parse_in_worker, batch))
                if len(running) == num_workers * _TASKS_PER_WORKER:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


_worker_parse: Callable[[bytes, str], Any] | None = None  # set once in every worker process


def _set_worker_parse(parse: Callable[[bytes, str], Any]) -> None:
    global _worker_parse
    end_with_parent()
    _worker_parse = parse


def _parse_in_worker(batch: list[tuple[pathlib.Path, int, bytes]]) -> list[Any]:
    assert _worker_parse is not None
    return [
        (path, number, _parse(_worker_parse, path, number, line)) for path, number, line in batch
    ]
