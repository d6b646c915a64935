"""Training: one jitted, donated, sharded step, and the loop that feeds, watches and saves it."""

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
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from lst_jax.checkpoints import (
    Checkpointer,
    MergeStates,
    ModelDescription,
    check_description,
    restore_initial_params,
    write_description,
)
from lst_jax.config import ModelConfig
from lst_jax.flops import training_flops
from lst_jax.hardware import peak_rate
from lst_jax.losses import token_nll
from lst_jax.metrics import Progress, RateContext, Writer, open_writers
from lst_jax.models import build_model, count_parameters, output_kernel
from lst_jax.optimizers import OptimizerConfig, learning_rate_schedule, make_optimizer
from lst_jax.sharding import (
    DEFAULT_RULES,
    LogicalRules,
    MeshConfig,
    batch_sharding,
    check_rows,
    make_mesh,
    mesh_context,
    replicated,
    shard_batch,
)
from lst_jax.train_state import (
    TrainState,
    check_heads,
    init_state,
    state_from_params,
    state_shardings,
)

Batch = Mapping[str, Array]
Sums = dict[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Sums]]


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient is not a finite number; training cannot go on from here."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long and how a run trains.

    Attributes:
      num_steps: optimizer updates of the whole run.
      accumulation_steps: microbatches that each batch is computed in, to save memory.
      log_every: steps from one record of the metrics to the next; the first and the last step
        have records too.
      checkpoint_every: steps from one checkpoint to the next; the last step has one too.
      keep_checkpoints: latest checkpoints that stay.
      seed: of the parameters.
      initial_checkpoint: run (or a step of it) whose parameters this one starts from, in place of
        random ones; everything else starts anew.
    """

    num_steps: int
    accumulation_steps: int = 1
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    seed: int = 0
    initial_checkpoint: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("seed", "initial_checkpoint"):
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{field.name} is {value!r}, expected a positive integer")


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


def make_train_step(
    config: ModelConfig,
    optimizer_config: OptimizerConfig,
    training: TrainingConfig,
    first_unit_id: int,
    num_patches: int,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules = DEFAULT_RULES,
) -> TrainStep:
    """The jitted update; its state argument is donated. Call it inside `mesh_context`.

    The loss is the mean over all of the batch's targets (weighted by `loss_weights`), whatever
    the number of microbatches.

    Args:
      config: of the model.
      optimizer_config: of the optimizer.
      training: steps and accumulation.
      first_unit_id: targets from this id on are speech, those below are text.
      num_patches: P, patch slots of a row.
      mesh: the device mesh.
      rules: logical axis to mesh axes.

    Returns:
      `step(state, batch) -> (state, sums)`. `sums` holds scalars: `text_nll`, `speech_nll` (nats),
      `text_weight`, `speech_weight`, what `batch_sums` counts, `flops` of the model, and
      `gradient_norm` (before clipping) and `learning_rate`.
    """
    optimizer = make_optimizer(optimizer_config, training.num_steps)
    schedule = learning_rate_schedule(optimizer_config, training.num_steps)
    model = build_model(config)
    shardings = state_shardings(config, optimizer, mesh, rules)[1]
    num_micro = training.accumulation_steps

    def loss(params: Any, batch: Batch, weight: Array) -> tuple[Array, Sums]:
        """This microbatch's share of the batch's mean loss; `weight` is the whole batch's."""
        hidden = model.apply({"params": params}, batch, num_patches=num_patches)["hidden"]
        kernel = output_kernel(params)
        nll = token_nll(hidden, kernel, batch["targets"], config.vocab_size)
        nll = nll * batch["loss_weights"]
        speech = jnp.sum(jnp.where(batch["targets"] >= first_unit_id, nll, 0.0))
        text = jnp.sum(jnp.where(batch["targets"] < first_unit_id, nll, 0.0))
        return (text + speech) / weight, {"text_nll": text, "speech_nll": speech}

    def gradient(params: Any, batch: Batch, weight: Array) -> tuple[Any, Sums]:
        gradients, sums = jax.grad(loss, has_aux=True)(params, batch, weight)
        # Sums over microbatches keep the parameters' sharding.
        return jax.lax.with_sharding_constraint(gradients, shardings.params), sums

    def accumulated(params: Any, batch: Batch, weight: Array) -> tuple[Any, Sums]:
        if num_micro == 1:
            return gradient(params, batch, weight)

        def add(total: tuple[Any, Sums], micro: Batch) -> tuple[tuple[Any, Sums], None]:
            return jax.tree.map(jnp.add, total, gradient(params, micro, weight)), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        start = (zeros, {"text_nll": jnp.zeros(()), "speech_nll": jnp.zeros(())})
        return jax.lax.scan(add, start, _microbatches(batch, num_micro))[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        counts = batch_sums(batch, first_unit_id, num_patches)
        weight = counts["text_weight"] + counts["speech_weight"]
        weight = jnp.where(weight > 0, weight, 1.0)
        gradients, sums = accumulated(state.params, batch, weight)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        sums |= counts | {
            "flops": training_flops(config, batch, num_patches),
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": schedule(state.step),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), sums

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def batch_sums(batch: Batch, first_unit_id: int, num_patches: int) -> Sums:
    """What a batch holds.

    Args:
      batch: batch arrays, (B, N).
      first_unit_id: ids from this one on are speech units.
      num_patches: P, patch slots of a row.

    Returns:
      Scalars: `tokens`, `patches`, `speech_units`, `speech_patches` (patches that hold units),
      `speech_examples`, `aligned_examples`; `text_weight` and `speech_weight`, the loss weights of
      text and speech targets.
    """
    real = batch["document_ids"] > 0
    patches = batch["patch_ids"]
    same_patch = jnp.pad(patches[:, 1:] == patches[:, :-1], ((0, 0), (1, 0)))
    unit = real & (batch["tokens"] >= first_unit_id)
    after_unit = jnp.pad(unit[:, :-1], ((0, 0), (1, 0)))
    speech_target = batch["targets"] >= first_unit_id
    weights = batch["loss_weights"]
    return {
        "tokens": jnp.sum(real),
        "patches": jnp.sum(real & ~same_patch & (patches < num_patches)),
        "speech_units": jnp.sum(unit),
        "speech_patches": jnp.sum(unit & ~(same_patch & after_unit)),
        "speech_examples": jnp.sum(batch["speech_examples"]),
        "aligned_examples": jnp.sum(batch["aligned_examples"]),
        "text_weight": jnp.sum(jnp.where(speech_target, 0.0, weights)),
        "speech_weight": jnp.sum(jnp.where(speech_target, weights, 0.0)),
    }


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
        self._learnt = False  # whether any token of this start's batches has a loss
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
        self._learnt = self._learnt or host["text_weight"] + host["speech_weight"] > 0
        whole_window = step % training.log_every == 0 or step == training.num_steps
        if whole_window and not self._learnt:
            raise ValueError(
                f"no token of the batches up to step {step} is learnt, expected some: is a row of "
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


def _microbatches(batch: Batch, count: int) -> Batch:
    """Batch arrays (B, …) as (count, B / count, …); microbatch m has the rows b ≡ m mod count.

    Rows that are a device's own before are its own after, so nothing moves.
    """

    def split(array: Array) -> Array:
        return jnp.swapaxes(array.reshape(-1, count, *array.shape[1:]), 0, 1)

    return {name: split(array) for name, array in batch.items()}
