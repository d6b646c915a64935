"""The training step: one jitted, donated, sharded update, and what it needs to know.

Nothing here reads data or writes checkpoints, so it can be compiled and timed where neither Grain
nor Orbax is installed.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from lst_jax.batch import Batch
from lst_jax.checkpoints.train_state import TrainState, param_shapes, state_shardings
from lst_jax.config import LSTConfig, ModelConfig
from lst_jax.hardware import check_memory
from lst_jax.local_paths import PathText
from lst_jax.model.flops import training_flops
from lst_jax.model.losses import token_nll
from lst_jax.model.models import build_model, hidden_states, output_kernel
from lst_jax.settings import PositiveInt, Seed32, configuration, require
from lst_jax.sharding import (
    DEFAULT_RULES,
    LogicalRules,
    batch_sharding,
    mesh_axes,
    replicated,
)
from lst_jax.training.hooks import LossSums, Sums, TrainStep
from lst_jax.training.optimizers import OptimizerConfig, learning_rate_schedule, make_optimizer


@configuration
class TrainingConfig:
    """How long and how a run trains.

    Attributes:
      num_steps: optimizer updates of the whole run.
      accumulation_steps: microbatches that each batch is computed in, to save memory.
      log_every: steps from one record of the metrics to the next; the first and the last step
        have records too.
      checkpoint_every: steps from one checkpoint to the next; the last step has one too.
      keep_checkpoints: latest checkpoints that stay.
      keep_every: checkpoints of multiples of so many steps stay for good, a multiple of
        `checkpoint_every`; None: none does.
      keep_best: best checkpoints that stay, where `best_metric` is named.
      best_metric: name of an evaluator's metric that checkpoints are compared by.
      best_mode: whether the lowest ("min") or the highest ("max") value is the best.
      seed: of the parameters.
      initial_checkpoint: run (or a step of it) that this one starts from, in place of random
        parameters.
      initial_state: what it takes from there. "params": the parameters, and everything else starts
        from zero. "all": the optimizer's state, the step and the place in the data, too, so that
        this run branches off from that one there.
    """

    num_steps: PositiveInt
    accumulation_steps: PositiveInt = 1
    log_every: PositiveInt = 50
    checkpoint_every: PositiveInt = 1000
    keep_checkpoints: PositiveInt = 2
    keep_every: PositiveInt | None = None
    keep_best: PositiveInt = 1
    best_metric: str | None = None
    best_mode: Literal["min", "max"] = "min"
    seed: Seed32 = 0
    initial_checkpoint: PathText | None = None
    initial_state: Literal["params", "all"] = "params"

    def __post_init__(self) -> None:
        require(
            self.keep_every is None or self.keep_every % self.checkpoint_every == 0,
            "TrainingConfig.keep_every",
            self.keep_every,
            f"a multiple of checkpoint_every = {self.checkpoint_every}",
        )


def check_rows_fit(
    config: ModelConfig,
    rows: int,
    num_patches: int,
    num_tokens: int,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules = DEFAULT_RULES,
) -> None:
    """Checks that the hidden states that layers begin with can be on the devices at all.

    The backward pass needs these whatever `remat` is, so that a step takes more memory than this.
    Filling rows of any length takes minutes, before XLA would refuse them.

    Args:
      config: of the model.
      rows: of a microbatch on all devices.
      num_patches: P, patch slots of a row.
      num_tokens: N, token slots of a row.
      mesh: the device mesh.
      rules: logical axis to mesh axes.

    Raises:
      ValueError: they are larger than a device's memory.
    """
    kept = [(config.num_layers_global, rows, num_patches, config.dim_global)]
    if isinstance(config, LSTConfig):
        kept.append((config.num_layers_decoder, rows, num_tokens, config.dim_local))
    axes = mesh_axes(rules, "layers", "batch", "length", "embed_activation")
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    shapes = [jax.ShapeDtypeStruct(shape, config.dtype, sharding=sharding) for shape in kept]
    what = f"hidden states of {rows} rows of {num_patches} patches and {num_tokens} tokens"
    check_memory(shapes, mesh, what)


def make_train_step(
    config: ModelConfig,
    optimizer_config: OptimizerConfig,
    training: TrainingConfig,
    first_unit_id: int,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules = DEFAULT_RULES,
) -> TrainStep:
    """Returns the jitted update; its state argument is donated. Call it inside `mesh_context`.

    The loss is the mean over all of the batch's targets (weighted by `loss_weights`), whatever
    the number of microbatches.

    Args:
      config: of the model.
      optimizer_config: of the optimizer.
      training: steps and accumulation.
      first_unit_id: targets from this id on are speech, those below are text.
      mesh: the device mesh.
      rules: logical axis to mesh axes.

    Returns:
      `step(state, batch) -> (state, sums)`. `sums` holds scalars: `text_nll`, `speech_nll` (nats),
      `text_weight`, `speech_weight`, what `batch_sums` counts, `flops` of the model, and
      `gradient_norm` (before clipping) and `learning_rate`.
    """
    optimizer = make_optimizer(optimizer_config, training.num_steps)
    schedule = learning_rate_schedule(optimizer_config, training.num_steps)
    shardings = state_shardings(config, optimizer, mesh, rules)[1]
    num_micro = training.accumulation_steps
    nll_sums = _nll_sums_function(config, first_unit_id)

    def loss(params: Any, batch: Batch, weight: Array) -> tuple[Array, Sums]:
        """Returns this microbatch's share of the mean loss; `weight` is the whole batch's."""
        sums = nll_sums(params, batch)
        return (sums["text_nll"] + sums["speech_nll"]) / weight, sums

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
        counts = batch_sums(batch, first_unit_id)
        weight = counts["text_weight"] + counts["speech_weight"]
        weight = jnp.where(weight > 0, weight, 1.0)
        gradients, sums = accumulated(state.params, batch, weight)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        sums |= counts | {
            "flops": training_flops(config, batch),
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": schedule(state.step),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), sums

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh, rules)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


@functools.lru_cache(maxsize=8)  # the loop and the evaluators share one, compiled once
def make_loss(
    config: ModelConfig,
    num_micro: int,
    first_unit_id: int,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules = DEFAULT_RULES,
) -> LossSums:
    """Returns the jitted loss without an update.

    Args:
      config: of the model.
      num_micro: microbatches that each batch is computed in, to save memory.
      first_unit_id: targets from this id on are speech, those below are text.
      mesh: the device mesh; the function is called inside `mesh_context`.
      rules: logical axis to mesh axes.

    Returns:
      `loss(params, batch) -> sums` with the scalars `text_nll`, `speech_nll` (nats), `text_weight`
      and `speech_weight`.
    """
    nll_sums = _nll_sums_function(config, first_unit_id)

    def loss(params: Any, batch: Batch) -> Sums:
        if num_micro == 1:
            sums = nll_sums(params, batch)
        else:
            parts = _microbatches(batch, num_micro)
            sums = jax.tree.map(jnp.sum, jax.lax.map(lambda part: nll_sums(params, part), parts))
        counts = batch_sums(batch, first_unit_id)
        return sums | {name: counts[name] for name in ("text_weight", "speech_weight")}

    return jax.jit(
        loss,
        in_shardings=(
            jax.tree.map(lambda leaf: leaf.sharding, param_shapes(config, mesh, rules)),
            batch_sharding(mesh, rules),
        ),
        out_shardings=replicated(mesh),
    )


def _nll_sums_function(config: ModelConfig, first_unit_id: int) -> LossSums:
    """Returns `(params, batch) -> {text_nll, speech_nll}`, sums of weighted nats."""
    model = build_model(config)

    def nll_sums(params: Any, batch: Batch) -> Sums:
        hidden = hidden_states(model, params, batch)
        with jax.named_scope("loss"):
            kernel = output_kernel(params)
            nll = token_nll(hidden, kernel, batch.targets, config.vocab_size)
            nll = nll * batch.loss_weights
            speech = jnp.sum(jnp.where(batch.targets >= first_unit_id, nll, 0.0))
            text = jnp.sum(jnp.where(batch.targets < first_unit_id, nll, 0.0))
        return {"text_nll": text, "speech_nll": speech}

    return nll_sums


def batch_sums(batch: Batch, first_unit_id: int) -> Sums:
    """Returns what a batch holds.

    Args:
      batch: of B rows.
      first_unit_id: ids from this one on are speech units.

    Returns:
      Scalars: `tokens`, `patches`, `speech_units`, `speech_patches` (patches that hold units),
      `speech_examples`, `aligned_examples`; `text_weight` and `speech_weight`, the loss weights of
      text and speech targets.
    """
    real = batch.document_ids > 0
    patches = batch.patch_ids
    same_patch = jnp.pad(patches[:, 1:] == patches[:, :-1], ((0, 0), (1, 0)))
    unit = real & (batch.tokens >= first_unit_id)
    after_unit = jnp.pad(unit[:, :-1], ((0, 0), (1, 0)))
    speech_target = batch.targets >= first_unit_id
    weights = batch.loss_weights
    return {
        "tokens": jnp.sum(real),
        "patches": jnp.sum(real & ~same_patch & (patches < batch.num_patches)),
        "speech_units": jnp.sum(unit),
        "speech_patches": jnp.sum(unit & ~(same_patch & after_unit)),
        "speech_examples": jnp.sum(batch.speech_examples),
        "aligned_examples": jnp.sum(batch.aligned_examples),
        "text_weight": jnp.sum(jnp.where(speech_target, 0.0, weights)),
        "speech_weight": jnp.sum(jnp.where(speech_target, weights, 0.0)),
    }


def _microbatches(batch: Batch, count: int) -> Batch:
    """Splits arrays (B, …) into (count, B / count, …); microbatch m has rows b ≡ m mod count.

    Rows that are a device's own before are its own after, so nothing moves.
    """

    def split(array: Array) -> Array:
        return jnp.swapaxes(array.reshape(-1, count, *array.shape[1:]), 0, 1)

    return jax.tree.map(split, batch)
