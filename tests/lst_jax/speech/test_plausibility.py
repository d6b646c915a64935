"""What alignments are taken for impossible, and what for true."""

import dataclasses
import math

import pytest

from lst_jax.speech.interfaces import TimedText
from lst_jax.speech.plausibility import PlausibilityConfig, check_plausible

CONFIG = PlausibilityConfig()
WORDS = tuple(TimedText(f"w{i}", 0.4 * i, 0.4 * i + 0.3, -0.5) for i in range(20))
DURATION_S = 9.0


def _kind(words, config=CONFIG, duration_s=DURATION_S):
    rejection = check_plausible(words, duration_s, config)
    return rejection and rejection.kind


def _put(index: int, **changes) -> list[TimedText]:
    words = list(WORDS)
    words[index] = dataclasses.replace(words[index], **changes)
    return words


def test_an_even_alignment_is_plausible_with_scores_or_without():
    assert _kind(WORDS) is None
    assert _kind([dataclasses.replace(word, score=None) for word in WORDS]) is None
    assert _kind(WORDS[:1], duration_s=0.4) is None


@pytest.mark.parametrize(
    ("kind", "words", "setting"),
    [
        ("long-word", _put(-1, start_s=7.6, end_s=13.0), "longest_word_s"),
        ("long-silence", _put(-1, start_s=18.0, end_s=18.5), "longest_silence_s"),
        (
            "short-words",
            [*WORDS[:9], *(TimedText(c, 3.6, 3.6) for c in "abc")],
            "most_short_words",
        ),
        ("low-score", [dataclasses.replace(word, score=-3.1) for word in WORDS], "least_score"),
        (
            "drift",
            [*WORDS[:11], *(dataclasses.replace(word, score=-2.6) for word in WORDS[11:])],
            "largest_fall",
        ),
    ],
)
def test_what_cannot_be_true_is_rejected_unless_its_check_is_off(kind, words, setting):
    duration = 20.0 if kind == "long-silence" else 13.5
    rejection = check_plausible(words, duration, CONFIG)
    assert rejection is not None and rejection.kind == kind and "expected" in rejection.reason
    assert _kind(words, dataclasses.replace(CONFIG, **{setting: None}), duration) is None


def test_a_drift_is_placed_where_the_score_falls():
    words = [*WORDS[:11], *(dataclasses.replace(word, score=-2.6) for word in WORDS[11:])]
    rejection = check_plausible(words, DURATION_S, CONFIG)
    assert rejection is not None
    assert "from -0.50 to -2.60 after 4.30 s" in rejection.reason


def test_a_bad_word_or_an_early_one_is_no_drift():
    assert _kind(_put(-1, score=-9.0)) is None
    assert _kind(_put(0, score=-9.0)) is None


@pytest.mark.parametrize(
    "words",
    [
        _put(3, start_s=0.9),
        _put(3, end_s=1.0),
        _put(0, start_s=-0.1),
        _put(-1, end_s=9.1),
        _put(-1, end_s=float("nan")),
        _put(-1, start_s=float("nan")),
    ],
)
def test_times_out_of_order_or_out_of_the_recording_are_rejected(words):
    assert _kind(words) == "word-times"


def test_no_words_are_no_alignment():
    assert _kind([]) == "no-words"


def _spoken(*spans, scores=()):
    scores = scores or [-0.5] * len(spans)
    return [TimedText("w", *span, score) for span, score in zip(spans, scores, strict=True)]


_UNIT = [(i, i + 1) for i in range(5)]


@pytest.mark.parametrize(
    ("setting", "limit", "words", "duration_s"),
    [
        ("longest_word_s", 0.5, _spoken((0, 0.5)), 0.5),
        ("longest_silence_s", 0.5, _spoken((0.5, 1)), 1),
        ("longest_silence_s", 0.5, _spoken((0, 1)), 1.5),
        ("longest_silence_s", 0.5, _spoken((0, 1), (1.5, 2)), 2),
        ("most_short_words", 2, _spoken((0, 1), (1, 1), (1, 1), (1, 2), (2, 2)), 2),
        ("least_score", -1.5, _spoken((0, 1), (1, 4), scores=[-3, -1]), 4),  # by their lengths
        ("largest_fall", 2.0, _spoken(*_UNIT[:4], scores=[0, 0, -2, -2]), 4),
        ("largest_fall", 3.0, _spoken(*_UNIT, scores=[0, 0, -3, -3, -3]), 5),
        ("largest_fall", 3.0, _spoken(*_UNIT, scores=[0, 0, 0, -3, -3]), 5),
    ],
)
def test_a_limit_is_met_and_the_least_beyond_it_is_not(setting, limit, words, duration_s):
    off = {"longest_word_s": None, "longest_silence_s": None, "least_score": None}
    off |= {"most_short_words": None, "largest_fall": None, "fall_words": 2}
    stricter = limit - 1 if isinstance(limit, int) else math.nextafter(limit, 0)
    kinds = [
        _kind(words, PlausibilityConfig(**off | {setting: value}), duration_s)
        for value in (limit, stricter)
    ]
    assert kinds[0] is None and kinds[1] is not None


def test_a_word_of_the_shortest_length_is_none_of_no_length():
    words = _spoken((0, 0.25), (0.25, 0.5))
    for shortest, kind in ((0.25, None), (math.nextafter(0.25, 1), "short-words")):
        config = PlausibilityConfig(shortest_word_s=shortest, most_short_words=1)
        assert _kind(words, config, 0.5) == kind


def test_too_few_words_for_both_sides_are_no_drift_and_none_of_length_have_a_mean():
    words = _spoken(*_UNIT[:3], scores=[0, -2, -2])
    assert _kind(words, PlausibilityConfig(largest_fall=0.1, fall_words=2), 3) is None
    words = _spoken((0, 0), (0, 0), scores=[-1, -1])
    assert _kind(words, PlausibilityConfig(least_score=-1.0 - 1e-9), 0.1) is None
