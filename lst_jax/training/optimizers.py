"""AdamW with the paper's learning rate (paper, "Optimization"), and other schedules by name.

Schedules are joined from optax's pieces. Warm-up and cosine keep formulas of ours: optax's differ
from them in the last bits of float32, and runs begun before would no longer be reproduced.
"""

from __future__ import annotations

import functools
import math
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from lst_jax.settings import (
    Bounds,
    Fraction,
    NaturalFloat,
    NaturalInt,
    PositiveFloat,
    PositiveInt,
    configuration,
    require,
)

Decay = Annotated[float, Bounds(least=0, below=1)]

# Leaves that are gains or offsets and not matrices, whatever their rank (scanned layers stack
# vectors into matrices).
_VECTOR_NAMES = ("scale", "bias")
ScheduleName = Literal["cosine", "constant", "wsd"]


@configuration
class OptimizerConfig:
    """AdamW, linear warm-up, cosine decay; the defaults are the paper's.

    Attributes:
      schedule: what follows the warm-up: "cosine", half a cosine down to the last step;
        "constant", the peak; "wsd" (warm-up, stable, decay), the peak and then a straight line down
        over the last `decay_steps`.
      peak_learning_rate: learning rate at the end of the warm-up.
      warmup_steps: steps of linear warm-up, fewer than the steps of the run.
      decay_steps: steps of the decay of "wsd". A run that starts with the whole state
        (`TrainingConfig.initial_state`) of step S of another, and has S + `decay_steps` steps, is
        the decay from there: to the bit where the other's schedule is "wsd", too ("constant" is
        another program, which rounds differently).
      final_ratio: learning rate of the last step over the peak, where there is a decay.
      beta1: decay of the gradient's mean.
      beta2: decay of the squared gradient's mean.
      epsilon: added to the root of the squared mean.
      weight_decay: decoupled, on matrices only.
      clip_norm: largest global norm of the gradient.
    """

    schedule: ScheduleName = "cosine"
    peak_learning_rate: PositiveFloat = 4e-4
    warmup_steps: NaturalInt = 2000
    decay_steps: PositiveInt | None = None
    final_ratio: Fraction = 0.01
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    epsilon: PositiveFloat = 1e-8
    weight_decay: NaturalFloat = 0.1
    clip_norm: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        require(
            self.schedule != "wsd" or self.decay_steps is not None,
            "OptimizerConfig.decay_steps",
            self.decay_steps,
            "1 or more steps for schedule wsd",
        )


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate of every step: linear up to the peak, then the named schedule.

    Args:
      config: the optimizer's settings.
      num_steps: steps of the whole run.

    Returns:
      A function of the number of updates made before (0, 1, …) to the learning rate. Step 0 has
      peak / warmup_steps, so that no step is lost; the last step of a decay has the final learning
      rate.

    Raises:
      ValueError: warm-up and decay do not fit into the run.
    """
    require(
        config.warmup_steps < num_steps,
        "OptimizerConfig.warmup_steps",
        config.warmup_steps,
        f"fewer than num_steps = {num_steps}",
    )
    peak, final = config.peak_learning_rate, config.peak_learning_rate * config.final_ratio
    warmup = max(config.warmup_steps, 1)
    # `warmup - 1` updates are below the peak: the last of the warm-up is the first at it.
    pieces, boundaries = [_warmup(peak, warmup)], [warmup - 1]
    if config.schedule == "cosine":
        pieces.append(_cosine(peak, final, max(num_steps - warmup, 1)))
    else:
        pieces.append(optax.constant_schedule(peak))
    if config.schedule == "wsd":
        assert config.decay_steps is not None  # a check of the configuration's
        decay_begin = num_steps - config.decay_steps
        if decay_begin < config.warmup_steps:
            raise ValueError(
                f"OptimizerConfig.decay_steps is {config.decay_steps}, expected at most "
                f"{num_steps} - {config.warmup_steps}, the steps without the warm-up"
            )
        # Its value at its begin is the peak of the step before.
        pieces.append(optax.linear_schedule(peak, final, config.decay_steps))
        boundaries.append(decay_begin - 1)
    joined = optax.join_schedules(pieces, boundaries)
    return lambda count: joined(jnp.asarray(count, jnp.float32))


def _warmup(peak: float, steps: int) -> optax.Schedule:
    """Returns the straight line from peak / steps at update 0 to the peak."""
    return lambda count: peak * (count + 1) / steps


def _cosine(peak: float, final: float, steps: int) -> optax.Schedule:
    """Returns half a cosine from the peak at update 0 to `final` at update `steps`."""

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        cosine = 0.5 * (1 + jnp.cos(math.pi * jnp.clip(jnp.asarray(count) / steps, 0, 1)))
        return final + (peak - final) * cosine

    return schedule


@functools.lru_cache(maxsize=8)  # what depends on one, such as its state's shapes, is cached, too
def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """Returns clipping by global norm, Adam, decay of the matrices, learning rate."""
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
    """Returns which parameters the weight decay acts on: all but norm scales and biases.

    Args:
      params: the parameter tree, with or without Flax's metadata boxes.

    Returns:
      The same tree with a bool for every leaf.
    """

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        names = {getattr(entry, "key", None) for entry in path}
        return names.isdisjoint(_VECTOR_NAMES)

    return jax.tree_util.tree_map_with_path(decayed, params)
