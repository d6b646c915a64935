"""What an update changes: step, parameters and optimizer moments, created where they will live."""

from __future__ import annotations

import functools
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from lst_jax.batch import padding_rows
from lst_jax.config import ModelConfig
from lst_jax.model.models import abstract_params, build_model
from lst_jax.sharding import (
    DEFAULT_RULES,
    AnyMesh,
    LogicalRules,
    batch_mesh_size,
    check_heads,
    mesh_context,
    no_mesh,
    replicated,
    tree_shardings,
)

# Of the rows that parameters are initialized with; parameter shapes do not depend on it.
_INIT_LENGTH = 4


class TrainState(flax.struct.PyTreeNode):
    """State of a run after `step` updates.

    Attributes:
      step: int32 scalar, updates made.
      params: float32 parameter tree, without metadata boxes.
      opt_state: the optimizer's state over `params`.
    """

    step: Array
    params: Any
    opt_state: optax.OptState


def state_shardings(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: AnyMesh,
    rules: LogicalRules = DEFAULT_RULES,
) -> tuple[TrainState, TrainState]:
    """Returns shapes of a run's state, and where each array lives.

    Args:
      config: of the model.
      optimizer: whose state is part of it.
      mesh: the device mesh.
      rules: logical axis to mesh axes.

    Returns:
      `(shapes, shardings)`: trees of `jax.ShapeDtypeStruct` (each with its sharding) and of
      `NamedSharding`.
    """
    return _state_shardings(config, optimizer, mesh, tuple(rules))


@functools.lru_cache(maxsize=8)
def _state_shardings(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: AnyMesh,
    rules: LogicalRules,
) -> tuple[TrainState, TrainState]:
    params = abstract_params(config)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    with no_mesh():
        boxed = TrainState(cast(Any, step), params, jax.eval_shape(optimizer.init, params))
        return place_state(boxed, mesh, rules)


def param_shapes(config: ModelConfig, mesh: AnyMesh, rules: LogicalRules = DEFAULT_RULES) -> Any:
    """Returns the parameter tree as `jax.ShapeDtypeStruct`s with their shardings on `mesh`."""
    with no_mesh():
        return place_state(abstract_params(config), mesh, rules)[0]


def init_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules = DEFAULT_RULES,
) -> TrainState:
    """Returns a new state, every array made on the devices that will hold it.

    Args:
      config: of the model.
      optimizer: whose state is made.
      seed: of the parameters; the same values come out on every mesh.
      mesh: the device mesh.
      rules: logical axis to mesh axes.

    Returns:
      The state at step 0.

    Raises:
      ValueError: the mesh does not divide the model's axes or heads.
    """
    check_heads(config, mesh, rules)
    shardings = state_shardings(config, optimizer, mesh, rules)[1]
    model = build_model(config)
    batch = padding_rows(_INIT_LENGTH, _INIT_LENGTH, rows=(batch_mesh_size(mesh, rules),))

    def create(key: Array) -> TrainState:
        params = nn.unbox(model.init(key, batch)["params"])
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    with mesh_context(mesh, rules):
        return jax.jit(create, in_shardings=replicated(mesh), out_shardings=shardings)(
            jax.random.key(seed)
        )


def state_from_params(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    params: Any,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules = DEFAULT_RULES,
) -> TrainState:
    """Returns the state at step 0 of a run that starts from parameters (donated)."""
    check_heads(config, mesh, rules)
    shardings = state_shardings(config, optimizer, mesh, rules)[1]

    def create(params: Any) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    with mesh_context(mesh, rules):
        return jax.jit(
            create,
            in_shardings=(shardings.params,),
            out_shardings=shardings,
            donate_argnums=0,
        )(params)


def place_state(boxed: Any, mesh: AnyMesh, rules: LogicalRules) -> tuple[Any, Any]:
    """Returns the shapes of an abstract tree in Flax's boxes, and where each array lives."""
    shardings = tree_shardings(boxed, mesh, rules)
    shapes = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.unbox(boxed),
        shardings,
    )
    return shapes, shardings
