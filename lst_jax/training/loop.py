"""Training: the loop that feeds the step, watches it and saves its state."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import grain
import jax
import numpy as np
from jax import Array

from lst_jax.checkpoints.checkpointer import Checkpointer, MergeStates
from lst_jax.checkpoints.description import ModelDescription, check_description, write_description
from lst_jax.checkpoints.params import restore_initial_params
from lst_jax.checkpoints.train_state import (
    TrainState,
    init_state,
    state_from_params,
    state_shardings,
)
from lst_jax.hardware import peak_rate
from lst_jax.model.models import count_parameters
from lst_jax.sharding import (
    DEFAULT_RULES,
    LogicalRules,
    MeshConfig,
    check_heads,
    check_rows,
    make_mesh,
    mesh_context,
    shard_batch,
)
from lst_jax.training.metrics import Progress, RateContext, Writer, open_writers
from lst_jax.training.optimizers import OptimizerConfig, learning_rate_schedule, make_optimizer
from lst_jax.training.step import Batch, Sums, TrainingConfig, TrainStep, make_train_step


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient is not a finite number; training cannot go on from here."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Where a call of `train` ended.

    Attributes:
      state: after the last update.
      progress: totals of the run.
      finished: whether all steps are done; false where a signal asked to stop.
    """

    state: TrainState
    progress: Progress
    finished: bool


def train(
    description: ModelDescription,
    optimizer_config: OptimizerConfig,
    training: TrainingConfig,
    iterator: grain.DatasetIterator,
    num_patches: int,
    workdir: str | pathlib.Path,
    mesh_config: MeshConfig | None = None,
    rules: LogicalRules = DEFAULT_RULES,
    merge_states: MergeStates | None = None,
    config_text: Callable[[], str] | None = None,
) -> TrainResult:
    """Trains a model to `training.num_steps`, from the workdir's last checkpoint if it has one.

    SIGTERM ends the run after the step that is under way, with a checkpoint.

    Args:
      description: model and vocabulary.
      optimizer_config: of the optimizer.
      training: length, accumulation, records, checkpoints, seed.
      iterator: of this process's rows of every batch (`sharding.row_share`), one batch a step, from
        step 0; restored with the checkpoint.
      num_patches: P, patch slots of a row.
      workdir: gets `model.json`, `config.gin`, `checkpoints/`, `metrics.jsonl` and TensorBoard's
        `events/`. What describes an earlier run there stays as it is if this one cannot go on.
      mesh_config: the device mesh; all devices on fsdp by default.
      rules: logical axis to mesh axes.
      merge_states: see `Checkpointer.restore`; with it a run may continue on another number of
        processes.
      config_text: gives the settings in use, for `config.gin`; called when everything is built.

    Returns:
      The last state and the run's totals.

    Raises:
      NonFiniteLossError: names the step and the last good checkpoint.
      ValueError: the workdir holds another model's run, the batch or the model does not divide
        among the devices, or the data ended early.
    """
    mesh = make_mesh(mesh_config)
    check_heads(description.model, mesh)
    # Before the workdir is touched: a warm-up that is longer than the run is an error.
    learning_rate_schedule(optimizer_config, training.num_steps)
    check_description(workdir, description)
    checkpointer = Checkpointer(workdir, training.keep_checkpoints)
    with StopSignal() as stop:  # until the last checkpoint is written
        try:
            run = _Run(
                description,
                optimizer_config,
                training,
                iterator,
                num_patches,
                mesh,
                rules,
                checkpointer,
                merge_states,
            )
            # Only now is it known that the run goes on.
            write_description(workdir, description)
            if config_text is not None and jax.process_index() == 0:
                (checkpointer.workdir / "config.gin").write_text(config_text())
            with mesh_context(mesh, rules):
                return run.run(stop)
        finally:
            checkpointer.close()


