"""Where records go: console, `metrics.jsonl`, TensorBoard, and two trackers that are extras.

A run is given functions that open writers (`hooks.OpenWriter`), `WRITERS` has them by name. What a
writer does never ends a run: see `GuardedWriters`.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from tensorboardX.event_file_writer import EventsWriter

# Modules that build their classes when they are imported, without stubs.
from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from lst_jax.extras import import_extra
from lst_jax.files import append_line, write_file
from lst_jax.training.hooks import OpenWriter, Record, Writer, step_of
from lst_jax.training.log import LOGGER
from lst_jax.training.metrics import METRICS_FILE, format_record, read_all_records

EVENTS = "events"
_FLUSH_SECONDS = 30.0  # of TensorBoard's events; a checkpoint flushes them, too


class GuardedWriters:
    """Hands records to writers; one that raises is logged once and left out from then on."""

    def __init__(self, writers: Iterable[Writer]) -> None:
        self._writers = list(writers)

    def write(self, record: Record) -> None:
        """Gives the record to every writer."""
        self._each(lambda writer: writer.write(record))

    def flush(self) -> None:
        """Flushes every writer."""
        self._each(lambda writer: writer.flush())

    def close(self) -> None:
        """Closes every writer."""
        self._each(lambda writer: writer.close())
        self._writers = []

    def _each(self, call: Callable[[Writer], None]) -> None:
        for writer in tuple(self._writers):
            try:
                call(writer)
            except Exception as error:  # whatever it is, the run is worth more
                self._writers.remove(writer)
                LOGGER.warning(
                    "%s failed, the run goes on without it: %r", type(writer).__name__, error
                )


class ConsoleWriter:
    """One line a record."""

    def __init__(self, num_steps: int, stream: TextIO | None = None) -> None:
        self._num_steps = num_steps
        self._stream = stream or sys.stdout

    def write(self, record: Record) -> None:
        """Prints the record."""
        self._stream.write(format_record(record, self._num_steps) + "\n")
        self._stream.flush()

    def flush(self) -> None:
        """Does nothing: every line is flushed when it is written."""

    def close(self) -> None:
        """Does nothing: the stream is not this writer's."""


class JsonlWriter:
    """One JSON object a line in `metrics.jsonl`; the file reads as if the run never stopped."""

    def __init__(self, path: str | pathlib.Path, start_step: int) -> None:
        """Opens the file to append, without the lines that the run is about to write again.

        Args:
          path: of the file.
          start_step: updates made before; records of later steps are dropped, and so is a line
            that a crash left half written.
        """
        path = pathlib.Path(path)
        if path.exists():
            lines = path.read_text().splitlines()
            kept = [line for line in lines if _is_record_until(line, start_step)]
            write_file(path, "".join(line + "\n" for line in kept))
        else:
            path.touch()
        self._path = path

    def write(self, record: Record) -> None:
        """Appends the record, whole or, with an `OSError`, not at all."""
        append_line(self._path, json.dumps(record, allow_nan=False))

    def flush(self) -> None:
        """Does nothing: every line is flushed when it is written."""

    def close(self) -> None:
        """Does nothing: the file is open while a line is written."""


