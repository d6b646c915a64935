"""Drawing the next token."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lst_jax.inference.sampling import (
    SamplingConfig,
    allowed_ids,
    sample,
    sampling_arrays,
    truncate,
)
from lst_jax.vocabulary import Vocabulary

V = 23
truncate = jax.jit(truncate)
sample = jax.jit(sample)


def draw(logits, seeds, positions=None, allowed=None, **config):
    logits = np.asarray(logits, np.float32)
    allowed = np.ones(logits.shape[1], bool) if allowed is None else allowed
    arrays = sampling_arrays(SamplingConfig(**config), allowed, np.asarray(seeds, np.uint32))
    positions = np.zeros(len(seeds), np.int32) if positions is None else positions
    return np.asarray(sample(logits, np.asarray(positions, np.int32), arrays))


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


logit_rows = st.lists(
    st.sampled_from([-50.0, -3.0, -1.0, 0.0, 0.5, 1.0, 2.0]), min_size=V, max_size=V
)


@settings(max_examples=60, deadline=None)
@given(row=logit_rows, top_k=st.integers(1, V), top_p=st.floats(1e-6, 1.0))
def test_truncation_keeps_the_fewest_most_probable_tokens_that_are_asked_for(row, top_k, top_p):
    logits = np.array([row], np.float32)
    kept = np.isfinite(np.asarray(truncate(logits, top_k, np.float32(top_p))))[0]
    assert 1 <= kept.sum() <= top_k
    # The kept ones are a beginning of the ranking, lower ids first among equals.
    ranking = sorted(range(V), key=lambda i: (-row[i], i))
    assert sorted(np.flatnonzero(kept).tolist()) == sorted(ranking[: kept.sum()])
    among = softmax(np.where(np.isin(np.arange(V), ranking[:top_k]), logits[0], -np.inf))
    total, without_last = among[kept].sum(), among[ranking[: kept.sum() - 1]].sum()
    assert total >= top_p - 1e-5 or kept.sum() == top_k
    assert kept.sum() == 1 or without_last < top_p + 1e-5


@settings(max_examples=30, deadline=None)
@given(row=logit_rows)
def test_no_truncation_changes_nothing(row):
    logits = np.array([row], np.float32)
    np.testing.assert_array_equal(truncate(logits, V, np.float32(1)), logits)


@settings(max_examples=40, deadline=None)
@given(row=logit_rows, seed=st.integers(0, 2**32 - 1), temperature=st.sampled_from([0.0, 1e-30]))
def test_zero_temperature_takes_the_most_probable_token(row, seed, temperature):
    (token,) = draw([row], [seed], temperature=temperature)
    assert row[token] == max(row)


@settings(max_examples=40, deadline=None)
@given(row=logit_rows, seed=st.integers(0, 2**32 - 1), top_k=st.integers(1, V))
def test_only_tokens_that_are_allowed_and_kept_are_drawn(row, seed, top_k):
    allowed = np.arange(V) % 3 == 1
    (token,) = draw([row], [seed], allowed=allowed, temperature=5.0, top_k=top_k)
    assert allowed[token]
    assert sum(row[i] > row[token] for i in np.flatnonzero(allowed)) < top_k


def formula(row, allowed, temperature, top_k=None, top_p=1.0):
    """Probabilities in float64, token after token, as the configuration's docstring has them."""
    ranking = sorted(np.flatnonzero(allowed), key=lambda i: (-row[i], i))[:top_k]
    weights = np.exp((row[ranking] - row[ranking[0]]) / temperature)
    weights /= weights.sum()
    kept, total = 0, 0.0
    while kept < len(ranking) and (total < top_p or top_p == 1):
        total += weights[kept]
        kept += 1
    probabilities = np.zeros(len(row))
    probabilities[ranking[:kept]] = weights[:kept] / weights[:kept].sum()
    return probabilities


SAMPLERS = {
    "temperature 1": {"temperature": 1.0},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 2.0},
    "top-k": {"temperature": 1.0, "top_k": 4},
    "nucleus": {"temperature": 1.0, "top_p": 0.7},
    "nucleus of the hot": {"temperature": 1.6, "top_p": 0.8},
    "nucleus of the top-k": {"temperature": 1.3, "top_k": 5, "top_p": 0.75},
}


