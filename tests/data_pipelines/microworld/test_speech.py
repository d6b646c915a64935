from __future__ import annotations

import dataclasses
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.microworld import speech, stories
from data_pipelines.microworld.speech import VOICES, Voice, synthesize

_VOICE = VOICES[0]
_AWKWARD = (
    *("in", "the", "of", "a", "out", "and", "for", "to", "was", "it", "Mr.", "went!", "x"),
    *("don't", "'tis", "12", "1,234", "3.5", "$5", "U.S.A.", "ice-cream", "a/b", "(so)"),
    *("café", "naïve", "—", "...", "&", "[[x]]", "<b>"),
)


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))


@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: f"{voice.variant}-{voice.rate}")
def test_every_word_of_a_story_is_timed_once_in_every_voice(voice):
    text = " ".join(stories.generate_story(0, "train", 3).sentences)
    spoken = synthesize(text, voice)
    assert [timing.text for timing in spoken.words] == text.split()
    last = 0.0
    for timing in spoken.words:
        assert last <= timing.start_s < timing.end_s <= spoken.duration_s
        last = timing.end_s
    assert spoken.samples.dtype == np.int16 and spoken.samples.ndim == 1


def test_every_word_of_the_lexicon_is_timed():
    words = sorted(stories.vocabulary())
    for start in range(0, len(words), 40):
        chunk = words[start : start + 40]
        spoken = synthesize(" ".join(chunk), _VOICE)
        assert [timing.text for timing in spoken.words] == chunk
        durations = [timing.end_s - timing.start_s for timing in spoken.words]
        assert min(durations) > 0.02


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(_AWKWARD),
        min_size=1,
        max_size=12,
    )
)
def test_timings_cover_any_words_in_order(words):
    spoken = synthesize(" ".join(words), _VOICE)
    assert [timing.text for timing in spoken.words] == words
    edges = [x for timing in spoken.words for x in (timing.start_s, timing.end_s)]
    assert edges == sorted(edges)
    assert edges[0] >= 0 and edges[-1] <= spoken.duration_s
    for timing, starts in zip(spoken.words, spoken.phoneme_starts_s, strict=True):
        assert starts[0] == timing.start_s
        assert [*starts, timing.end_s] == sorted([*starts, timing.end_s])


def test_words_that_are_run_together_are_cut_at_phonemes():
    # eSpeak NG reports "in the" and "out of the" as one word each.
    spoken = synthesize("he was in the garden and went out of the house.", _VOICE)
    for timing in spoken.words:
        assert 0.03 < timing.end_s - timing.start_s < 0.5


@pytest.mark.parametrize(
    ("spoken", "weights", "expected"),
    [
        ([100, 200, 300, 400], [1, 3], [[100, 200], [200, 300, 400, 500]]),
        ([100, 200, 300, 400], [2, 2], [[100, 200, 300], [300, 400, 500]]),
        # Of a mark of punctuation nothing is heard.
        ([100, 200, 300, 400], [2, 0, 2], [[100, 200, 300], [300, 300], [300, 400, 500]]),
        # Spoken together, words may have more phonemes or fewer than alone.
        ([100, 200, 300, 400], [1, 1], [[100, 200, 300], [300, 400, 500]]),
        ([100, 300], [3, 3], [[100, 300], [300, 500]]),
        ([150, 200], [1, 1], [[100, 200], [200, 500]]),
        ([100, 600, 50, 400], [4], [[100, 500, 500, 500, 500]]),
        ([], [1, 7], [[100, 300], [300, 500]]),
        ([100, 120], [0, 0], [[100, 300], [300, 500]]),
    ],
)
def test_words_of_a_group_are_cut_by_their_share_of_its_phonemes(spoken, weights, expected):
    assert speech._cut_group(100, 500, spoken, weights) == expected


