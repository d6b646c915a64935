"""AdamW with the paper's learning rate (paper, "Optimization")."""

from __future__ import annotations

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from lst_jax.settings import (
    Bounds,
    Fraction,
    NaturalFloat,
    NaturalInt,
    PositiveFloat,
    configuration,
    require,
)

Decay = Annotated[float, Bounds(least=0, below=1)]

# Leaves that are gains or offsets and not matrices, whatever their rank (scanned layers stack
# vectors into matrices).
_VECTOR_NAMES = ("scale", "bias")


@configuration
class OptimizerConfig:
    """AdamW, linear warm-up, cosine decay; the defaults are the paper's.

    Attributes:
      peak_learning_rate: learning rate at the end of the warm-up.
      warmup_steps: steps of linear warm-up, fewer than the steps of the run.
      final_ratio: learning rate of the last step over the peak.
      beta1: decay of the gradient's mean.
      beta2: decay of the squared gradient's mean.
      epsilon: added to the root of the squared mean.
      weight_decay: decoupled, on matrices only.
      clip_norm: largest global norm of the gradient.
    """

    peak_learning_rate: PositiveFloat = 4e-4
    warmup_steps: NaturalInt = 2000
    final_ratio: Fraction = 0.01
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    epsilon: PositiveFloat = 1e-8
    weight_decay: NaturalFloat = 0.1
    clip_norm: PositiveFloat = 1.0


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The learning rate of every step: linear up to the peak, then half a cosine down.

    Args:
      config: the optimizer's settings.
      num_steps: steps of the whole run.

    Returns:
      A function of the number of updates made before (0, 1, …) to the learning rate. Step 0 has
      peak / warmup_steps, so that no step is lost; the last step has the final learning rate.

    Raises:
      ValueError: the warm-up is not shorter than the run.
    """
    require(
        config.warmup_steps < num_steps,
        "OptimizerConfig.warmup_steps",
        config.warmup_steps,
        f"fewer than num_steps = {num_steps}",
    )
    final = config.peak_learning_rate * config.final_ratio
    warmup = max(config.warmup_steps, 1)
    decay = max(num_steps - warmup, 1)

    def schedule(count: jax.Array | int) -> jax.Array:
        step = jnp.asarray(count, jnp.float32) + 1
        progress = jnp.clip((step - warmup) / decay, 0, 1)
        cosine = 0.5 * (1 + jnp.cos(math.pi * progress))
        decayed = final + (config.peak_learning_rate - final) * cosine
        return jnp.where(step < warmup, config.peak_learning_rate * step / warmup, decayed)

    return schedule


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, Adam, decay of the matrices, learning rate."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate_schedule(config, num_steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=is_matrix,
        ),
    )


def is_matrix(params: Any) -> Any:
    """Which parameters the weight decay acts on: all but norm scales and biases.

    Args:
      params: the parameter tree, with or without Flax's metadata boxes.

    Returns:
      The same tree with a bool for every leaf.
    """

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        names = {getattr(entry, "key", None) for entry in path}
        return names.isdisjoint(_VECTOR_NAMES)

    return jax.tree_util.tree_map_with_path(decayed, params)