class StopSignal:
    """Remembers that SIGTERM came while the context was open, instead of dying of it.

    In a run of several processes JAX has a handler of its own, which tells all of them
    (`Checkpointer.reached_preemption`).
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> StopSignal:
        # Only the main thread may set handlers; elsewhere the process keeps the one it has.
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _request(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True


class _Run:
    """The loop of `train`: feeds the step, follows its sums one step behind, saves."""

    def __init__(
        self,
        description: ModelDescription,
        optimizer_config: OptimizerConfig,
        training: TrainingConfig,
        iterator: grain.DatasetIterator,
        num_patches: int,
        mesh: jax.sharding.Mesh,
        rules: LogicalRules,
        checkpointer: Checkpointer,
        merge_states: MergeStates | None,
    ) -> None:
        model = description.model
        optimizer = make_optimizer(optimizer_config, training.num_steps)
        self._training = training
        self._iterator = iterator
        self._num_patches = num_patches
        self._mesh = mesh
        self._checkpointer = checkpointer
        shapes = state_shardings(model, optimizer, mesh, rules)[0]
        restored = checkpointer.restore(shapes, iterator, merge_states)
        start = "from step 0"
        if restored is None and training.initial_checkpoint:
            params = restore_initial_params(training.initial_checkpoint, description, mesh, rules)
            self._state = state_from_params(model, optimizer, params, mesh, rules)
            self._progress = Progress()
            start += f" with the parameters of {training.initial_checkpoint}"
        elif restored is None:
            self._state = init_state(model, optimizer, training.seed, mesh, rules)
            self._progress = Progress()
        else:
            self._state, progress = restored
            self._progress = Progress(**progress)
            start = f"resumed at step {int(self._state.step)}"
        self._step = int(self._state.step)
        self._saved_step = self._step if restored else None
        self._learned = False  # whether any token of this start's batches has a loss
        self._train_step = make_train_step(
            model,
            optimizer_config,
            training,
            description.vocabulary.first_unit_id,
            num_patches,
            mesh,
            rules,
        )
        _report(
            f"{type(model).__name__} with {count_parameters(model):,} parameters, {start}; "
            f"mesh {dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}"
        )

    def run(self, stop: StopSignal) -> TrainResult:
        """Trains until the end or until `stop` is requested."""
        training = self._training
        if self._step < training.num_steps:
            workdir = self._checkpointer.workdir
            writers: tuple[Writer, ...] = ()
            if jax.process_index() == 0:
                writers = open_writers(workdir, self._step, training.num_steps)
            try:
                self._loop(stop, writers)
            finally:
                for writer in writers:
                    writer.close()
        finished = self._step >= training.num_steps
        return TrainResult(self._state, self._progress, finished)

    def _loop(self, stop: StopSignal, writers: tuple[Writer, ...]) -> None:
        training = self._training
        self._finished_at = time.perf_counter()
        batch = self._next_batch()
        context = self._rate_context(batch)
        check_rows(len(batch["tokens"]), self._mesh, training.accumulation_steps)
        step_function = self._compile(batch)
        pending: Sums | None = None
        while True:
            self._state, sums = step_function(self._state, batch)
            self._step += 1
            if pending is not None:  # fetched only now, so that the devices always have work
                self._follow(pending, self._step - 1, writers, context)
            pending = sums
            stopping = self._step >= training.num_steps or self._asked_to_stop(stop)
            if stopping or self._step % training.checkpoint_every == 0:
                self._follow(pending, self._step, writers, context)
                pending = None
                self._save()
            if stopping:
                return
            batch = self._next_batch()

    def _next_batch(self) -> dict[str, Array]:
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise ValueError(
                f"the data ended after {self._step} steps, expected {self._training.num_steps}"
            ) from None
        return shard_batch(batch, self._mesh)

    def _rate_context(self, batch: Batch) -> RateContext:
        rows, length = batch["tokens"].shape
        peak = peak_rate(self._mesh.local_devices[0])
        _report(f"peak {peak.flops_per_second:.3g} FLOP/s a device ({peak.source})")
        return RateContext(
            patch_slots=rows * self._num_patches,
            token_slots=rows * length,
            num_devices=self._mesh.size,
            peak=peak,
            num_steps=self._training.num_steps,
        )

    def _compile(self, batch: Batch) -> TrainStep:
        start = time.perf_counter()
        compiled = self._train_step.lower(self._state, batch).compile()
        _report(f"compiled the step in {time.perf_counter() - start:.1f} s")
        # Part of what the run takes, but of no step's time.
        self._progress.seconds += time.perf_counter() - self._finished_at
        self._finished_at = time.perf_counter()
        return compiled

    def _follow(
        self, sums: Sums, step: int, writers: tuple[Writer, ...], context: RateContext
    ) -> None:
        """Waits for the sums of `step`, checks and adds them, writes the record if it is due."""
        host: dict[str, np.ndarray] = jax.device_get(sums)
        now = time.perf_counter()
        seconds, self._finished_at = now - self._finished_at, now
        self._check_finite(host, step)
        self._progress.add(host, seconds)
        training = self._training
        self._learned = self._learned or host["text_weight"] + host["speech_weight"] > 0
        whole_window = step % training.log_every == 0 or step == training.num_steps
        if whole_window and not self._learned:
            raise ValueError(
                f"no token of the batches up to step {step} is learned, expected some: is a row of "
                f"{self._num_patches} patches shorter than a question with its answer?"
            )
        if step == 1 or whole_window:
            record = self._progress.take_record(step, context)
            for writer in writers:
                writer.write(record)

    def _check_finite(self, sums: Mapping[str, np.ndarray], step: int) -> None:
        for name in ("text_nll", "speech_nll", "gradient_norm"):
            if not math.isfinite(sums[name]):
                self._checkpointer.wait()
                last = self._checkpointer.latest_step()
                good = "there is no checkpoint before it"
                if last is not None:
                    good = f"the last good checkpoint is {self._checkpointer.step_directory(last)}"
                raise NonFiniteLossError(f"{name} is {sums[name]} at step {step}; {good}")

    def _asked_to_stop(self, stop: StopSignal) -> bool:
        if jax.process_count() > 1:  # all processes must stop at the same step
            return self._checkpointer.reached_preemption(self._step)
        return stop.requested

    def _save(self) -> None:
        if self._saved_step != self._step:
            progress = dataclasses.asdict(self._progress)
            self._checkpointer.save(self._state, self._iterator, progress)
            self._saved_step = self._step


def _report(message: str) -> None:
    if jax.process_index() == 0:
        print(message, flush=True)
