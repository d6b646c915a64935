"""Rules decide where everything lies: other names and groups of mesh axes give the same values."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lst_jax.checkpoints.train_state import init_state
from lst_jax.config import baseline_of
from lst_jax.inference.generation import GenerationLimits, generate
from lst_jax.inference.scoring import Continuation, ScoringShape, score_continuations
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.model.attention import attend
from lst_jax.model.key_ranges import KeyRange
from lst_jax.model.losses import token_nll
from lst_jax.model.models import build_model
from lst_jax.patching import PatchingConfig
from lst_jax.sharding import (
    DEFAULT_RULES,
    RowShare,
    check_heads,
    check_rows,
    make_mesh,
    mesh_context,
    row_share,
    shard_batch,
)
from lst_jax.training.optimizers import OptimizerConfig, make_optimizer
from lst_jax.training.step import TrainingConfig, make_loss, make_train_step
from tests.lst_jax.batches import VOCABULARY
from tests.lst_jax.training.training_runs import TINY, random_batch
from tests.marks import quick

LST = dataclasses.replace(TINY, num_heads_local=4, num_heads_global=4)
OPTIMIZER = OptimizerConfig(peak_learning_rate=1e-2, warmup_steps=1)
TRAINING = TrainingConfig(num_steps=3)
FIRST_UNIT = VOCABULARY.first_unit_id


def rules(**changes):
    """The default rules with other mesh axes for some names."""
    return tuple((name, changes.get(name, axes)) for name, axes in DEFAULT_RULES)


RENAMED = {
    "batch": ("replica", "shard"),
    "embed": "shard",
    **dict.fromkeys(("vocab", "heads", "hidden"), "model"),
}
# Name: axes of the mesh, rules, where rows, heads and the loss's columns of the vocabulary lie.
CASES = {
    "renamed": (("replica", "shard", "model"), rules(**RENAMED), RENAMED["batch"], "model"),
    "rows everywhere": (
        ("data", "fsdp", "tensor"),
        rules(batch=("data", "fsdp", "tensor"), embed=("fsdp", "tensor"), hidden=None),
        ("data", "fsdp", "tensor"),
        None,
    ),
    "rows on one axis, heads on two": (
        ("data", "fsdp", "tensor"),
        rules(
            batch="data",
            embed=None,
            heads=("fsdp", "tensor"),
            hidden="tensor",
            vocab=("fsdp", "tensor"),
        ),
        "data",
        ("fsdp", "tensor"),
    ),
    "nothing but rows": (
        ("a", "b", "c"),
        tuple((name, ("c", "a") if name == "batch" else None) for name, _ in DEFAULT_RULES),
        ("c", "a"),
        None,
    ),
}


def mesh_of(case):
    axes = CASES[case][0]
    return jax.make_mesh((2, 2, 2), axes, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def one_step(config, mesh, mesh_rules):
    """State and sums after a step, and the loss of that state."""
    optimizer = make_optimizer(OPTIMIZER, TRAINING.num_steps)
    state = init_state(config, optimizer, 0, mesh, mesh_rules)
    step = make_train_step(config, OPTIMIZER, TRAINING, FIRST_UNIT, mesh, mesh_rules)
    loss = make_loss(config, 2, FIRST_UNIT, mesh, mesh_rules)
    batch = random_batch(0)
    if config is not LST:
        batch = dataclasses.replace(batch, num_patches=batch.tokens.shape[1])
    with mesh_context(mesh, mesh_rules):
        batch = shard_batch(batch, mesh, mesh_rules)
        state, sums = step(state, batch)
        return jax.device_get((state, sums, loss(state.params, batch)))


@functools.cache
def plain_step(name):
    return one_step(MODELS[name], make_mesh(devices=jax.devices()[:1]), DEFAULT_RULES)


MODELS = {"lst": LST, "baseline": baseline_of(LST)}


@pytest.mark.parametrize("name", quick(MODELS, "baseline"))
@pytest.mark.parametrize("case", quick(CASES, "renamed"))
def test_a_training_step_has_the_same_values(case, name):
    state, sums, loss = one_step(MODELS[name], mesh_of(case), CASES[case][1])
    expected_state, expected_sums, expected_loss = plain_step(name)
    for found, expected in ((sums, expected_sums), (loss, expected_loss)):
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-4, err_msg=key)
    # Adam's first update is a sign, so compare the mean of the gradients instead of parameters.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-7),
        state.opt_state[1][0].mu,
        expected_state.opt_state[1][0].mu,
    )


@pytest.mark.parametrize("case", CASES)
def test_attention_and_loss_lie_where_the_rules_say(case):
    _, case_rules, rows, columns = CASES[case]
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 8, 6, 4, 2), np.float32)
    key_range = KeyRange(np.zeros((8, 6), np.int32), np.tile(np.arange(1, 7, dtype=np.int32), 8))
    key_range = KeyRange(key_range.start, key_range.end.reshape(8, 6))
    kernel = rng.standard_normal((3, 8), np.float32)
    with mesh_context(mesh_of(case), case_rules):
        # Another function for each case: JAX knows nothing of rules where it keeps traces.
        out = jax.jit(lambda *arrays: attend(*arrays))(q, k, v, key_range)
        assert out.sharding.is_equivalent_to(
            jax.NamedSharding(mesh_of(case), PartitionSpec(rows, None, columns)), out.ndim
        )
        gradient = jax.jit(jax.grad(lambda w, h, t: token_nll(h, w, t, 7).sum()))
        targets = np.zeros((8, 6), np.int32)
        d_kernel = gradient(kernel, rng.standard_normal((8, 6, 3), np.float32), targets)
        assert d_kernel.sharding.is_equivalent_to(
            jax.NamedSharding(mesh_of(case), PartitionSpec(None, columns)), 2
        )


@functools.cache
def trained_model(case):
    """A model with the same parameters on the mesh of a case, or on one device."""
    mesh = make_mesh(devices=jax.devices()[:1]) if case is None else mesh_of(case)
    case_rules = DEFAULT_RULES if case is None else CASES[case][1]
    optimizer = make_optimizer(OPTIMIZER, TRAINING.num_steps)
    params = init_state(LST, optimizer, 0, mesh, case_rules).params
    arguments = build_model(LST), params, mesh, VOCABULARY, PatchingConfig("static", 3)
    return TrainedModel(*arguments, rules=case_rules)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_inference_has_the_same_values(case):
    speech = [VOCABULARY.bos_id, VOCABULARY.speech_mode_id, *VOCABULARY.units_to_ids(np.arange(7))]
    prompts = [np.array(speech[: 3 + i], np.int32) for i in range(6)]
    endings = [Continuation(prompt, np.array([5, 6, 7], np.int32)) for prompt in prompts]
    shape = ScoringShape(batch_rows=8, patches_per_row=16)
    found, expected = (
        (
            score_continuations(trained, endings, shape=shape),
            generate(trained, prompts, limits=GenerationLimits(8), batch_rows=8),
        )
        for trained in map(trained_model, (case, None))
    )
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)


@pytest.mark.parametrize("case", CASES)
def test_checks_count_the_devices_of_the_rules(case):
    _, case_rules, rows, columns = CASES[case]
    parts = 2 ** len(rows) if isinstance(rows, tuple) else 2
    mesh = mesh_of(case)
    check_rows(parts, mesh, rules=case_rules)
    with pytest.raises(ValueError, match=f"expected a multiple of {2 * parts} = 2 "):
        check_rows(parts, mesh, 2, case_rules)
    assert row_share(mesh, case_rules) == RowShare(0, 1)
    odd = dataclasses.replace(LST, dim_global=48, num_heads_global=3)
    if columns is None:
        return check_heads(odd, mesh, case_rules)
    with pytest.raises(ValueError, match="num_heads_global is 3, expected a multiple of the"):
        check_heads(odd, mesh, case_rules)
