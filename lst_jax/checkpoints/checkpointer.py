"""Saves and restores the state of a run; Orbax copies it off the devices and writes it behind."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
    reading_checkpoint,
    step_directory,
)
from lst_jax.checkpoints.params import params_save_args
from lst_jax.checkpoints.train_state import TrainState

IteratorState = dict[str, Any]


MergeStates = Callable[[Sequence[IteratorState]], IteratorState]


_Restored = tuple[TrainState, dict[str, Any], list[IteratorState]]


class Checkpointer:
    """Saves and restores the state of one run under its workdir."""

    def __init__(self, workdir: str | pathlib.Path, keep: int = 2) -> None:
        """Opens (and makes) the workdir.

        Args:
          workdir: of the run.
          keep: number of latest checkpoints that stay.

        Raises:
          ValueError: `keep` is not positive.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1 checkpoint")
        self.workdir = pathlib.Path(workdir).absolute()
        self._keep = keep
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
    ) -> None:
        """Starts to save everything a restart needs; returns once the state is copied.

        Args:
          state: after `state.step` updates.
          iterator: that has yielded the batches of exactly these updates.
          progress: JSON values.
        """
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params, params_save_args(state.params)),
            optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
            data=grain.checkpoint.CheckpointSave(iterator),
            progress=ocp.args.JsonSave(dict(progress)),
        )
        self._manager.save(int(state.step), args=items)

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
            wants as many processes as then.

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
            max_to_keep=self._keep,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
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
        states = _read_iterator_states(self.step_directory(step) / "data")
        optimizer = {"step": shapes.step, "opt_state": shapes.opt_state}
        restored = self._manager.restore(
            step,
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

    def _set_aside(self, step: int) -> None:
        """Moves a step out of the way: its name is needed when training reaches it again."""
        if jax.process_index() == 0:
            target = self.workdir / UNREADABLE
            target.mkdir(exist_ok=True)
            number = len(list(target.iterdir()))
            self.step_directory(step).rename(target / f"{step}.{number}")
        _any_process(False)  # wait until it is gone
        self._manager.reload()


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
