"""Word ends of aligners compared, where both have them."""

import pytest

from experiments.benchmarks.aligners import _compare


def test_ends_are_compared_sentence_by_sentence_and_rejects_left_out():
    one, other = [[1.0, 2.0], [1.0], []], [[1.1, 2.0], [], []]
    found = _compare(one, other)
    assert found["words"] == 2
    assert found["median_ms"] == pytest.approx(50)
    assert _compare([[1.0]], [[]]) == {"words": 0}
