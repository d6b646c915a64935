"""Saves and restores the state of a run; Orbax copies it off the devices and writes it behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import grain
import grain.checkpoint
import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from lst_jax.checkpoints.digests import DigestedPath, DigestedRestore, DigestedSave
from lst_jax.checkpoints.layout import (
    ABANDONED,
    CHECKPOINTS,
    STATE_FILE,
    UNREADABLE,
    UnreadableCheckpointError,
    exists,
    list_steps,
    quiet_orbax,
    reading_checkpoint,
    step_directory,
)
from lst_jax.checkpoints.params import params_save_args
from lst_jax.checkpoints.reading import read_step, reading_step
from lst_jax.checkpoints.train_state import TrainState
from lst_jax.files import system_error

IteratorState = dict[str, Any]

_LONGEST_WAIT_S = 60.0  # for what still writes a save that failed


class StatefulIterator(Protocol):
    """An iterator whose place in the data is saved with the parameters."""

    def get_state(self) -> IteratorState:
        """Returns its place, as JSON values."""
        ...

    def set_state(self, state: IteratorState) -> None:
        """Goes to a place that `get_state` gave."""
        ...


MergeStates = Callable[[Sequence[IteratorState]], IteratorState]
_Restored = tuple[TrainState, dict[str, Any], list[IteratorState]]


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: those that any of the rules keeps.

    Attributes:
      latest: so many of the last ones.
      every_steps: those of multiples of so many steps; None: none.
      best: so many of the best by `best_metric`. One that was saved without it is none of them.
      best_metric: name of a metric given to `Checkpointer.save`; None: none is the best.
      best_mode: whether the lowest ("min") or the highest ("max") value is the best.
    """

    latest: int = 2
    every_steps: int | None = None
    best: int = 1
    best_metric: str | None = None
    best_mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        for name in ("latest", "best"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"Retention.{name} is {getattr(self, name)}, expected at least 1 checkpoint "
                    "to keep"
                )
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(
                f"Retention.every_steps is {self.every_steps}, expected None or at least 1"
            )

    def manager_options(self) -> dict[str, Any]:
        """Returns the options of Orbax's manager that keep these checkpoints."""
        managers = ocp.checkpoint_managers
        policies: list[Any] = [managers.LatestN(self.latest)]
        if self.every_steps is not None:
            policies.append(managers.EveryNSteps(self.every_steps))
        options: dict[str, Any] = {}
        if self.best_metric is not None:
            # The manager saves metrics only where it has a function of them.
            options = {"best_fn": self._metric, "best_mode": self.best_mode}
            policies.append(
                managers.BestN(
                    get_metric_fn=self._metric,
                    reverse=self.best_mode == "min",
                    n=self.best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        return options | {"preservation_policy": managers.AnyPreservationPolicy(policies)}

    def comparable(self, metrics: Mapping[str, float]) -> dict[str, float] | None:
        """Returns what is saved of a step's metrics; None where it cannot be compared."""
        name = self.best_metric
        value = metrics.get(name) if name else None
        if name is None or value is None or not math.isfinite(value):
            return None
        return {name: float(value)}

    def _metric(self, metrics: Mapping[str, float]) -> float:
        """Returns the metric; the worst value for a step that was compared by another."""
        worst = math.inf if self.best_mode == "min" else -math.inf
        return worst if self.best_metric is None else metrics.get(self.best_metric, worst)


class Checkpointer:
    """Saves and restores the state of one run under its workdir."""

    def __init__(self, workdir: str | pathlib.Path, retention: Retention | None = None) -> None:
        """Opens (and makes) the workdir.

        Args:
          workdir: of the run.
          retention: which checkpoints stay.
        """
        self.workdir = pathlib.Path(workdir).absolute()
        self._retention = retention or Retention()
        self._manager = self._open()

    @property
    def directory(self) -> pathlib.Path:
        """Returns where the steps' directories are."""
        return self.workdir / CHECKPOINTS

    def latest_step(self) -> int | None:
        """Returns the step of the last complete checkpoint; None before the first."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def step_directory(self, step: int) -> pathlib.Path:
        """Returns where the checkpoint of `step` is."""
        return step_directory(self.workdir, step)

    def save(
        self,
        state: TrainState,
        iterator: StatefulIterator,
        progress: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to save everything a restart needs; returns once the state is copied.

        Args:
          state: after `state.step` updates.
          iterator: that has yielded the batches of exactly these updates.
          progress: JSON values.
          metrics: of the state, to compare checkpoints by.

        Raises:
          OSError: the checkpoint before, or this one, could not be written.
        """
        items = ocp.args.Composite(
            params=DigestedSave(state.params, params_save_args(state.params)),
            optimizer=DigestedSave({"step": state.step, "opt_state": state.opt_state}),
            data=grain.checkpoint.CheckpointSave(iterator),
            progress=ocp.args.JsonSave(dict(progress)),
        )
        compared = self._retention.comparable(metrics or {})
        with self._saving(), quiet_orbax():  # which warns of every step that has no metrics
            self._manager.save(int(state.step), metrics=compared, args=items)

    def restore(
        self,
        shapes: TrainState,
        iterator: StatefulIterator,
        merge_states: MergeStates | None = None,
        leave: Sequence[int] = (),
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Restores the last checkpoint that can be read, and the iterator with it.

        Where it is damaged, the one before it is restored and the damaged one moved to
        `unreadable_checkpoints`.

        Args:
          shapes: tree of `jax.ShapeDtypeStruct` with shardings.
          iterator: set to where it was.
          merge_states: makes one state, that the iterator of any process can be set to, from those
            that the processes saved. None sets each to the state that it saved itself, and so
            needs as many processes as then.

        Returns:
          `(state, progress)`, or None where nothing was saved yet.

        Raises:
          OSError: a file cannot be read, which is no damage; nothing is moved.
          ValueError: all checkpoints are damaged, or they are of another optimizer, or the iterator
            is of another pipeline than the one saved, or there are more or fewer processes than
            then.
        """
        damaged: list[int] = []
        steps = [step for step in self.all_steps()[::-1] if step not in leave]
        for step in steps:
            directory = self.step_directory(step)
            try:
                with reading_step(directory) as whole, reading_checkpoint(directory, whole):
                    state, progress, states = _read_step(self._manager, directory, shapes)
            except UnreadableCheckpointError as error:
                damaged.append(step)
                if step == steps[-1]:
                    raise ValueError(
                        f"no checkpoint in {self.directory} can be read (steps {steps[::-1]}); "
                        f"{error}"
                    ) from error
                following = steps[steps.index(step) + 1]
                logging.warning("%s, falling back to step %d", error, following)
                continue
            iterator.set_state((merge_states or _own_state)(states))
            # It is known only now that the run goes on from a step before them.
            for name, numbers in ((UNREADABLE, damaged), (ABANDONED, leave)):
                for number in numbers:
                    self._set_aside(number, name)
            return state, progress
        return None

    def reached_preemption(self, step: int) -> bool:
        """Returns whether the cluster asked the processes of the run to stop at this step."""
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Returns when every save has been committed; raises as `save` does."""
        with self._saving():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the background threads; raises as `save` does."""
        with self._saving():
            self._manager.close()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Names a failed save in one line, and removes what it leaves of a step."""
        try:
            yield
        except Exception as error:
            number = system_error(error)
            if number is None and not isinstance(error, OSError | ValueError):
                raise
            _await_writers()
            if jax.process_index() == 0:
                self._remove_unfinished()
            reason = " ".join(str(error).split())[:300]
            if number is not None and not isinstance(error, OSError):
                reason = os.strerror(number)
            raise OSError(f"a checkpoint in {self.directory} cannot be saved: {reason}") from error

    def _open(self) -> ocp.CheckpointManager:
        if jax.process_index() == 0:
            # Orbax would do so in a thread that `close` does not wait for, and that fails loudly
            # where the process ends before it.
            self._remove_unfinished()
            self._hide_damaged_metrics()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints looked at")
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=True,
            temporary_path_class=DigestedPath,
            **self._retention.manager_options(),
        )
        return ocp.CheckpointManager(self.directory, options=options)

    def _hide_damaged_metrics(self) -> None:
        """Renames metrics that are no JSON, of which the manager would die before any restore.

        The step is found to be damaged when it is restored: its digests miss the file.
        """
        for step in list_steps(self.workdir):
            file = self.step_directory(step) / "metrics" / "metrics"
            if exists(file):
                try:
                    json.loads(file.read_bytes())
                except ValueError:
                    file.rename(file.with_name("metrics.damaged"))

    def _remove_unfinished(self) -> None:
        """Removes what saves that did not end left."""
        for path in self.directory.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def _set_aside(self, step: int, name: str) -> None:
        """Moves a step out of the way: its name is needed when training reaches it again."""
        if jax.process_index() == 0:
            target = self.workdir / name
            target.mkdir(exist_ok=True)
            number = len(list(target.iterdir()))
            self.step_directory(step).rename(target / f"{step}.{number}")
        if jax.process_count() > 1:  # wait until it is gone
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()


def restore_branch(
    path: str | pathlib.Path,
    shapes: TrainState,
    iterator: StatefulIterator,
    merge_states: MergeStates | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Restores the state that another run branches off from; changes nothing there.

    Args:
      path: WORKDIR, WORKDIR/STEP or WORKDIR/checkpoints/STEP of a run with the same model,
        optimizer and data.
      shapes: see `Checkpointer.restore`, as the arguments that follow.
      iterator: set to where it was.
      merge_states: makes one state of the iterators' states.

    Returns:
      `(state, progress)`.

    Raises:
      FileNotFoundError: there is no run or no checkpoint.
      OSError: a file cannot be read.
      ValueError: the checkpoint is damaged or was deleted meanwhile, or the data are others.
    """

    def read(directory: pathlib.Path, whole: bool) -> _Restored:
        options = ocp.CheckpointManagerOptions(read_only=True)
        with quiet_orbax():  # it warns of what reading alone means
            manager = ocp.CheckpointManager(directory.parent, options=options)
        with manager, reading_checkpoint(directory, whole):
            return _read_step(manager, directory, shapes)

    state, progress, states = read_step(path, read, items=None)
    iterator.set_state((merge_states or _own_state)(states))
    return state, progress


def _await_writers() -> None:
    """Waits for Orbax's other threads of a save that failed, which still write parts of it."""
    end = time.monotonic() + _LONGEST_WAIT_S
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax.") and thread != threading.current_thread():
            # Their own `join` raises what they failed by, which is told already.
            threading.Thread.join(thread, max(end - time.monotonic(), 0.0))


def _read_step(
    manager: ocp.CheckpointManager, directory: pathlib.Path, shapes: TrainState
) -> _Restored:
    """Reads state, progress and the iterators' states of a step."""
    states = _read_iterator_states(directory / "data")
    optimizer = {"step": shapes.step, "opt_state": shapes.opt_state}
    restored: Any = manager.restore(
        int(directory.name),
        args=ocp.args.Composite(
            params=DigestedRestore(shapes.params),
            optimizer=DigestedRestore(optimizer),
            progress=ocp.args.JsonRestore(),
        ),
    )
    state = TrainState(
        step=restored.optimizer["step"],
        params=restored.params,
        opt_state=restored.optimizer["opt_state"],
    )
    return state, restored.progress, states


def _read_iterator_states(directory: pathlib.Path) -> list[IteratorState]:
    """Returns the states that the processes saved, in their order."""
    files = [path for path in directory.iterdir() if STATE_FILE.fullmatch(path.name)]
    matches = [STATE_FILE.fullmatch(path.name) for path in directory.iterdir()]
    counts = {int(match[1]) for match in matches if match}
    if counts != {len(files)}:
        raise FileNotFoundError(f"{directory}: states of {len(files)} of {counts} processes")
    names = [f"process_{index}-of-{len(files)}.json" for index in range(len(files))]
    return [json.loads((directory / name).read_text()) for name in names]


def _own_state(states: Sequence[IteratorState]) -> IteratorState:
    """Returns what this process saved."""
    if len(states) != jax.process_count():
        raise ValueError(
            f"the checkpoint was saved by {len(states)} processes; expected as many as there are, "
            f"{jax.process_count()}, where their iterators' states cannot be merged"
        )
    return states[jax.process_index()]
