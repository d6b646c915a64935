"""Shapes and places of a run's state."""

import dataclasses

import jax
import pytest

from lst_jax.checkpoints import train_state
from lst_jax.model import models
from lst_jax.sharding import MeshConfig, make_mesh
from lst_jax.training.lst import make_lst_trainable
from lst_jax.training.optimizers import OptimizerConfig
from lst_jax.training.step import TrainingConfig
from tests.lst_jax.training.training_runs import DESCRIPTION, batches


@pytest.mark.slow
def test_a_run_traces_the_shapes_of_its_state_once():
    caches = models.abstract_params, train_state._state_shardings
    for cache in caches:
        cache.cache_clear()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    optimizer = OptimizerConfig(warmup_steps=1, beta1=0.875)
    trainable = make_lst_trainable(DESCRIPTION, optimizer, TrainingConfig(num_steps=3), mesh)
    state = trainable.start(batches(1)).state
    # For the loop, the step, the loss and the first state.
    assert [cache.cache_info().misses for cache in caches] == [1, 1]
    for array, shape in zip(*map(jax.tree.leaves, (state, trainable.shapes)), strict=True):
        assert (array.shape, array.dtype) == (shape.shape, shape.dtype)
        assert array.sharding.is_equivalent_to(shape.sharding, array.ndim)
    other = dataclasses.replace(DESCRIPTION.model, dim_global=64)
    description = dataclasses.replace(DESCRIPTION, model=other)
    make_lst_trainable(description, optimizer, TrainingConfig(num_steps=3), mesh)
    assert [cache.cache_info().misses for cache in caches] == [2, 2]
