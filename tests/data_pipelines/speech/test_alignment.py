"""Times and units of words and pieces (the shares of words themselves: test_units.py)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.records.types import SILENCE
from data_pipelines.speech.alignment import (
    align_pieces,
    align_units,
    time_pieces,
    time_words,
)
from lst_jax.speech.interfaces import TimedText

RATE = 25.0


@st.composite
def utterances(draw):
    """Words with times, their phonemes and pieces, and the length of the recording."""
    count = draw(st.integers(1, 6))
    edges = sorted(draw(st.lists(st.floats(0, 3), min_size=2 * count, max_size=2 * count)))
    timings = [TimedText(f"w{i}", *edges[2 * i : 2 * i + 2]) for i in range(count)]
    starts = []
    for timing in timings:
        inside = st.floats(timing.start_s, timing.end_s)
        starts.append((timing.start_s, *sorted(draw(st.lists(inside, max_size=5)))))
    sizes = st.lists(st.integers(0, 4), min_size=1, max_size=4)
    letters = [draw(sizes) for _ in timings]
    return timings, starts, letters, draw(st.floats(edges[-1] + 1, edges[-1] + 2))


@settings(max_examples=200, deadline=None)
@given(utterances())
def test_pieces_share_the_time_and_units_of_their_words(utterance):
    timings, starts, letters, duration = utterance
    words, unit_counts = align_units(timings, int(duration * RATE), RATE)
    word_times = time_words(timings, words, duration)
    piece_times = time_pieces(timings, starts, letters)
    spoken = np.array([word != SILENCE for word in words])
    piece_counts = np.zeros(len(words), np.int32)
    piece_counts[spoken] = list(map(len, letters))
    piece_units = align_pieces(piece_times, piece_counts, unit_counts, RATE)

    for times in (word_times, piece_times):
        assert times.dtype == np.int32
        assert (np.diff(times.ravel()) >= 0).all() and times.min() >= 0
    assert word_times.max() <= round(1000 * duration)
    ends = np.cumsum(piece_counts)
    for (start, end), count, units, last in zip(
        word_times, piece_counts, unit_counts, ends, strict=True
    ):
        if count:
            of_word = slice(last - count, last)
            assert (piece_times[of_word][0, 0], piece_times[of_word][-1, 1]) == (start, end)
            assert (piece_times[of_word][1:, 0] == piece_times[of_word][:-1, 1]).all()
            assert piece_units[of_word].sum() == units
    assert (piece_units >= 0).all() and piece_units.dtype == np.int32


def test_words_are_cut_where_phonemes_start_by_letters():
    timing = TimedText("singing", 1.0, 1.6)
    starts = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    times = time_pieces([timing], [starts], [[4, 3]])
    assert times.tolist() == [[1000, 1300], [1300, 1600]]
    assert time_pieces([timing], [starts[:1]], [[4, 3]]).tolist() == [[1000, 1600], [1600, 1600]]
    # Signs alone have no letters, and share evenly.
    assert time_pieces([timing], [starts], [[0, 0]]).tolist() == [[1000, 1300], [1300, 1600]]


def test_silences_last_from_word_to_word():
    timings = [TimedText("a", 0.2, 0.5), TimedText("b", 0.5, 0.7), TimedText("c", 0.9, 1.0)]
    words = (SILENCE, "a", "b", SILENCE, "c", SILENCE)
    expected = [[0, 200], [200, 500], [500, 700], [700, 900], [900, 1000], [1000, 1500]]
    assert time_words(timings, words, 1.5).tolist() == expected
    # Where a word lasts to the end of the recording, nothing follows.
    expected[-1] = [1000, 1000]
    assert time_words(timings, words, 1.0).tolist() == expected
    assert time_words(timings, ("a", "b", "c"), 1.5).tolist() == [expected[i] for i in (1, 2, 4)]


def test_units_of_pieces_follow_their_ends():
    times = np.array([[0, 100], [100, 119], [200, 400]])
    counts = align_pieces(times, np.array([2, 0, 1]), np.array([3, 2, 5]), RATE)
    assert counts.tolist() == [2, 1, 5]


def test_times_of_other_words_or_after_the_end_are_refused():
    timings = [TimedText("a", 0.2, 0.5)]
    with pytest.raises(ValueError, match="duration_s is"):
        time_words(timings, ("a",), 0.4)
    with pytest.raises(ValueError, match="words are"):
        time_words(timings, ("b",), 1.0)
    with pytest.raises(ValueError, match="frame_rate is"):
        align_pieces(np.array([[0, 100]]), np.array([1]), np.array([1]), 0.0)


def test_boundaries_are_rounded_to_the_nearest_frame():
    words = [TimedText("a", 0, 0.26), TimedText("b", 0.26, 0.5)]
    names, counts = align_units(words, 5, 10.0)
    assert (names, counts.tolist()) == (("a", "b"), [3, 2])
    times = np.array([[0, 260], [260, 500]])
    assert align_pieces(times, np.array([2]), np.array([5]), 10.0).tolist() == [3, 2]


def test_words_leave_room_for_those_after_them_and_pieces_stay_in_their_word():
    words = [TimedText("a", 0, 5), TimedText("b", 5, 5), TimedText("c", 5, 5)]
    names, counts = align_units(words, 5, 1.0)
    assert (names, counts.tolist()) == (("a", "b", "c"), [3, 1, 1])
    times = np.array([[0, 900], [900, 1000], [1000, 2000]])
    pieces = align_pieces(times, np.array([2, 1]), np.array([5, 15]), 10.0)
    assert pieces.tolist() == [5, 0, 15]
