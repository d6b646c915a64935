"""Properties of choices by likelihood and of their tables."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.evaluation.choices import (
    ChoiceScores,
    credit,
    measure_accuracy,
)
from lst_jax.evaluation.statistics import wilson_interval
from lst_jax.evaluation.tables import format_interval, format_percent, format_rate, format_rows


def test_credit_of_ties_is_shared():
    assert credit((-1.0, -2.0), 0) == 1
    assert credit((-1.0, -2.0), 1) == 0
    assert credit((-1.0, -1.0, -2.0, -1.0), 3) == pytest.approx(1 / 3)
    assert credit((-1.0, -1.0, -2.0), 2) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3, 0), min_size=1, max_size=6))
def test_candidates_share_one_credit(scores):
    assert sum(credit(scores, i) for i in range(len(scores))) == pytest.approx(1)


def test_accuracy_is_the_mean_credit_with_its_wilson_interval():
    accuracy = measure_accuracy([((-1.0, -2.0), 0), ((-1.0, -2.0), 1), ((-1.0, -1.0), 1)])
    assert accuracy.share == pytest.approx(0.5)
    assert accuracy.interval == wilson_interval(1.5, 3)
    with pytest.raises(ValueError, match="at least one trial"):
        measure_accuracy([])


def test_versions_of_an_item_count_as_one_by_their_mean():
    right, wrong = ((-1.0, -2.0), 0), ((-1.0, -2.0), 1)
    accuracy = measure_accuracy([right, wrong, wrong, right, right], ["a", "a", "a", "a", "b"])
    assert accuracy.share == (0.5 + 1) / 2  # not 3 of 5


def test_log_probabilities_are_divided_by_the_number_of_tokens():
    scores = ChoiceScores("set", "1", None, 0, (-6.0, -6.0), (3, 2))
    assert scores.normalized == (-2.0, -3.0)


def test_names_stand_to_the_left_and_numbers_to_the_right():
    assert format_rows([("set", "n"), ("a", "1000")], num_names=1) == "set     n\na    1000"
    assert format_percent(0.4567) == "45.7"
    assert format_interval((0.4, 1.0)) == "40.0 … 100.0"
    assert format_rate(0.4567, (0.4, 1.0)) == "45.7 (40.0 … 100.0)"