@pytest.mark.parametrize("config", SAMPLERS.values(), ids=SAMPLERS)
def test_tokens_are_drawn_with_the_probabilities_of_the_formula(config):
    """Chi-square, with the same seeds always, and sharp enough to tell another temperature."""
    draws = 20_000
    row = np.array([0.3, 1.5, -0.4, 2.0, 1.1, 0.0, 2.6, 0.9, -1.0, 1.9])
    allowed = np.arange(10) != 6  # the most probable one may not be made
    seeds = np.arange(draws) % 500
    positions = np.arange(draws) // 500
    tokens = draw(np.tile(row, (draws, 1)), seeds, positions, allowed, **config)
    counts = np.bincount(tokens, minlength=10)
    expected = formula(row, allowed, **config) * draws
    assert np.all(counts[expected == 0] == 0)
    made = expected > 0
    assert stats.chisquare(counts[made], expected[made]).pvalue > 1e-3
    wrong = expected[made] ** 0.8
    wrong *= draws / wrong.sum()
    assert stats.chisquare(counts[made], wrong).pvalue < 1e-6


@pytest.mark.parametrize("equal", [2, 4, 8])
def test_a_nucleus_whose_sum_is_met_exactly_takes_no_token_more(equal):
    """Of equally probable tokens, a power of two, the sums are exact in float32."""
    logits = np.full((1, 16), -np.inf, np.float32)
    logits[0, 3 : 3 + equal] = 1.5
    for count in range(1, equal + 1):
        met = np.float32(count / equal)
        under, over = np.nextafter(met, np.float32(0)), np.nextafter(met, np.float32(2))
        for top_p, expected in ((under, count), (met, count), (over, count + 1)):
            if top_p > 1:
                continue
            kept = np.flatnonzero(np.isfinite(np.asarray(truncate(logits, 16, top_p))[0]))
            assert kept.tolist() == list(range(3, 3 + min(expected, equal)))


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5, 6])
def test_top_k_takes_k_and_of_equal_ones_the_lower_ids(top_k):
    logits = np.array([[1.0, 2.0, 1.0, 2.0, 1.0, 0.0]], np.float32)
    kept = np.flatnonzero(np.isfinite(np.asarray(truncate(logits, top_k, np.float32(1)))[0]))
    assert kept.tolist() == sorted([1, 3, 0, 2, 4, 5][:top_k])


def test_a_draw_depends_on_seed_and_position_and_on_no_other_row():
    rng = np.random.default_rng(0)
    logits = np.tile(rng.standard_normal((1, V)), (200, 1)).astype(np.float32)
    seeds, positions = np.arange(200) % 20, np.arange(200) // 20
    tokens = draw(logits, seeds, positions, temperature=1.0)
    order = rng.permutation(200)
    np.testing.assert_array_equal(
        draw(logits, seeds[order], positions[order], temperature=1.0), tokens[order]
    )
    table = tokens.reshape(10, 20)
    assert len({tuple(row) for row in table}) == 10 and len({tuple(c) for c in table.T}) == 20


def test_what_may_be_made_follows_the_modality():
    vocabulary = Vocabulary(text_size=8, unit_count=3)
    text, units = {0, 3, 4, 5, 6, 7}, {14, 15, 16}
    made = {m: set(np.flatnonzero(allowed_ids(vocabulary, m))) for m in ("text", "speech", None)}
    assert made["text"] == text | {vocabulary.eos_id}
    assert made["speech"] == units | {vocabulary.eos_id}
    modes = {vocabulary.text_mode_id, vocabulary.speech_mode_id}
    assert made[None] == text | units | modes | {vocabulary.eos_id}
    with pytest.raises(ValueError, match="modality is 'video', expected None or"):
        allowed_ids(vocabulary, "video")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"temperature": -0.1}, r"temperature is -0.1, expected a finite number"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0, expected None or an integer, 1"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0.0}, "top_p is 0.0, expected a finite number, above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
    ],
)
def test_impossible_settings_are_named(config, named):
    with pytest.raises(ValueError, match=named):
        SamplingConfig(**config)
