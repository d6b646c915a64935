"""What a training step keeps in the memory of each device, from shapes alone.

Parameters, gradients and the optimizer's state are exact: their shapes and shardings are the
trainer's. What the forward pass keeps for the backward pass is an estimate: it is what JAX's
differentiation keeps under the configuration's remat policy, before XLA fuses, and as if every
device held the whole width of its rows (the tensor axis is left out). The working set of one layer
is not in it. `experiments.aot_compile` has the compiler's own figures.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from experiments.common.step_config import StepConfig
from lst_jax.checkpoints.train_state import TrainState
from lst_jax.config import ModelConfig
from lst_jax.model.losses import token_nll
from lst_jax.model.models import build_model, hidden_states, output_kernel
from lst_jax.sharding import abstract_batch


def memory_per_device(config: StepConfig, shapes: TrainState, rows: int) -> dict[str, int]:
    """Returns bytes a device.

    Args:
      config: the step.
      shapes: of the state, `jax.ShapeDtypeStruct`s with their shardings.
      rows: of a microbatch on each device.

    Returns:
      `parameters`, `gradients`, `optimizer` and `activations_estimate`.
    """
    parameters = device_bytes(shapes.params)
    per_row = activation_bytes(config.model, shapes.params, config.num_tokens, config.num_patches)
    return {
        "parameters": parameters,
        "gradients": parameters,
        "optimizer": device_bytes(shapes.opt_state),
        "activations_estimate": rows * per_row,
    }


def device_bytes(shapes: Any) -> int:
    """Returns the bytes that each device holds of a tree of arrays with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )


def activation_bytes(config: ModelConfig, params: Any, num_tokens: int, num_patches: int) -> int:
    """Returns what the forward pass over one more row keeps for the backward pass.

    What is kept of two rows less what is kept of one: what does not grow with the rows, such as the
    parameters, is left out.
    """
    if config.attention == "auto":  # kernels keep the same: inputs, result and sums
        config = dataclasses.replace(config, attention="blocked")
    one, two = (_residual_bytes(config, params, rows, num_tokens, num_patches) for rows in (1, 2))
    return two - one


def _residual_bytes(
    config: ModelConfig, params: Any, rows: int, num_tokens: int, num_patches: int
) -> int:
    model = build_model(config)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    batch = abstract_batch(num_patches, num_tokens, rows)

    def residuals(params: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            hidden = hidden_states(model, params, batch)
            kernel = output_kernel(params)
            return token_nll(hidden, kernel, batch.targets, config.vocab_size).sum()

        return jax.vjp(loss, params)[1]  # a tree of what it keeps

    kept = jax.eval_shape(residuals, params, batch)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
