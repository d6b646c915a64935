import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.training.held_out_records import held_out_mask


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 2000), st.integers(0, 2000), st.floats(0, 0.999))
def test_a_record_is_held_out_whatever_records_follow(source, size, more, share):
    mask = held_out_mask(source, size + more, share)
    np.testing.assert_array_equal(mask[:size], held_out_mask(source, size, share))


@settings(deadline=None)
@given(st.integers(0, 20), st.floats(0, 0.999), st.floats(0, 0.999))
def test_a_larger_share_holds_out_what_a_smaller_one_does(source, first, second):
    small, large = sorted((first, second))
    assert not np.any(held_out_mask(source, 500, small) & ~held_out_mask(source, 500, large))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9])
def test_the_share_is_kept_and_sources_are_apart(share):
    size = 100_000
    masks = np.stack([held_out_mask(source, size, share) for source in range(3)])
    deviation = np.sqrt(share * (1 - share) / size)
    assert np.all(np.abs(masks.mean(axis=1) - share) <= 4 * deviation)
    # Of two sources, as often held out together as chance has it.
    both = (masks[0] & masks[1]).mean()
    assert abs(both - share**2) <= 4 * np.sqrt(share**2 / size)
    # So are a record and the next one.
    pairs = (masks[0, 1:] & masks[0, :-1]).mean()
    assert abs(pairs - share**2) <= 4 * np.sqrt(share**2 / size)


def test_what_is_held_out_never_changes():
    """A run goes on, and is compared, with the records of the versions before."""
    assert np.flatnonzero(held_out_mask(0, 40, 0.1)).tolist() == GOLDEN[0]
    assert np.flatnonzero(held_out_mask(1, 40, 0.1)).tolist() == GOLDEN[1]


GOLDEN = ([13, 20, 27, 39], [3, 20])
