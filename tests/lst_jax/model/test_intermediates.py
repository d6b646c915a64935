"""States of the global transformer for inspection are those of the forward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lst_jax.model.intermediates import global_states, text_logits_of_states
from lst_jax.model.key_ranges import lst_key_ranges
from lst_jax.model.layers import Block
from lst_jax.model.models import build_model
from lst_jax.patching import PatchingConfig, patch_document
from tests.lst_jax.batches import VOCABULARY, random_document, stack_rows
from tests.lst_jax.inference.models import CASES, parameters
from tests.marks import quick


@functools.cache
def batch():
    rng = np.random.default_rng(3)
    return stack_rows([[random_document(rng, aligned=bool(i % 2)) for i in range(2)]], 64, 96)


@functools.cache
def run(config, case):
    """States and outputs, in one program."""
    model = build_model(config)

    @jax.jit
    def both(params, batch):
        return global_states(model, params, batch), model.apply({"params": params}, batch)

    return both(parameters(case), batch())


@pytest.mark.parametrize("case", quick(["lst", "deep"], "lst"))
def test_there_is_a_state_for_the_input_and_for_each_layer(case):
    config, params = CASES[case][0], parameters(case)
    model = build_model(config)
    states = jax.eval_shape(lambda batch: global_states(model, params, batch), batch())
    assert states.shape == (config.num_layers_global + 1, 1, 64, config.dim_global)
    read = jax.eval_shape(
        lambda x: text_logits_of_states(model, params, x[0, 0, :3], opening(3)), states
    )
    assert read.shape == (3, VOCABULARY.size)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lst", "deep", "last"])
def test_the_first_and_the_last_states_are_those_of_the_forward_pass(case):
    config, params = CASES[case][0], parameters(case)
    states, outputs = run(config, case)
    assert len(states) == config.num_layers_global + 1
    np.testing.assert_allclose(states[-1], outputs["patches"], rtol=1e-5, atol=1e-5)
    first = outputs["latents"].reshape(1, 64, -1)
    if "patch_projection" in params["global"]:
        first = first @ params["global"]["patch_projection"]["kernel"]
    np.testing.assert_allclose(states[0], first, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["deep", "last"])
def test_each_layer_makes_its_state_of_the_one_before(case):
    config = CASES[case][0]
    states, _ = run(config, case)
    layers = parameters(case)["global"]["transformer"]["layers"]["block"]
    ranges = lst_key_ranges(batch(), config).global_self
    apply = jax.jit(Block(config.num_heads_global, config, 0).apply)
    for depth in range(config.num_layers_global):
        layer = jax.tree.map(lambda leaf, depth=depth: leaf[depth], layers)
        after = apply({"params": layer}, states[depth], ranges)
        np.testing.assert_allclose(states[depth + 1], after, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_states_are_the_same_where_layers_are_computed_again():
    config = dataclasses.replace(CASES["lst"][0], remat="full")
    expected, _ = run(CASES["lst"][0], "lst")
    np.testing.assert_allclose(run(config, "lst")[0], expected, rtol=1e-5, atol=1e-5)


def opening(count):
    tokens = np.array([VOCABULARY.bos_id, VOCABULARY.text_mode_id], np.int32)
    return stack_rows(
        [[patch_document(tokens, PatchingConfig("static"), VOCABULARY)]] * count, 2, 2
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lst", "deep", "last"])
def test_the_lens_reads_each_state_alone_and_by_its_direction(case):
    config = CASES[case][0]
    model, params = build_model(config), parameters(case)
    read = jax.jit(lambda states: text_logits_of_states(model, params, states, opening(3)))
    states = np.random.default_rng(0).standard_normal((3, config.dim_global)).astype(np.float32)
    found = read(states)
    assert found.shape == (3, VOCABULARY.size)
    again = read(jnp.asarray(states[::-1]) * 2)  # memory is normalized before it is read
    np.testing.assert_allclose(again[::-1], found, rtol=1e-3, atol=1e-3)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_a_baseline_has_no_patches_to_look_at():
    model = build_model(CASES["baseline"][0])
    with pytest.raises(ValueError, match="expected one with patches"):
        global_states(model, {}, batch())
    with pytest.raises(ValueError, match="expected one with patches"):
        text_logits_of_states(model, {}, jnp.zeros((3, 32)), opening(3))
