"""A worker of a study: claims cells that are missing, trains and evaluates them, keeps the results.

Workers share nothing but the workdir. A cell is a worker's own as long as it has the lock of the
cell's claim, which ends with the process (`lst_jax.training.lock`). What ends a cell's training or
evaluation is kept beside it and said; the other cells go on.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import Self

from experiments.common.cli import ExitCode
from experiments.studies.cell_results import score_cell
from experiments.studies.cells import (
    FAILURE,
    LOG,
    RESULT,
    RUN,
    STORIES,
    Workdir,
    branch_bindings,
    evaluate_command,
    run_bindings,
    train_command,
    trunk_bindings,
)
from experiments.studies.plan import earlier_starts
from experiments.studies.protocols import Branch
from experiments.studies.study_config import Cell
from lst_jax.checkpoints.layout import list_steps
from lst_jax.files import write_json
from lst_jax.settings import given, one_line
from lst_jax.strict_json import read_json_object
from lst_jax.training.lock import LOCK, WorkdirLockedError, locked
from lst_jax.training.metrics import format_duration, read_records
from lst_jax.training.signals import StopSignal

_MEASURED_STEPS = 6


class StoppedError(Exception):
    """A signal asked to stop; what was under way is saved."""


class ChildError(RuntimeError):
    """A binary of a cell failed; the last line that it said."""


class Children(StopSignal):
    """Runs binaries one at a time, and passes signals on to the one that runs.

    A context: see `StopSignal`.
    """

    def __init__(self, device: str | None = None) -> None:
        """Takes the accelerator that the binaries see; None: all."""
        super().__init__()
        self._child: subprocess.Popen[bytes] | None = None
        self._environment = dict(os.environ)
        if device is not None:
            self._environment |= {"CUDA_VISIBLE_DEVICES": device, "TPU_VISIBLE_CHIPS": device}

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def run(self, command: Sequence[str], log: pathlib.Path) -> int:
        """Runs a module with its flags; returns its exit code.

        Raises:
          StoppedError: a signal came, and the binary has ended by it.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        arguments = [sys.executable, "-m", "experiments.studies.child", *command]
        with log.open("ab") as file:
            # A separate group: what a terminal sends to all goes through this process alone.
            self._child = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
            if self.name:  # it came while the binary was started
                self._child.terminate()
            try:
                code = self._child.wait()
            except BaseException:
                self._child.kill()
                raise
            finally:
                self._child = None
        if self.name:
            raise StoppedError(self.name)
        return code

    def _request(self, number: int, frame: FrameType | None) -> None:
        super()._request(number, frame)
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def claimed(folder: pathlib.Path) -> Iterator[bool]:
    """Yields whether what a folder stands for is this process's own while the context is open."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder))
        except WorkdirLockedError:
            yield False
            return
        yield True


def owner(folder: pathlib.Path) -> str | None:
    """Returns who has a claim, in words; None where nobody has."""
    if not folder.exists():
        return None
    with claimed(folder) as own:
        if own:
            return None
        try:
            found = read_json_object(folder / LOCK)
            return f"process {found['process']} on {found['host']}"
        except (OSError, ValueError, KeyError):  # it is being written
            return "another process"


@contextlib.contextmanager
def pinned(threads: int | None, workdir: Workdir) -> Iterator[None]:
    """Keeps this process and its children to so many cores that no other worker has.

    Raises:
      ValueError: there are not so many.
    """
    if threads is None:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(f"threads is {threads}, expected none on a system that cannot pin them")
    before, host = os.sched_getaffinity(0), socket.gethostname()
    with contextlib.ExitStack() as held:
        cores: list[int] = []
        for core in sorted(before):
            folder = workdir.core(host, core)
            if len(cores) < threads and held.enter_context(claimed(folder)):
                cores.append(core)
        if len(cores) < threads:
            raise ValueError(
                f"threads is {threads}, expected at most {len(cores)}, the cores of {host} that "
                "no other worker of the study has"
            )
        os.sched_setaffinity(0, cores)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def run_cells(
    cells: Sequence[Cell],
    steps: dict[str, int],
    workdir: Workdir,
    children: Children,
    after_each: Callable[[], object],
    branches: Mapping[str, Branch] = MappingProxyType({}),
) -> list[str]:
    """Trains and evaluates the cells that nobody has, each at most once.

    Args:
      cells: in their order.
      steps: of each.
      workdir: of the study.
      children: runs the binaries, opened.
      after_each: called when a cell is scored or has failed.
      branches: where each leaves the run that its budgets share, if they do.

    Returns:
      Names of the cells that failed.

    Raises:
      StoppedError: a signal asked to stop.
    """
    failed, tried = [], set()
    while True:
        before = len(tried)
        for number, cell in enumerate(cells, 1):
            if cell.name in tried or (workdir.cell(cell) / RESULT).exists():
                continue
            with claimed(workdir.claim(cell.name)) as own:
                if not own or (workdir.cell(cell) / RESULT).exists():
                    continue
                print(
                    f"[{number}/{len(cells)}] {cell.name}: {steps[cell.name]:,} steps", flush=True
                )
                try:
                    if not _run_or_keep_why(cell, steps[cell.name], workdir, children, branches):
                        failed.append(cell.name)
                except WorkdirLockedError as error:
                    print(f"  not now: {error}", flush=True)
                    continue
                tried.add(cell.name)
            after_each()
        if len(tried) == before:  # what others had may be free again, as long as this one was busy
            return failed


def _run_or_keep_why(
    cell: Cell,
    steps: int,
    workdir: Workdir,
    children: Children,
    branches: Mapping[str, Branch],
) -> bool:
    """Runs a cell; returns whether it is scored, and keeps the reason where it is not."""
    folder, start = workdir.cell(cell), time.monotonic()
    try:
        _run_cell(cell, steps, workdir, children, branches)
    except (ChildError, OSError, ValueError) as error:
        message = one_line(str(error))
        write_json(folder / FAILURE, {"cell": cell.name, "error": message})
        print(f"  failed: {message}; see {folder / LOG}", flush=True)
        return False
    (folder / FAILURE).unlink(missing_ok=True)
    print(f"  scored after {format_duration(time.monotonic() - start)}", flush=True)
    return True


def _run_cell(
    cell: Cell,
    steps: int,
    workdir: Workdir,
    children: Children,
    branches: Mapping[str, Branch],
) -> None:
    folder = workdir.cell(cell)
    bindings = run_bindings(cell, steps)
    if branches:
        trunk = _run_trunk(cell, workdir, children, branches)
        bindings = branch_bindings(cell, branches[cell.name], trunk)
    _train(cell, bindings, folder, workdir, children)
    if cell.data.stories:
        _call(children, evaluate_command(cell, folder), folder / LOG)
    for measure in cell.study.measures:
        if not measure.output(folder).is_dir():  # which appears whole, and is not replaced
            _call(children, measure.command(folder / RUN, folder), folder / LOG)
    write_json(folder / RESULT, score_cell(cell, steps, folder / RUN, folder / STORIES))


def _run_trunk(
    cell: Cell, workdir: Workdir, children: Children, branches: Mapping[str, Branch]
) -> pathlib.Path:
    """Trains what is missing of the run that a cell's budgets share; returns its last part.

    Raises:
      WorkdirLockedError: another worker is at it.
    """
    run = None
    with claimed(workdir.claim(cell.trunk)) as own:
        if not own:
            raise WorkdirLockedError(f"{cell.trunk}, which its budgets share, is another worker's")
        for step in earlier_starts(cell, branches):
            folder = workdir.trunk(cell, step)
            if step not in list_steps(folder / RUN):
                _train(cell, trunk_bindings(cell, step, run), folder, workdir, children)
            run = folder / RUN
    return given(run, "run", "a shared run")


def _train(
    cell: Cell, bindings: list[str], folder: pathlib.Path, workdir: Workdir, children: Children
) -> None:
    command = train_command(cell, bindings, folder / RUN)
    programs = workdir.programs(socket.gethostname())
    _call(children, [*command, f"--compilation_cache_dir={programs}"], folder / LOG)


def _call(children: Children, command: Sequence[str], log: pathlib.Path) -> None:
    """Runs a binary to its end.

    Raises:
      ChildError: it failed.
      WorkdirLockedError: another process has the run, perhaps of a worker that is ending.
    """
    code = children.run(command, log)
    if code == ExitCode.LOCKED:
        raise WorkdirLockedError(_last_line(log))
    if code:
        raise ChildError(f"{command[0]} ended with exit code {code}: {_last_line(log)}")


def _last_line(log: pathlib.Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")


def measure_step(cell: Cell, children: Children) -> float:
    """Returns the seconds of a step of a cell on this machine, the mean of a few.

    Raises:
      ChildError: the run fails.
      StoppedError: a signal asked to stop.
    """
    bindings = [
        *cell.settings()[1],
        *(f"NUM_STEPS={_MEASURED_STEPS}", "WARMUP_STEPS=0", "LOG_EVERY=1", "EVAL_EVERY=None"),
        *("SCHEDULE=constant", "train.writers=('jsonl',)"),
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        _call(children, train_command(cell, bindings, folder / RUN), folder / LOG)
        seconds = [float(record["step_seconds"] or 0) for record in read_records(folder / RUN)]
    return sum(seconds[1:]) / len(seconds[1:])