class TensorBoardWriter:
    """Scalars of every record as TensorBoard events."""

    def __init__(
        self, directory: str | pathlib.Path, start_step: int, records: Sequence[Record] = ()
    ) -> None:
        """Opens a new event file that hides what older ones hold of the steps to come.

        A process that dies takes the events in its buffer with it. So the new file begins at the
        first step until `start_step` of which `records` has a number that the older files lack.

        Args:
          directory: of the event files.
          start_step: updates made before.
          records: of the run so far, in the order of steps.
        """
        known = read_scalars(directory)
        earlier = [record for record in records if step_of(record) <= start_step]
        missing = [
            step_of(record)
            for record in earlier
            if any((name, step_of(record)) not in known for name, _ in _scalars(record))
        ]
        first = min(missing, default=start_step + 1)
        pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
        # `SummaryWriter.flush` does not wait for the thread that writes; this one has no thread.
        self._writer = EventsWriter(str(pathlib.Path(directory) / "events"), f".{os.getpid()}")
        self._flushed_at = -math.inf
        session = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=first, session_log=session))
        for record in earlier:
            if step_of(record) >= first:
                self.write(record)

    def write(self, record: Record) -> None:
        """Adds every number of the record as a scalar."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in _scalars(record)]
        summary = Summary(value=values)
        self._writer.write_event(Event(wall_time=time.time(), step=record["step"], summary=summary))
        if time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is buffered."""
        self._writer.flush()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Writes what is buffered and closes the file."""
        self._writer.close()


class CluWriter:
    """Scalars of every record through Common Loop Utils (extra `clu`)."""

    def __init__(self, directory: str | pathlib.Path) -> None:
        """Opens CLU's writer for the directory.

        Raises:
          ImportError: the extra is not installed.
        """
        metric_writers = import_extra("clu", "clu.metric_writers")
        self._writer = metric_writers.create_default_writer(str(directory), just_logging=False)

    def write(self, record: Record) -> None:
        """Adds every number of the record."""
        self._writer.write_scalars(record["step"], dict(_scalars(record)))

    def flush(self) -> None:
        """Writes what is buffered."""
        self._writer.flush()

    def close(self) -> None:
        """Writes what is buffered and closes the files."""
        self._writer.close()


class WandbWriter:
    """Every record in a run of Weights & Biases (extra `wandb`), which a restart goes on with."""

    def __init__(self, directory: str | pathlib.Path) -> None:
        """Opens the run that is named after the directory.

        Project, entity and mode are those of the service's environment variables.

        Raises:
          ImportError: the extra is not installed.
        """
        wandb = import_extra("wandb", "wandb")
        directory = pathlib.Path(directory)
        self._run = wandb.init(dir=str(directory), id=directory.name, resume="allow")

    def write(self, record: Record) -> None:
        """Logs every number of the record."""
        self._run.log(dict(_scalars(record)), step=record["step"])

    def flush(self) -> None:
        """Does nothing: the service's process sends what is logged, also after this one ended."""

    def close(self) -> None:
        """Ends the run's session."""
        self._run.finish()


def open_console(workdir: pathlib.Path, start_step: int, num_steps: int) -> Writer:
    """Opens the console, stdout."""
    return ConsoleWriter(num_steps)


def open_jsonl(workdir: pathlib.Path, start_step: int, num_steps: int) -> Writer:
    """Opens `metrics.jsonl` under the workdir."""
    return JsonlWriter(workdir / METRICS_FILE, start_step)


def open_tensorboard(workdir: pathlib.Path, start_step: int, num_steps: int) -> Writer:
    """Opens TensorBoard's `events` under the workdir; fills them from `metrics.jsonl`."""
    has_records = (workdir / METRICS_FILE).exists()
    records = read_all_records(workdir) if has_records else []
    return TensorBoardWriter(workdir / EVENTS, start_step, records)


def open_clu(workdir: pathlib.Path, start_step: int, num_steps: int) -> Writer:
    """Opens Common Loop Utils' writer for `clu` under the workdir."""
    return CluWriter(workdir / "clu")


def open_wandb(workdir: pathlib.Path, start_step: int, num_steps: int) -> Writer:
    """Opens the workdir's run of Weights & Biases."""
    return WandbWriter(workdir)


# `metrics.jsonl` comes before what is filled from it.
WRITERS: dict[str, OpenWriter] = {
    "console": open_console,
    "jsonl": open_jsonl,
    "tensorboard": open_tensorboard,
    "clu": open_clu,
    "wandb": open_wandb,
}
DEFAULT_WRITERS: tuple[OpenWriter, ...] = (open_console, open_jsonl, open_tensorboard)


def read_scalars(directory: str | pathlib.Path) -> set[tuple[str, int]]:
    """Returns names and steps of the scalars that TensorBoard shows of a directory.

    A file hides what earlier ones hold from the step on at which its session starts.
    """
    shown: set[tuple[str, int]] = set()
    for file in sorted(pathlib.Path(directory).glob("events.out.tfevents.*")):
        for event in _read_events(file):
            if event.session_log.status == SessionLog.START:
                shown = {(name, step) for name, step in shown if step < event.step}
            shown.update((value.tag, event.step) for value in event.summary.value)
    return shown


def _read_events(file: pathlib.Path) -> Iterator[Event]:
    """Yields the events of a file up to where it was cut, if it was."""
    data, position = file.read_bytes(), 0
    while position + 12 <= len(data):
        # Length (8 bytes), its checksum (4), the event, its checksum (4).
        (length,) = struct.unpack_from("<Q", data, position)
        begin, end = position + 12, position + 12 + length
        if end + 4 > len(data):
            return
        yield Event.FromString(data[begin:end])
        position = end + 4


def _scalars(record: Record) -> Iterator[tuple[str, int | float]]:
    """Yields name and value of what a record has a number of."""
    for name, value in record.items():
        if name != "step" and value is not None:
            yield name, value


def _is_record_until(line: str, step: int) -> bool:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError:
        return False
    return isinstance(record, dict) and record.get("step", step + 1) <= step