def test_a_word_has_its_first_event_and_the_first_word_always_one():
    spans = [(0, 2), (3, 6), (7, 16)]  # "in the ice-cream"

    def anchors(*characters):
        events = [speech._WordEvent(c, 10 * c, i) for i, c in enumerate(characters)]
        found = speech._anchors(events, spans)
        return {index: event.character for index, event in found.items()}

    assert anchors(0, 3, 7, 11) == {0: 0, 1: 3, 2: 7}
    assert anchors(0, 7, 7, 3) == {0: 0, 2: 7}
    assert anchors(2, 7) == {0: 2, 2: 7}
    assert anchors(0, 15, 16) == {0: 0, 2: 15}
    assert anchors(16) == anchors() == {0: 0}
    some = dict.fromkeys((0, 2, 3), speech._WordEvent(0, 0, 0))
    assert speech._merged_words(some, 5) == [0, 1, 3, 4]
    assert speech._merged_words(some, 4) == [0, 1]


def test_pauses_behind_a_word_are_silence_and_those_inside_are_not():
    names = [("t", 0), ("_:", 40), ("i", 60), ("_|", 90), ("_:", 100), ("n", 150), ("_:", 180)]
    phonemes = [speech._PhonemeEvent(*event) for event in names]
    anchors = {0: speech._WordEvent(0, 5, 0), 1: speech._WordEvent(4, 140, 5)}
    bounds = speech._word_bounds(["ti", "n"], anchors, phonemes, 300, {})
    assert bounds == [[5, 60, 90], [140, 180]]
    bounds = speech._word_bounds(["ti", "n", "x"], anchors, phonemes[:-1], 300, {"n": 1, "x": 1})
    assert bounds == [[5, 60, 90], [140, 140], [140, 300]]


def test_phonemes_of_words_are_timed():
    spoken = synthesize("the cat sat in the garden.", _VOICE)
    assert [len(starts) for starts in spoken.phoneme_starts_s] == [2, 3, 3, 2, 2, 5]
    assert min(np.diff(np.concatenate(spoken.phoneme_starts_s))) > 0.02


def test_silence_lies_between_sentences_and_words_are_audible():
    spoken = synthesize("tom found the ball. then anna went home.", _VOICE)
    rate = spoken.sample_rate
    gap = spoken.words[4].start_s - spoken.words[3].end_s
    assert gap > 0.1
    quiet = spoken.samples[
        round(spoken.words[3].end_s * rate) : round(spoken.words[4].start_s * rate)
    ]
    for timing in spoken.words:
        loud = spoken.samples[round(timing.start_s * rate) : round(timing.end_s * rate)]
        assert _rms(loud) > 20 * _rms(quiet[quiet.size // 4 :])
    assert spoken.duration_s - spoken.words[-1].end_s > 0.1


def test_speech_does_not_depend_on_what_was_spoken_before():
    first = synthesize("the cat sat on the mat.", VOICES[1])
    for voice in VOICES:
        synthesize("something else entirely.", voice)
    time.sleep(1.1)  # eSpeak NG seeds its noise with the clock's seconds
    again = synthesize("the cat sat on the mat.", VOICES[1])
    np.testing.assert_array_equal(first.samples, again.samples)
    assert first.words == again.words


def test_voices_differ_and_a_higher_rate_is_shorter():
    text = "the cat sat on the mat."
    audio = {synthesize(text, voice).samples.tobytes() for voice in VOICES}
    assert len(audio) == len(VOICES)
    fast = synthesize(text, dataclasses.replace(_VOICE, rate=300))
    assert fast.duration_s < synthesize(text, _VOICE).duration_s


@pytest.mark.parametrize("text", ["", "  \n ", "a\0b"])
def test_text_without_words_or_with_nul_is_refused(text):
    with pytest.raises(ValueError, match="text is"):
        synthesize(text, _VOICE)


def test_an_unknown_voice_is_refused():
    with pytest.raises(ValueError, match="gmw/xx"):
        synthesize("hello", Voice("gmw/xx", "", 200, 50))


@pytest.mark.parametrize(
    "change", [{"rate": 79}, {"rate": 451}, {"pitch": -1}, {"pitch": 100}, {"name": ""}]
)
def test_a_voice_out_of_range_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(_VOICE, **change)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r"espeakng_loader.*lst-jax\[demo\]"):
        synthesize("hello", _VOICE)
