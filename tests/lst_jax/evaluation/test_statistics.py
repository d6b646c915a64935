"""Properties of the Wilson and the bootstrap interval."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.evaluation.statistics import bootstrap_ratio_interval, wilson_interval

SETTINGS = settings(max_examples=100, deadline=None)


@st.composite
def proportions(draw):
    n = draw(st.integers(1, 5000))
    return draw(st.integers(0, n)), n


@SETTINGS
@given(proportions())
def test_interval_holds_the_proportion_and_stays_inside_zero_and_one(proportion):
    successes, n = proportion
    lower, upper = wilson_interval(successes, n)
    assert 0 <= lower <= successes / n <= upper <= 1
    assert lower < upper


@SETTINGS
@given(proportions())
def test_successes_and_failures_mirror_each_other(proportion):
    successes, n = proportion
    lower, upper = wilson_interval(successes, n)
    mirrored = wilson_interval(n - successes, n)
    assert (1 - upper, 1 - lower) == pytest.approx(mirrored, abs=1e-12)


@SETTINGS
@given(proportions())
def test_bounds_solve_the_score_equation(proportion):
    successes, n = proportion
    z = 1.959963984540054
    for bound in wilson_interval(successes, n):
        distance = abs(successes / n - bound)
        assert distance == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-9)


@SETTINGS
@given(proportions(), st.integers(2, 20))
def test_more_trials_of_the_same_proportion_narrow_the_interval(proportion, factor):
    successes, n = proportion
    lower, upper = wilson_interval(successes, n)
    more_lower, more_upper = wilson_interval(successes * factor, n * factor)
    assert more_upper - more_lower < upper - lower


@SETTINGS
@given(proportions())
def test_higher_confidence_widens_the_interval(proportion):
    successes, n = proportion
    lower, upper = wilson_interval(successes, n, confidence=0.9)
    wider_lower, wider_upper = wilson_interval(successes, n, confidence=0.99)
    assert wider_lower <= lower and upper <= wider_upper


def test_known_interval_of_eighty_out_of_a_hundred():
    # Both are the roots of (n + z²) p² − (2s + z²) p + s²/n = 0 with s = 80, n = 100.
    assert wilson_interval(80, 100) == pytest.approx((0.711171, 0.866633), abs=1e-6)


@pytest.mark.parametrize(
    ("successes", "n", "confidence", "named"),
    [
        (0, 0, 0.95, "n is 0"),
        (-1, 5, 0.95, "successes is -1"),
        (6, 5, 0.95, "successes is 6"),
        (float("nan"), 5, 0.95, "successes is nan"),
        (1, 5, 1.0, "confidence is 1.0"),
        (1, 5, 0.0, "confidence is 0.0"),
    ],
)
def test_arguments_outside_their_range_are_named(successes, n, confidence, named):
    with pytest.raises(ValueError, match=named):
        wilson_interval(successes, n, confidence)


@SETTINGS
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=30))
def test_the_bootstrap_interval_lies_between_the_best_and_the_worst_item(items):
    errors, words = map(np.array, zip(*items, strict=True))
    lower, upper = bootstrap_ratio_interval(errors, words, resamples=200)
    ratios = errors / words
    assert ratios.min() - 1e-9 <= lower <= upper <= ratios.max() + 1e-9
    assert bootstrap_ratio_interval(errors, words, resamples=200) == (lower, upper)


def test_the_bootstrap_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    trials, rate, covered = 200, 0.2, 0
    for trial in range(trials):
        words = rng.integers(5, 15, 80)
        errors = rng.binomial(words, rate)
        lower, upper = bootstrap_ratio_interval(errors, words, resamples=300, seed=trial)
        covered += lower <= rate <= upper
    assert 0.88 < covered / trials < 0.99


@pytest.mark.parametrize(
    ("numerators", "denominators", "changes", "message"),
    [
        ([], [], {}, "has 0 and denominators 0 items"),
        ([1], [1, 2], {}, "has 1 and denominators 2"),
        ([-1], [1], {}, "at least 0 and above 0"),
        ([1], [0], {}, "at least 0 and above 0"),
        ([1], [1], {"confidence": 1.0}, "confidence is 1.0"),
        ([1], [1], {"resamples": 0}, "resamples 0"),
    ],
)
def test_a_bootstrap_of_nothing_is_an_error(numerators, denominators, changes, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ratio_interval(np.array(numerators), np.array(denominators), **changes)
