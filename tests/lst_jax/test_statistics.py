"""Properties of the Wilson interval."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.evaluation.statistics import wilson_interval

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
