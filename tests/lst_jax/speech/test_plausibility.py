"""What alignments are taken for impossible, and what for true."""

import dataclasses

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
