"""What a step reports is what it says."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from lst_jax.checkpoints.train_state import TrainState
from lst_jax.config import baseline_of
from lst_jax.model.flops import training_flops
from lst_jax.model.models import abstract_params, build_model
from lst_jax.patching import PatchingConfig, patch_document
from lst_jax.sharding import make_mesh, mesh_context, shard_batch
from lst_jax.training.held_out import HeldOutLoss, target_amounts
from lst_jax.training.optimizers import OptimizerConfig, learning_rate_schedule, make_optimizer
from lst_jax.training.step import (
    TrainingConfig,
    batch_sums,
    check_rows_fit,
    make_loss,
    make_train_step,
)
from tests.lst_jax.batches import VOCABULARY as V
from tests.lst_jax.batches import aligned_lengths, random_tokens, stack_rows
from tests.lst_jax.training.training_runs import TINY

FIRST_UNIT = V.first_unit_id
SMALL = baseline_of(TINY)


def sums_of(rows, num_patches=40, num_tokens=64):
    batch = stack_rows(rows, num_patches, num_tokens)
    return {name: int(x) for name, x in batch_sums(batch, FIRST_UNIT).items()}


@pytest.mark.parametrize(
    ("units", "join", "patches", "speech_patches"),
    [
        # bos, `<s>`, units by fours, `<t>`, a piece, eos; `<s>` joins the first patch or does not.
        (1, False, 1 + 1 + 1 + 3, 1),
        (1, True, 1 + 1 + 3, 1),
        (3, False, 1 + 1 + 1 + 3, 1),
        (3, True, 1 + 1 + 3, 1),
        (4, False, 1 + 1 + 1 + 3, 1),
        (4, True, 1 + 2 + 3, 2),
        (5, False, 1 + 1 + 2 + 3, 2),
        (7, True, 1 + 2 + 3, 2),
        (8, True, 1 + 3 + 3, 3),
        (0, False, 1 + 1 + 3, 0),
        (0, True, 1 + 1 + 3, 0),
    ],
)
def test_patches_that_hold_units_are_counted_once(units, join, patches, speech_patches):
    run = [V.speech_mode_id, *(FIRST_UNIT + np.arange(units) % 3)]
    tokens = np.array([V.bos_id, *run, V.text_mode_id, 7, V.eos_id], np.int32)
    config = PatchingConfig("static", 4, join_speech_mode=join)
    document = patch_document(tokens, config, V)
    sums = sums_of([[document, document], [], [document]])
    assert sums["tokens"] == 3 * len(tokens) and sums["speech_units"] == 3 * units
    assert sums["patches"] == 3 * patches
    assert sums["speech_patches"] == 3 * speech_patches
    assert sums["speech_examples"] == 3 * (units > 0) and sums["aligned_examples"] == 0
    # Everything but bos is predicted: the units, and the rest as text.
    assert sums["speech_weight"] == 3 * units
    assert sums["text_weight"] == 3 * (len(tokens) - 1 - units)


def test_losses_of_text_and_speech_count_their_own_targets_alone():
    """Without a target of a kind its loss is zero."""
    mesh = make_mesh(devices=jax.devices()[:1])
    loss = make_loss(SMALL, 1, FIRST_UNIT, mesh)
    params = jax.tree.map(
        lambda leaf: np.full(leaf.shape, 0.01, np.float32), nn.unbox(abstract_params(SMALL))
    )
    # A uniform distribution over the ids, whatever stands before.
    params["output_kernel"][:] = 0
    nats = np.log(SMALL.vocab_size)
    units, pieces = [FIRST_UNIT] * 4, [5] * 7
    for made, text, speech in ((units, 1, 4), (pieces, 8, 0), ([*units, *pieces], 8, 4)):
        tokens = np.array([V.bos_id, *made, V.eos_id])
        document = patch_document(tokens, PatchingConfig("none"), V)
        batch = stack_rows([[document], [document, document]], 30, 30)
        with mesh_context(mesh):
            sums = jax.device_get(loss(params, shard_batch(batch, mesh)))
        assert (sums["text_weight"], sums["speech_weight"]) == (3 * text, 3 * speech)
        assert sums["text_nll"] == pytest.approx(3 * text * nats, rel=1e-5)
        assert sums["speech_nll"] == pytest.approx(3 * speech * nats, rel=1e-5)


def test_held_out_losses_are_means_over_all_targets_in_double_precision():
    """Of a token a loss of 1 is lost beside 2^24 in float32; without a target there is none."""
    sums = [
        {"text_nll": 2.0**24, "text_weight": 5.0, "speech_nll": 0.0, "speech_weight": 0.0},
        {"text_nll": 1.0, "text_weight": 3.0, "speech_nll": 0.0, "speech_weight": 0.0},
        {"text_nll": 2.0, "text_weight": 1.0, "speech_nll": 9.0, "speech_weight": 4.0},
    ]
    first, second, third = ({"row": np.array([i])} for i in range(3))
    batches = {"static": [first, second], "aligned": [third]}
    mesh = make_mesh(devices=jax.devices()[:1])

    def loss(params, batch):
        return {name: np.float32(x) for name, x in sums[params + int(batch["row"][0])].items()}

    found = HeldOutLoss(loss, batches, mesh, every=3)
    assert found.every == 3
    losses = found.evaluate(0)
    assert tuple(losses) == found.names
    expected = {"static/loss": (2**24 + 1) / 8, "static/loss_text": (2**24 + 1) / 8}
    expected |= {"static/loss_speech": np.nan, "aligned/loss": 11 / 5}
    expected |= {"aligned/loss_text": 2, "aligned/loss_speech": 9 / 4}
    np.testing.assert_equal(losses, {f"held_out/{name}": x for name, x in expected.items()})


def test_losses_by_bytes_and_seconds_count_what_targets_stand_for():
    """Of a uniform model: every target costs the same, whatever it stands for."""
    sizes = np.concatenate([np.arange(FIRST_UNIT), np.full(V.unit_count, 1.5)])
    document = patch_document(
        np.array([V.bos_id, 7, 9, *[FIRST_UNIT] * 5, V.eos_id]), PatchingConfig("none"), V
    )
    batch = stack_rows([[document], [document, document]], 30, 30)
    amounts = functools.partial(
        target_amounts, token_sizes=sizes, first_unit_id=FIRST_UNIT, unit_rate=2.5
    )
    np.testing.assert_allclose(amounts(batch), [3 * (7 + 9 + V.eos_id), 3 * 5 * 1.5 / 2.5])
    sums = {"text_nll": 36.0, "text_weight": 9.0, "speech_nll": 60.0, "speech_weight": 15.0}
    mesh = make_mesh(devices=jax.devices()[:1])
    found = HeldOutLoss(lambda *_: sums, {"none": [batch, batch]}, mesh, 1, amounts).evaluate(0)
    assert found["held_out/none/nats_per_second"] == pytest.approx(60 / 9)
    expected = 36 / np.log(2) / (3 * (16 + V.eos_id))
    assert found["held_out/none/bits_per_byte"] == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.booleans(), st.booleans())
def test_sums_are_those_of_the_documents(seed, patch_size, join, aligned):
    rng = np.random.default_rng(seed)
    name = "aligned" if aligned else "static"
    config = PatchingConfig(name, patch_size, join_speech_mode=join)
    documents = []
    for _ in range(rng.integers(1, 4)):
        tokens = random_tokens(rng, longest=5)
        documents.append(patch_document(tokens, config, V, aligned_lengths(rng, tokens, aligned)))
    expected = dict.fromkeys(("tokens", "patches", "speech_units", "speech_patches"), 0)
    for document in documents:
        patches = np.split(V.is_unit(document.tokens), np.cumsum(document.patch_lengths)[:-1])
        expected["tokens"] += len(document.tokens)
        expected["patches"] += len(patches)
        expected["speech_units"] += sum(int(units.sum()) for units in patches)
        expected["speech_patches"] += sum(bool(units.any()) for units in patches)
    expected["speech_examples"] = sum(document.speech for document in documents)
    expected["aligned_examples"] = sum(document.aligned for document in documents)
    for rows in ([documents], [[document] for document in documents]):
        sums = sums_of(rows, 110, 120)
        assert {name: sums[name] for name in expected} == expected


def test_numbers_of_an_update_are_those_of_the_update():
    """Losses by a plain softmax, the gradient's norm from Adam's mean, the rate from the update."""
    optimizer = OptimizerConfig(
        peak_learning_rate=1e-2, warmup_steps=3, clip_norm=1e9, weight_decay=0.5
    )
    training = TrainingConfig(num_steps=9)
    mesh = make_mesh(devices=jax.devices()[:1])
    rng = np.random.default_rng(3)
    documents = [patch_document(random_tokens(rng), PatchingConfig("none"), V) for _ in range(4)]
    batch = stack_rows([documents[:1], documents[1:2], documents[2:]], 70, 70)
    before = jax.tree.map(
        lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(np.float32),
        nn.unbox(abstract_params(SMALL)),
    )
    state = TrainState(jnp.int32(0), before, make_optimizer(optimizer, 9).init(before))
    step = make_train_step(SMALL, optimizer, training, FIRST_UNIT, mesh)
    with mesh_context(mesh):
        state, sums = jax.device_get(step(jax.device_put(state), shard_batch(batch, mesh)))
    adam = state.opt_state[1][0]

    def norm(tree):
        return np.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(tree)))

    # Of the first step the mean is 1 - beta1 of the gradient.
    assert sums["gradient_norm"] == pytest.approx(norm(adam.mu) / 0.1, rel=1e-4)
    rate = learning_rate_schedule(optimizer, 9)(0)
    assert sums["learning_rate"] == pytest.approx(1e-2 / 3) == pytest.approx(float(rate))

    def update(parameter, mean, square):
        direction = (mean / 0.1) / (np.sqrt(square / 0.05) + 1e-8)
        return parameter - sums["learning_rate"] * (direction + 0.5 * parameter)

    def kernel(tree):
        return np.float64(tree["output_kernel"])

    moved = update(kernel(before), kernel(adam.mu), kernel(adam.nu))
    np.testing.assert_allclose(kernel(state.params), moved, atol=1e-6)
    assert state.step == 1
    assert sums["flops"] == pytest.approx(float(training_flops(SMALL, batch)))

    hidden = jax.jit(build_model(SMALL).apply)({"params": before}, batch)["hidden"]
    scores = np.float64(hidden) @ kernel(before)[:, : SMALL.vocab_size]
    probabilities = special.softmax(scores, axis=-1)
    chosen = np.take_along_axis(probabilities, batch.targets[..., None], -1)[..., 0]
    nll = -np.log(chosen) * batch.loss_weights
    speech = batch.targets >= FIRST_UNIT
    assert sums["speech_nll"] == pytest.approx(nll[speech].sum(), rel=1e-4)
    assert sums["text_nll"] == pytest.approx(nll[~speech].sum(), rel=1e-4)
    # The loss is their mean: its gradient with respect to the output is that of `adam`.
    weight = sums["speech_weight"] + sums["text_weight"]
    assert weight == batch.loss_weights.sum()
    wrong = probabilities - np.eye(SMALL.vocab_size)[batch.targets]
    gradient = np.einsum("bnd,bnv->dv", hidden, wrong * batch.loss_weights[..., None]) / weight
    found = kernel(adam.mu)[:, : SMALL.vocab_size] / 0.1
    np.testing.assert_allclose(found, gradient, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "rows", "patches", "tokens"),
    [(TINY, 1, 2**40, 8), (TINY, 1, 8, 2**40), (TINY, 2**40, 8, 8), (SMALL, 1, 2**40, 2**40)],
)
def test_rows_larger_than_the_memory_are_refused(config, rows, patches, tokens):
    mesh = make_mesh(devices=jax.devices()[:1])
    check_rows_fit(config, 4, 64, 64, mesh)
    with pytest.raises(ValueError, match=f"hidden states of {rows} rows of {patches} patches"):
        check_rows_fit(config, rows, patches, tokens, mesh)
