"""Runs measurements against a deadline, and keeps what each of them found the moment it exists.

Results go to a file of JSON lines, one record a line, written and synced at once: whatever ends the
process, the lines that are there are whole and count. A job that fails is recorded with its error
and the next one starts. A job that is not expected to end in time is not begun.

A kernel may also hang, or leave the device's context unusable, and neither can be mended inside the
process. So jobs run in a worker process (`JobRunner`), which ends when that happens, and
`supervise` starts another, which goes on with the jobs that had not begun.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Record = dict[str, Any]

# The worker's exit status when the next job needs a new process.
RESTART = 76

# A job that takes so many times what it is expected to, and so many seconds more, hangs.
_PATIENCE = 2.0
_PATIENCE_S = 20.0
# Seconds before the deadline that recording a cut needs, and between two looks of the watchdog.
_MARGIN_S = 1.0
_PERIOD_S = 0.2
_LONGEST_ERROR = 600


class Job(NamedTuple):
    """A measurement.

    Attributes:
      stage: the group that it belongs to.
      name: of the job, unique in its stage.
      seconds: that it is expected to take at most.
      run: yields records as they are found.
    """

    stage: str
    name: str
    seconds: float
    run: Callable[[], Iterable[Record]]


def read_records(path: str | pathlib.Path) -> list[Record]:
    """Reads a file of JSON lines; a file that is not there is empty."""
    path = pathlib.Path(path)
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def last_run(records: Sequence[Record]) -> list[Record]:
    """Returns the records from the last one of the stage `run` on, which describes a run."""
    starts = [i for i, record in enumerate(records) if record["stage"] == "run"]
    return list(records[starts[-1] :]) if starts else []


class JobRunner:
    """Runs jobs until a deadline and appends what they find to a file."""

    def __init__(
        self,
        path: str | pathlib.Path,
        deadline: float,
        is_alive: Callable[[], object],
        begun: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Opens the file; records that are in it stay.

        Args:
          path: of the JSON lines file; its directory must exist.
          deadline: on the clock of `time.monotonic`.
          is_alive: raises an error if the device is of no use any more; called after failures.
          begun: stage and name of the jobs that an earlier process began.
        """
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._deadline, self._is_alive, self._begun = deadline, is_alive, set(begun)
        self._parent = os.getppid()
        self._current: tuple[Job, float] | None = None
        self._lock = threading.Lock()

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes a record: one line in one call, then synced, so that a kill leaves no part."""
        line = json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n"
        with self._lock:
            os.write(self._file, line.encode())
            os.fsync(self._file)
        print(_summary(record), flush=True)

    def run(self, jobs: Iterable[Job]) -> None:
        """Runs the jobs in their order; those that are too long for the time left are left out."""
        threading.Thread(target=self._watch, daemon=True).start()
        for job in jobs:
            left = self._deadline - time.monotonic()
            if (job.stage, job.name) in self._begun:
                continue
            if job.seconds > left:
                reason = f"needs about {job.seconds:.0f} s, {left:.0f} s are left"
                self.append(self._stamp(job, "skipped", {"reason": reason}))
            else:
                self._run_job(job)

    def _run_job(self, job: Job) -> None:
        self.append(self._stamp(job, "begun", {}))
        begin = time.monotonic()
        self._current = job, begin
        try:
            for record in job.run():
                self.append(self._stamp(job, "ok", record))
            status, outcome = "done", {}
        except Exception as error:  # whatever one measurement dies of, the others go on
            place = traceback.extract_tb(error.__traceback__)[-1]
            message = " ".join(f"{type(error).__name__}: {error}".split())
            at = f"{pathlib.Path(place.filename).name}:{place.lineno}"
            status, outcome = "failed", {"error": message[:_LONGEST_ERROR], "at": at}
        seconds = round(time.monotonic() - begin, 1)
        self.append(self._stamp(job, status, {"seconds": seconds, **outcome}))
        if status == "failed":
            try:
                self._is_alive()
            except Exception:  # of whatever kind: this process can do no more
                os._exit(RESTART)
        self._current = None

    def _stamp(self, job: Job, status: str, record: Mapping[str, Any]) -> Record:
        left = round(self._deadline - time.monotonic(), 1)
        return {"stage": job.stage, "job": job.name, "status": status, "left_s": left, **record}

    def _watch(self) -> None:
        """Ends the process where a job hangs, at the deadline, and when nobody waits for it."""
        while True:
            time.sleep(_PERIOD_S)
            now, current = time.monotonic(), self._current
            if os.getppid() != self._parent:
                os._exit(1)
            late = now > self._deadline - _MARGIN_S
            if current is None:
                if late:
                    os._exit(0)
                continue
            job, begin = current
            if late or now - begin > _PATIENCE * job.seconds + _PATIENCE_S:
                what = "the deadline" if late else f"{now - begin:.0f} s"
                reason = f"expected {job.seconds:.0f} s at most, still running at {what}"
                self.append(self._stamp(job, "cut off", {"reason": reason}))
                os._exit(0 if late else RESTART)


def supervise(command: Sequence[str], deadline: float) -> int:
    """Runs a worker, and another one for what is left whenever one ends before its jobs do.

    Args:
      command: of the worker.
      deadline: on the clock of `time.monotonic`; no worker outlives it.

    Returns:
      The exit status of the last worker.
    """
    while True:
        with subprocess.Popen(command) as worker, _passing_on_sigterm(worker):
            try:
                code = worker.wait(max(deadline - time.monotonic(), 0) + _MARGIN_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                return worker.wait()
        killed = code < 0 and -code not in (signal.SIGTERM, signal.SIGINT)
        if not (killed or code == RESTART) or time.monotonic() > deadline:
            return code


@contextlib.contextmanager
def _passing_on_sigterm(worker: subprocess.Popen[bytes]) -> Iterator[None]:
    previous = signal.signal(signal.SIGTERM, lambda *_: worker.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _plain(value: Any) -> Any:
    """Returns the value in JSON's types; NaN and infinities as text."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    number = float(value)
    return number if abs(number) < float("inf") else str(number)


def _summary(record: Mapping[str, Any]) -> str:
    """Returns the record as a line for people: scalars alone."""
    parts = []
    for key, value in record.items():
        if isinstance(value, float):
            parts.append(f"{key}={value:.5g}")
        elif isinstance(value, str | int):
            parts.append(f"{key}={value}")
    return " ".join(parts)[:400]
