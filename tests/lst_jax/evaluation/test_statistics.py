"""Properties of the Wilson and the bootstrap interval."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lst_jax.evaluation.choices import measure_accuracy
from lst_jax.evaluation.error_rates import character_error_rate, count_errors, word_error_rate
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


# Of each, 90 % is neither 95 % nor 80 %.
LEVELS = [(0.8, 0.02), (0.9, 0.015), (0.95, 0.01), (0.99, 0.005)]


@pytest.mark.parametrize(("confidence", "error"), LEVELS)
@pytest.mark.parametrize("n", [40, 150])
def test_the_wilson_interval_covers_as_often_as_it_says(confidence, error, n):
    """Exactly: the probabilities of all outcomes whose interval holds the proportion, added up.

    Outcomes are whole numbers, so that the coverage of one proportion leaps; its mean is nominal.
    """
    intervals = np.array([wilson_interval(k, n, confidence) for k in range(n + 1)])
    proportions = np.linspace(0.05, 0.95, 181)
    inside = (intervals[:, :1] <= proportions) & (proportions <= intervals[:, 1:])
    outcomes = stats.binom.pmf(np.arange(n + 1)[:, None], n, proportions)
    covered = (inside * outcomes).sum(0)
    assert covered.mean() == pytest.approx(confidence, abs=error)
    # The rest lies half below and half above.
    below = (outcomes * (intervals[:, :1] > proportions)).sum(0).mean()
    above = (outcomes * (intervals[:, 1:] < proportions)).sum(0).mean()
    assert below == pytest.approx(above, rel=1e-6)


def test_an_interval_that_says_nothing_else_is_of_95_percent():
    assert wilson_interval(7, 30) == wilson_interval(7, 30, 0.95)
    assert measure_accuracy([((0.0, -1.0), i % 3 == 0) for i in range(30)]).interval == (
        wilson_interval(20, 30, 0.95)
    )
    errors, words = np.arange(20) % 4, np.full(20, 6)
    assert bootstrap_ratio_interval(errors, words) == bootstrap_ratio_interval(errors, words, 0.95)
    texts = ["a b c", "a b d", "a x y", "b", ""]
    utterances = [count_errors(str(i), "a b c", text) for i, text in enumerate(texts)]
    errors, words = zip(*((u.word_errors, u.words) for u in utterances), strict=True)
    expected = bootstrap_ratio_interval(np.array(errors), np.array(words), 0.95)
    assert word_error_rate(utterances).interval == expected
    errors, letters = zip(*((u.character_errors, u.characters) for u in utterances), strict=True)
    expected = bootstrap_ratio_interval(np.array(errors), np.array(letters), 0.95)
    assert character_error_rate(utterances).interval == expected


@pytest.mark.parametrize(("confidence", "error"), LEVELS)
def test_the_bootstrap_interval_is_that_of_its_exact_distribution(confidence, error):
    """Utterances of one length, right or wrong: the number of wrong ones drawn is binomial."""
    n, wrong = 400, 80
    errors = (np.arange(n) < wrong).astype(int)
    found = bootstrap_ratio_interval(errors, np.ones(n, int), confidence, resamples=10_000)
    tail = (1 - confidence) / 2
    # Whole numbers, and a bound between the tails that differ by a few standard errors.
    slack = 4 * math.sqrt(tail / 10_000)
    for bound, share in zip(found, (tail, 1 - tail), strict=True):
        low, high = stats.binom.ppf([max(share - slack, 0), min(share + slack, 1)], n, wrong / n)
        assert low <= n * bound <= high


def test_the_bootstrap_interval_covers_as_often_as_it_says():
    """A percentile bootstrap of 80 utterances covers a little less than nominal."""
    rng = np.random.default_rng(1)
    trials, rate = 400, 0.2
    covered = dict.fromkeys((0.8, 0.9, 0.95), 0)
    for trial in range(trials):
        words = rng.integers(5, 15, 80)
        errors = rng.binomial(words, rate)
        for confidence in covered:
            lower, upper = bootstrap_ratio_interval(errors, words, confidence, 200, trial)
            covered[confidence] += lower <= rate <= upper
    for confidence, count in covered.items():
        spread = 2.5 * math.sqrt(confidence * (1 - confidence) / trials)
        assert confidence - 0.015 - spread < count / trials < confidence + spread
    assert covered[0.9] / trials < 0.925 < covered[0.95] / trials


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
