"""Generation: what it makes, when it stops, what it counts, what it refuses."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.inference.generation import (
    GenerationLimits,
    SamplingConfig,
    generate,
    make_decoder,
    prefill,
    static_size,
)
from lst_jax.inference.sampling import allowed_ids
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.model.models import abstract_params
from lst_jax.patching import PatchingConfig
from lst_jax.sharding import MeshConfig, make_mesh, tree_shardings
from lst_jax.vocabulary import Vocabulary
from tests.lst_jax.batches import VOCABULARY
from tests.lst_jax.inference.models import (
    CASES,
    ROWS,
    decoder_of,
    full_logits,
    one_device,
    parameters,
    random_stream,
)

V = VOCABULARY
UNITS = V.first_unit_id + np.arange(V.unit_count)
both = pytest.mark.parametrize("case", ["lst", "baseline"])


def run(case, prompts, params=None, mesh=None, limits=None, sampling=None, **settings):
    decoder = decoder_of(case)
    settings = {"batch_rows": ROWS, **settings}
    params = parameters(case) if params is None else params
    return generate(
        TrainedModel(decoder.model, params, mesh or one_device(), V, decoder.patching),
        prompts,
        limits=GenerationLimits(**{"max_tokens": 30, **(limits or {})}),
        sampling=SamplingConfig(**(sampling or {})),
        **settings,
    )


def speech_prompt(num_units):
    return np.array([V.bos_id, V.speech_mode_id, *UNITS[:num_units]], np.int32)


def prompts_of_any_kind(seed, longest=30):
    rng = np.random.default_rng(seed)
    return [random_stream(rng)[: rng.integers(1, longest)] for _ in range(ROWS)]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-4)
        assert (a.stop_reason, a.steps) == (b.stop_reason, b.steps)


def test_a_state_has_a_row_for_every_prompt():
    decoder = decoder_of("baseline")
    trained = TrainedModel(decoder.model, parameters("baseline"), one_device(), V, decoder.patching)
    prompts = [speech_prompt(2)] * 3
    with pytest.raises(ValueError, match="batch_rows is 2, expected at least 3"):
        prefill(trained, prompts, max_patches=20, batch_rows=2)
    with pytest.raises(ValueError, match="batch_rows is 1, expected at least 3"):
        prefill(trained, prompts, max_patches=20, batch_rows=1)


@both
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31), modality=st.sampled_from(["speech", "text", None]))
def test_greedy_tokens_are_the_argmax_of_the_full_forward_pass(case, seed, modality):
    prompts = prompts_of_any_kind(seed)
    made = run(case, prompts, modality=modality)
    allowed = allowed_ids(V, modality)
    whole = [np.concatenate([p, g.tokens]) for p, g in zip(prompts, made, strict=True)]
    for prompt, generation, logits in zip(prompts, made, full_logits(case, whole), strict=True):
        logits = logits[len(prompt) - 1 : -1].astype(np.float64)
        chosen = logits[np.arange(len(logits)), generation.tokens]
        # Whatever is as probable but for rounding may be taken.
        np.testing.assert_allclose(chosen, logits[:, allowed].max(-1), atol=1e-4)
        assert allowed[generation.tokens].all()
        normalizer = np.log(np.exp(logits).sum(-1))
        np.testing.assert_allclose(generation.log_probs, chosen - normalizer, atol=1e-4)


@both
def test_a_row_comes_out_the_same_in_any_batch_and_at_any_place(case):
    prompts, seeds = prompts_of_any_kind(0) + prompts_of_any_kind(1, longest=8), range(100, 108)
    sampling = {"temperature": 1.0, "top_k": 20, "top_p": 0.95}
    together = run(case, prompts, seeds=seeds, sampling=sampling)
    order = np.random.default_rng(0).permutation(8)
    shuffled = run(case, [prompts[i] for i in order], seeds=seeds[0] + order, sampling=sampling)
    assert_same(shuffled, [together[i] for i in order])
    alone = run(case, [prompts[5]], seeds=[105], sampling=sampling)
    assert_same(alone, [together[5]])
    other = run(case, [prompts[5]], seeds=[106], sampling=sampling)
    assert other[0].tokens.tolist() != alone[0].tokens.tolist()


def test_a_row_comes_out_the_same_in_a_batch_of_another_size():
    prompts, sampling = prompts_of_any_kind(5), {"temperature": 1.0}
    together = run("baseline", prompts, sampling=sampling)
    assert_same(run("baseline", prompts, sampling=sampling, batch_rows=1), together)


@both
def test_seeds_count_from_zero_and_repeat(case):
    prompts, sampling = prompts_of_any_kind(2), {"temperature": 1.0}
    first = run(case, prompts, sampling=sampling)
    assert_same(run(case, prompts, sampling=sampling, seeds=range(ROWS)), first)


def test_speech_takes_one_global_step_for_every_full_patch_whatever_the_phases():
    """Patches have three units here; the baseline takes a step for every unit."""
    prompts = [speech_prompt(n) for n in (0, 1, 2, 5)]
    made = run("lst", prompts, modality="speech", limits={"max_units": 30})
    for generation in made:
        assert V.is_unit(generation.tokens).all() and len(generation.tokens) == 30
        assert generation.stop_reason == "units"
        # The patch that the last token completes is not run any more.
        assert generation.steps.token_steps == 30
        assert generation.steps.global_steps in (9, 10)
    assert made[0].batch_steps.global_steps == 10
    assert made[0].batch_steps.token_steps <= 32
    baseline = run("baseline", prompts, modality="speech", limits={"max_units": 30})
    assert {g.steps for g in baseline} == {(30, 30)} == {g.batch_steps for g in baseline}


def test_text_takes_a_global_step_for_every_token_but_the_last():
    (made,) = run("lst", [np.array([V.bos_id, V.text_mode_id, 5])], modality="text")
    assert made.steps == (30, 29)


@both
def test_forced_modalities_make_nothing_else(case):
    prompts = prompts_of_any_kind(3)
    for modality, is_made in (("speech", V.is_unit), ("text", V.is_text)):
        for made in run(case, prompts, modality=modality, sampling={"temperature": 3.0}):
            ends = made.tokens == V.eos_id
            assert (is_made(made.tokens) | ends).all()
            assert not ends[:-1].any()


@both
def test_rows_stop_for_every_reason_and_say_which(case):
    """Hot rows make everything sooner or later."""
    prompts, hot = [speech_prompt(3)] * ROWS * 10, {"temperature": 30.0}
    limits = {"max_units": 12, "max_patches": 26, "max_tokens": 20, "stop_at_mode": True}
    seen = set()
    for made in run(case, prompts, sampling=hot, limits=limits):
        tokens, reason = made.tokens, made.stop_reason
        is_mode = (tokens == V.text_mode_id) | (tokens == V.speech_mode_id)
        stops = (tokens == V.eos_id) | is_mode
        assert not stops[:-1].any()
        patches = decoder_of(case).document(np.concatenate([prompts[0], tokens])).num_patches
        facts = {
            "eos": tokens[-1] == V.eos_id,
            "mode": is_mode[-1],
            "units": V.is_unit(tokens).sum() == 12,
            "tokens": len(tokens) == 20,
            "context": patches == 27,
        }
        assert facts[reason] and not any(facts[r] for r in facts if r != reason)
        assert V.is_unit(tokens).sum() <= 12 and len(tokens) <= 20 and patches <= 27
        seen.add(reason)
    # Only a token that is a patch can fill the context here.
    assert {"eos", "mode", "units"} <= seen


@both
def test_a_full_context_stops_a_row(case):
    prompt = np.array([V.bos_id, V.text_mode_id, 5])
    (made,) = run(case, [prompt], modality="text", limits={"max_patches": 8})
    assert made.stop_reason == "context" and len(made.tokens) == 6
    (whole,) = run(case, [prompt], modality="text", limits={"max_patches": 100})
    np.testing.assert_array_equal(whole.tokens[:6], made.tokens)


@both
def test_any_number_of_tokens_may_be_asked_for_and_the_context_is_used_up(case):
    prompts = [speech_prompt(n) for n in (0, 1, 2, 5)]
    limits = {"max_patches": 40, "max_tokens": 2**31 - 2, "min_tokens": 200}
    for prompt, made in zip(
        prompts, run(case, prompts, limits=limits, modality="speech"), strict=True
    ):
        assert made.stop_reason == "context"
        whole = np.concatenate([prompt, made.tokens])
        assert decoder_of(case).document(whole).num_patches == 41


@both
def test_eos_does_not_come_too_early(case):
    prompts, hot = [speech_prompt(3)] * ROWS * 10, {"temperature": 30.0}
    sizes = {}
    for min_tokens in (0, 9):
        limits = {"min_tokens": min_tokens}
        made = run(case, prompts, sampling=hot, limits=limits, modality="speech")
        sizes[min_tokens] = [len(g.tokens) for g in made if g.stop_reason == "eos"]
    assert min(sizes[0]) < 9 and min(sizes[9]) >= 10


@both
def test_a_mode_token_goes_on_unless_it_is_to_stop(case):
    params = parameters(case)
    kernel = np.array(params["output_kernel"])
    # Whatever the state, one of the two has the higher logit.
    kernel[:, V.text_mode_id] = 100 * kernel[:, UNITS[0]]
    kernel[:, V.speech_mode_id] = -100 * kernel[:, UNITS[0]]
    params = params | {"output_kernel": jax.numpy.asarray(kernel)}
    (made,) = run(case, [speech_prompt(1)], params, limits={"stop_at_mode": True})
    assert made.stop_reason == "mode" and len(made.tokens) == 1
    (made,) = run(case, [speech_prompt(1)], params)
    assert made.stop_reason == "tokens" and len(made.tokens) == 30


@pytest.mark.slow
@both
def test_continuations_are_the_same_on_a_mesh(case):
    prompts = prompts_of_any_kind(4)
    single = run(case, prompts)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = tree_shardings(abstract_params(CASES[case][0]), mesh)
    sharded = jax.device_put(parameters(case), shardings)
    assert_same(run(case, prompts, sharded, mesh), single)


def test_no_prompts_give_no_continuations():
    assert run("lst", []) == []


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        (np.zeros(0, np.int32), r"prompts\[1\] is \[\], expected at least one token"),
        (np.ones((2, 2), np.int32), r"prompts\[1\] is 'shape \(2, 2\)"),
        (np.ones(3), r"prompts\[1\] is 'shape \(3,\) and type float64'"),
        (np.array([1, V.size]), rf"prompts\[1\] holds {V.size}, expected ids in 0 … {V.size - 1}"),
        (np.array([1, -1]), r"prompts\[1\] holds -1"),
        (
            np.full(21, 5),
            r"prompts\[1\] has 21 patches in 21 tokens: expected at most 20, the context",
        ),
    ],
)
@both
def test_impossible_prompts_are_named(case, prompt, named):
    with pytest.raises(ValueError, match=named):
        run(case, [speech_prompt(2), prompt], limits={"max_patches": 20})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seeds": [1]}, "seeds is '1 of them', expected 2"),
        ({"seeds": [1, -1]}, "seeds is -1, expected integers in 0"),
        ({"seeds": [1, 2**32]}, "seeds is 4294967296"),
        ({"seeds": [1, 0.5]}, "seeds is 0.5"),
        ({"modality": "song"}, "modality is 'song'"),
        ({"batch_rows": 0}, "the batch has 0 rows"),
        ({"limits": {"max_tokens": 0}}, "max_tokens is 0, expected an integer, 1"),
        ({"limits": {"max_tokens": None}}, "max_tokens is None"),
        ({"limits": {"max_units": -5}}, "max_units is -5"),
        ({"limits": {"max_patches": 1.5}}, "max_patches is 1.5"),
        ({"limits": {"min_tokens": -1}}, "min_tokens is -1"),
    ],
)
def test_impossible_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        run("lst", [speech_prompt(1)] * 2, **settings)


def test_models_that_do_not_go_with_vocabulary_or_patching_are_named():
    baseline, lst = decoder_of("baseline"), decoder_of("lst")
    with pytest.raises(ValueError, match=r"patching.strategy is 'static', expected \"none\""):
        make_decoder(baseline.model, V, lst.patching)
    with pytest.raises(ValueError, match="expected the 66 ids of the model"):
        make_decoder(lst.model, Vocabulary(text_size=41), lst.patching)


def test_the_lst_decodes_without_patches_too():
    decoder = make_decoder(decoder_of("lst").model, V, PatchingConfig("none"))
    assert decoder.patch_size == 1
    assert decoder.document(speech_prompt(5)).num_patches == 7


@both
def test_parameters_that_are_not_finite_are_refused(case):
    broken = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), parameters(case))
    with pytest.raises(ValueError, match="not finite"):
        run(case, [speech_prompt(1)], broken)


@given(st.integers(0, 10**6))
def test_sizes_are_few_and_little_larger_than_needed(size):
    rounded = static_size(size)
    assert rounded >= size and rounded % 32 == 0
    assert rounded == 64 or rounded < 1.5 * size
    assert static_size(rounded) == rounded
