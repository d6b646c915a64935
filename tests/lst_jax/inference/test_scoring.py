"""Properties of packed scoring, with the LST and with the unpatched baseline."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.batch import padding_rows, stack_rows
from lst_jax.config import LSTConfig, baseline_of
from lst_jax.inference.scoring import (
    Continuation,
    ScoringShape,
    group_by_prompt,
    make_document,
    pack,
    score_continuations,
)
from lst_jax.inference.shared_prefix import RowSize, measure_row
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.model.models import abstract_params, build_model, logits, output_kernel
from lst_jax.patching import PatchingConfig, fill_row
from lst_jax.sharding import MeshConfig, make_mesh, tree_shardings
from lst_jax.vocabulary import Vocabulary
from tests.marks import quick

VOCABULARY = Vocabulary(text_size=11, unit_count=7)
LST = LSTConfig(
    vocab_size=VOCABULARY.size,
    dim_local=16,
    dim_global=32,
    num_layers_encoder=1,
    num_layers_global=2,
    num_layers_decoder=2,
    num_heads_local=2,
    num_heads_global=2,
    multiple_of=16,
    dtype="float32",
    attention="dense",
)

CASES = {
    "lst": (LST, PatchingConfig("curriculum", patch_size=3)),
    "baseline": (baseline_of(LST), PatchingConfig("none")),
}


@pytest.fixture(scope="module", params=quick(CASES, "lst"))
def case(request):
    config, patching = CASES[request.param]
    return build_model(config), init(config), patching


def init(config, seed=0):
    batch = padding_rows(4, 4, rows=(1,))
    model = build_model(config)
    variables = jax.jit(lambda key: model.init(key, batch))(jax.random.key(seed))
    return nn.unbox(variables["params"])


def make_continuations(count, seed=0, longest=12):
    """Speech after speech, text after text and both changes of modality, of any lengths."""
    rng = np.random.default_rng(seed)

    def run(is_speech):
        first, last = (VOCABULARY.first_unit_id, VOCABULARY.size) if is_speech else (3, 11)
        return rng.integers(first, last, rng.integers(1, longest + 1)).astype(np.int32)

    def mode(is_speech):
        return VOCABULARY.speech_mode_id if is_speech else VOCABULARY.text_mode_id

    made = []
    for index in range(count):
        first, second = index % 2 == 0, index // 2 % 2 == 0
        switch = [] if first == second else [mode(second)]
        prompt = np.concatenate([[VOCABULARY.bos_id, mode(first)], run(first), switch])
        made.append(Continuation(prompt.astype(np.int32), run(second)))
    return made


def make_endings(seed, prompts=4, most=5):
    """Continuations that share prompts, in any order, and some of which begin alike.

    Prompts stop at a full patch, inside one, after a mode token and after a text token; the
    shortest endings are a single token.
    """
    rng = np.random.default_rng(seed)
    made = []
    for continuation in make_continuations(prompts, seed):
        for index in range(rng.integers(1, most + 1)):
            ending = rng.permutation(continuation.ending)[: rng.integers(1, 13)]
            kept = rng.integers(len(ending)) if index else len(ending)
            ending = np.concatenate([continuation.ending[:kept], ending[kept:]])
            made.append(Continuation(continuation.prompt, ending))
    return [made[i] for i in rng.permutation(len(made))]


def score(
    case, continuations, mesh=None, progress=None, visibility="causal", logits="all", **shape
):
    model, params, patching = case
    shape = {"batch_rows": 2, "patches_per_row": 64, **shape}
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    return score_continuations(
        TrainedModel(model, params, mesh, VOCABULARY, patching, visibility),
        continuations,
        shape=ScoringShape(**shape),
        logits=logits,
        progress=progress,
    )


def score_by_full_passes(case, continuations, visibility="causal", slots=40, speech_alone=False):
    """Runs each continuation as a separate row through the whole forward pass and softmax."""
    model, params, patching = case

    @jax.jit
    def log_softmax(params, batch):
        hidden = model.apply({"params": params}, batch)["hidden"]
        scores = logits(hidden, output_kernel(params), VOCABULARY.size)
        whole = jax.nn.log_softmax(scores)
        first = VOCABULARY.first_unit_id
        alone = jax.nn.log_softmax(scores[..., first : VOCABULARY.size])
        return whole.at[..., first : VOCABULARY.size].set(alone) if speech_alone else whole

    scores = []
    for continuation in continuations:
        document = make_document(continuation, VOCABULARY, patching)
        row = fill_row([document], slots, slots, visibility)
        log_probabilities = log_softmax(params, stack_rows([row]))[0]
        first, last = len(continuation.prompt), document.num_tokens
        scores.append(sum(log_probabilities[t - 1, row.tokens[t]] for t in range(first, last)))
    return np.array(scores)


def test_packed_scores_equal_the_scores_of_each_continuation_alone(case):
    continuations = make_continuations(13)
    packed = score(case, continuations)
    alone = [score(case, [continuation]) for continuation in continuations]
    np.testing.assert_allclose(packed, np.concatenate(alone), atol=1e-4)


@pytest.mark.slow
def test_speech_alone_is_scored_by_the_softmax_over_its_logits(case):
    """Text is scored over the whole vocabulary all the same."""
    continuations = make_continuations(8)
    found = score(case, continuations, logits="speech")
    expected = score_by_full_passes(case, continuations, speech_alone=True)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert (found >= score(case, continuations) - 1e-4).all()  # fewer compete
    on_mesh = score(
        case, continuations, make_mesh(devices=jax.devices()[:2]), logits="speech", batch_rows=2
    )
    np.testing.assert_allclose(on_mesh, found, atol=1e-4)


def test_scores_are_sums_of_the_full_softmax(case):
    continuations = make_continuations(4, seed=1, longest=10)
    alone = [score(case, [continuation])[0] for continuation in continuations]
    np.testing.assert_allclose(alone, score_by_full_passes(case, continuations), atol=1e-4)


SHARING_CASES = {
    "lst": (LST, PatchingConfig("static", patch_size=3), "causal"),
    "one vector a patch, narrow windows, blocked attention": (
        dataclasses.replace(
            LST,
            latent_vectors_per_patch=1,
            local_window=3,
            encoder_cross_window=2,
            decoder_cross_window=2,
            attention="blocked",
            hash_ngram_sizes=(2, 5),
            hash_table_size=128,
        ),
        PatchingConfig("static", patch_size=4),
        "causal",
    ),
    "published": (
        dataclasses.replace(LST, cross_residual="double", document_cross_masking=False),
        PatchingConfig("static", patch_size=3, join_speech_mode=True),
        "reference",
    ),
    "baseline": (baseline_of(LST), PatchingConfig("none"), "causal"),
}


@pytest.mark.parametrize("name", quick(SHARING_CASES, "lst"))
def test_endings_that_share_a_prompt_score_as_in_rows_of_their_own(name):
    config, patching, visibility = SHARING_CASES[name]
    case = build_model(config), init(config), patching
    continuations = [c for seed in range(6) for c in make_endings(seed)]
    together = score(case, continuations, visibility=visibility, patches_per_row=128)
    expected = score_by_full_passes(case, continuations, visibility)
    np.testing.assert_allclose(together, expected, atol=1e-4)


@pytest.mark.slow
def test_a_prompt_is_run_once_for_its_endings(case):
    """A row that has room for the prompt once, and for what follows it, holds all endings."""
    rng = np.random.default_rng(0)
    prompt = np.concatenate([[VOCABULARY.bos_id, VOCABULARY.text_mode_id], rng.integers(3, 11, 60)])
    endings = np.column_stack([[3, 4, 5], rng.integers(3, 11, (3, 7))])
    continuations = [Continuation(prompt.astype(np.int32), e.astype(np.int32)) for e in endings]
    batches = []

    def batches_at(patches):
        score(
            case,
            continuations,
            batch_rows=1,
            patches_per_row=patches,
            progress=lambda done, total: batches.append(total),
        )
        return batches[-1]

    assert batches_at(62 + 3 * 8) == 1
    assert batches_at(62 + 3 * 8 - 1) == 2


@pytest.mark.slow
def test_scores_of_all_endings_of_a_length_sum_to_one(case):
    prompt = make_continuations(1)[0].prompt
    endings = [np.array([a], np.int32) for a in range(VOCABULARY.size)]
    scores = score(case, [Continuation(prompt, ending) for ending in endings])
    assert np.exp(scores).sum() == pytest.approx(1, abs=1e-5)


def test_probability_of_an_ending_is_the_product_over_its_parts(case):
    (whole,) = make_continuations(1, seed=5)
    assert len(whole.ending) > 1
    parts = []
    for cut in range(len(whole.ending)):
        prompt = np.concatenate([whole.prompt, whole.ending[:cut]])
        parts.append(Continuation(prompt, whole.ending[cut : cut + 1]))
    assert score(case, parts).sum() == pytest.approx(score(case, [whole])[0], abs=1e-4)


def test_order_of_continuations_only_orders_the_scores(case):
    continuations = make_continuations(9, seed=2)
    forward = score(case, continuations)
    backward = score(case, continuations[::-1])
    np.testing.assert_allclose(forward, backward[::-1], atol=1e-4)


def test_equal_continuations_get_the_same_number(case):
    continuations = make_continuations(7, seed=3)
    scores = score(case, continuations * 3)
    assert scores.reshape(3, 7).tolist() == [scores[:7].tolist()] * 3


@pytest.mark.slow
def test_sharding_over_devices_keeps_the_scores(case):
    model, params, patching = case
    continuations = make_continuations(20, seed=4)
    single = score(case, continuations, batch_rows=4)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = tree_shardings(abstract_params(model.config), mesh)
    sharded = jax.device_put(params, shardings)
    scores = score((model, sharded, patching), continuations, mesh, batch_rows=4)
    np.testing.assert_allclose(scores, single, atol=1e-4)


def test_nothing_to_score_gives_no_scores(case):
    assert score(case, []).shape == (0,)


def test_progress_counts_the_batches(case):
    seen = []
    score(case, make_continuations(30), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))]
    assert len(seen) > 1


@settings(max_examples=50, deadline=None)
@given(st.data(), st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_packing_places_everything_once_within_every_budget(data, budget):
    need = st.tuples(*(st.integers(0, size) for size in budget))
    needs = data.draw(st.lists(need, max_size=150))
    rows = pack(needs, budget)
    assert sorted(index for row in rows for index in row) == list(range(len(needs)))
    for row in rows:
        assert row
        assert (np.sum([needs[i] for i in row], axis=0) <= budget).all()


def test_packing_many_documents_fills_the_rows():
    needs = np.random.default_rng(0).integers(1, (60, 180), (1000, 2))
    rows = pack(needs, (512, 4096))
    assert needs[:, 0].sum() / (512 * len(rows)) > 0.95


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 20))
def test_groups_hold_documents_of_one_prompt_within_the_limit(seed, spare):
    patching = PatchingConfig("static", patch_size=3)
    continuations = make_endings(seed)
    documents = [make_document(c, VOCABULARY, patching) for c in continuations]
    prompts = [c.prompt.tobytes() for c in continuations]
    largest = np.max([measure_row([document]) for document in documents], axis=0)
    limit = RowSize(*(largest + spare))
    groups = group_by_prompt(documents, prompts, limit)
    assert sorted(index for group in groups for index in group) == list(range(len(documents)))
    for group in groups:
        assert len({prompts[i] for i in group}) == 1
        size = measure_row([documents[i] for i in group])
        assert all(need <= most for need, most in zip(size, limit, strict=True))


def test_only_the_ending_is_scored_and_speech_patches_run_across_the_boundary():
    prompt = [VOCABULARY.bos_id, VOCABULARY.speech_mode_id, *VOCABULARY.units_to_ids([1, 2, 3, 4])]
    ending = VOCABULARY.units_to_ids([5, 6, 0])
    continuation = Continuation(np.array(prompt, np.int32), ending)
    document = make_document(continuation, VOCABULARY, PatchingConfig("aligned", patch_size=3))
    assert document.patch_lengths.tolist() == [1, 1, 3, 3, 1]
    assert document.loss_weights.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0]
    baseline = make_document(continuation, VOCABULARY, PatchingConfig("none"))
    assert baseline.patch_lengths.tolist() == [1] * 9


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ({"patches_per_row": 5}, r"patches_per_row is 5; expected at least \d+"),
        ({"patches_per_row": 40, "tokens_per_row": 5}, "tokens_per_row is 5"),
        ({"batch_rows": 0}, "batch_rows is 0"),
        ({"patches_per_row": -1}, "patches_per_row is -1"),
        ({"tokens_per_row": 0}, "tokens_per_row is 0"),
    ],
)
def test_shapes_that_hold_no_continuation_are_named(case, shape, named):
    with pytest.raises(ValueError, match=named):
        score(case, make_continuations(4), **shape)


def test_error_says_exactly_the_size_that_is_enough(case):
    continuations = make_continuations(6)
    with pytest.raises(ValueError, match="patches_per_row") as error:
        score(case, continuations, patches_per_row=1)
    needed = int(str(error.value).split("at least ")[1].split(",")[0])
    assert np.isfinite(score(case, continuations, patches_per_row=needed)).all()
    with pytest.raises(ValueError, match="patches_per_row"):
        score(case, continuations, patches_per_row=needed - 1)


def test_rows_that_do_not_divide_over_the_mesh_are_named(case):
    with pytest.raises(ValueError, match="3 rows"):
        score(case, make_continuations(2), make_mesh(), batch_rows=3)


def test_parameters_that_are_not_finite_are_refused(case):
    model, params, patching = case
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    with pytest.raises(ValueError, match="not finite"):
        score((model, broken, patching), make_continuations(2))


@pytest.mark.parametrize("value", [np.zeros(0, np.int32), np.zeros((1, 2), np.int32), np.ones(2)])
@pytest.mark.parametrize("name", ["prompt", "ending"])
def test_prompt_and_ending_are_sequences_of_ids(name, value):
    parts = {"prompt": np.ones(2, np.int32), "ending": np.ones(2, np.int32), name: value}
    with pytest.raises(ValueError, match=name):
        Continuation(**parts)
