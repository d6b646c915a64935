"""Saves and restores the state of a run; Orbax copies it off the devices and writes it behind."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import grain
import grain.checkpoint
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from lst_jax.checkpoints.layout import (
    CHECKPOINTS,
    STATE_FILE,
    UNREADABLE,
    UnreadableCheckpointError,
    find_checkpoint,
    quiet_orbax,
    reading_checkpoint,
    step_directory,
)
from lst_jax.checkpoints.params import params_save_args
from lst_jax.checkpoints.train_state import TrainState

IteratorState = dict[str, Any]


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
                    f"{name} is {getattr(self, name)}, expected at least 1 checkpoint to keep"
                )
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(f"every_steps is {self.every_steps}, expected None or at least 1")

    def manager_options(self) -> dict[str, Any]:
        """Returns the options of Orbax's manager that keep these checkpoints."""
        managers = ocp.checkpoint_managers
        policies: list[managers.PreservationPolicy] = [managers.LatestN(self.latest)]
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
        value = metrics.get(self.best_metric) if self.best_metric else None
        if value is None or not math.isfinite(value):
            return None
        return {self.best_metric: float(value)}

    def _metric(self, metrics: Mapping[str, float]) -> float:
        """Returns the metric; the worst value for a step that was compared by another."""
        worst = math.inf if self.best_mode == "min" else -math.inf
        return metrics.get(self.best_metric, worst)


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
        """Where the steps' directories are."""
        return self.workdir / CHECKPOINTS

    def latest_step(self) -> int | None:
        """Step of the last complete checkpoint; None before the first."""
        return self._manager.latest_step()

    def step_directory(self, step: int) -> pathlib.Path:
        """Where the checkpoint of `step` is."""
        return step_directory(self.workdir, step)

    def save(
        self,
        state: TrainState,
        iterator: grain.DatasetIterator,
        progress: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts to save everything a restart needs; returns once the state is copied.

        Args:
          state: after `state.step` updates.
          iterator: that has yielded the batches of exactly these updates.
          progress: JSON values.
          metrics: of the state, to compare checkpoints by.
        """
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params, params_save_args(state.params)),
            optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
            data=grain.checkpoint.CheckpointSave(iterator),
            progress=ocp.args.JsonSave(dict(progress)),
        )
        compared = self._retention.comparable(metrics or {})
        with quiet_orbax():  # which warns of every step that has no metrics
            self._manager.save(int(state.step), metrics=compared, args=items)

    def restore(
        self,
        shapes: TrainState,
        iterator: grain.DatasetIterator,
        merge_states: MergeStates | None = None,
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Restores the last checkpoint that can be read, and the iterator with it.

        A checkpoint that cannot be read is moved to `unreadable_checkpoints` and the one before
        it is tried.

        Args:
          shapes: tree of `jax.ShapeDtypeStruct` with shardings.
          iterator: set to where it was.
          merge_states: makes one state, that the iterator of any process can be set to, from those
            that the processes saved. None sets each to the state that it saved itself, and so
            needs as many processes as then.

        Returns:
          `(state, progress)`, or None where nothing was saved yet.

        Raises:
          ValueError: there are checkpoints and none can be read, or the iterator is of another
            pipeline than the one saved, or there are more or fewer processes than then.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            restored, failure = self._try_to_read(step, shapes)
            if not _any_process(restored is None):
                state, progress, states = restored
                iterator.set_state((merge_states or _own_state)(states))
                return state, progress
            reason = failure or f"{self.step_directory(step)} cannot be read by another process"
            logging.warning("checkpoint %s", reason)
            if step == steps[-1]:
                raise ValueError(
                    f"no checkpoint in {self.directory} can be read (steps {steps[::-1]}); {reason}"
                ) from failure
            self._set_aside(step)
        return None

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster asked the processes of a multi-host run to stop at this step."""
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Returns when every save has been committed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the background threads."""
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
            **self._retention.manager_options(),
        )
        return ocp.CheckpointManager(self.directory, options=options)

    def _try_to_read(
        self, step: int, shapes: TrainState
    ) -> tuple[_Restored | None, UnreadableCheckpointError | None]:
        """What `_read` returns, or why it cannot."""
        try:
            with reading_checkpoint(self.step_directory(step)):
                return self._read(step, shapes), None
        except UnreadableCheckpointError as error:
            return None, error

    def _read(self, step: int, shapes: TrainState) -> _Restored:
        """State, progress and the iterators' states; reads all before anything is changed."""
        return _read_step(self._manager, self.step_directory(step), shapes)

    def _set_aside(self, step: int) -> None:
        """Moves a step out of the way: its name is needed when training reaches it again."""
        if jax.process_index() == 0:
            target = self.workdir / UNREADABLE
            target.mkdir(exist_ok=True)
            number = len(list(target.iterdir()))
            self.step_directory(step).rename(target / f"{step}.{number}")
        _any_process(False)  # wait until it is gone
        self._manager.reload()


def restore_branch(
    path: str | pathlib.Path,
    shapes: TrainState,
    iterator: grain.DatasetIterator,
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
      ValueError: the checkpoint cannot be read, or the data are others.
    """
    directory = find_checkpoint(path)
    options = ocp.CheckpointManagerOptions(read_only=True)
    manager = ocp.CheckpointManager(directory.parent, options=options)
    with manager, reading_checkpoint(directory):
        state, progress, states = _read_step(manager, directory, shapes)
    iterator.set_state((merge_states or _own_state)(states))
    return state, progress


def _read_step(
    manager: ocp.CheckpointManager, directory: pathlib.Path, shapes: TrainState
) -> _Restored:
    """Reads state, progress and the iterators' states of a step."""
    states = _read_iterator_states(directory / "data")
    optimizer = {"step": shapes.step, "opt_state": shapes.opt_state}
    restored = manager.restore(
        int(directory.name),
        args=ocp.args.Composite(
            params=ocp.args.StandardRestore(shapes.params),
            optimizer=ocp.args.StandardRestore(optimizer),
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
    """The states that the processes saved, in their order."""
    files = [path for path in directory.iterdir() if STATE_FILE.fullmatch(path.name)]
    counts = {int(STATE_FILE.fullmatch(path.name)[1]) for path in files}
    if counts != {len(files)}:
        raise FileNotFoundError(f"{directory}: states of {len(files)} of {counts} processes")
    names = [f"process_{index}-of-{len(files)}.json" for index in range(len(files))]
    return [json.loads((directory / name).read_text()) for name in names]


def _any_process(condition: bool) -> bool:
    """Whether it holds on any process; all of them ask."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.array(condition)).any())


def _own_state(states: Sequence[IteratorState]) -> IteratorState:
    """What this process saved."""
    if len(states) != jax.process_count():
        raise ValueError(
            f"the checkpoint was saved by {len(states)} processes; expected as many as there are, "
            f"{jax.process_count()}, where their iterators' states cannot be merged"
        )
    return states[jax.process_index()]
