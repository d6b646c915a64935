"""pocketsphinx on speech whose words and times are known: the built-in synthesizer's."""

import numpy as np
import pytest
import soxr

from data_pipelines.microworld.speech import Voice, synthesize
from data_pipelines.speech import sphinx
from lst_jax.speech.interfaces import Alignment, Rejection

TEXT = "Anna walked to the station, and then 2 friends \u2014 Zzorbin was one \u2014 came."


@pytest.fixture(scope="module")
def spoken():
    speech = synthesize(TEXT.replace("\u2014 ", ""), Voice("gmw/en-US", "", 160, 50))
    samples = soxr.resample(speech.samples / 2**15, speech.sample_rate, 16_000)
    return samples.astype(np.float32), speech.words


@pytest.fixture(scope="module")
def aligner():
    return sphinx.open_aligner("", {})


def test_words_are_where_the_synthesizer_says_them(spoken, aligner):
    samples, words = spoken
    short = samples[: len(samples) // 2]
    alone, again = aligner.align([samples], [TEXT])[0], aligner.align([short, samples], ["x", TEXT])
    assert isinstance(alone, Alignment) and alone == again[1]  # whatever came before
    assert [word.text for word in alone.words] == TEXT.split()
    found = [word for word in alone.words if word.text != "\u2014"]
    errors = [abs(a.end_s - b.end_s) for a, b in zip(found, words, strict=True)]
    assert np.median(errors) < 0.06
    assert all(word.score is not None and word.score < 0 for word in found)
    dashes = [word for word in alone.words if word.text == "\u2014"]
    assert all(word.start_s == word.end_s and word.score is None for word in dashes)


def test_words_that_cannot_be_said_or_found_are_rejected(spoken):
    samples, _ = spoken
    strict = sphinx.open_aligner("", {"unknown": "reject"})
    found = strict.align(
        [samples] * 3 + [samples[:300]], [TEXT, "a * b", "\u2014", "anna walked to the station"]
    )
    kinds = [rejection.kind for rejection in found if isinstance(rejection, Rejection)]
    assert kinds == ["missing-letter", "missing-letter", "no-words", "no-path"]
    assert isinstance(found[0], Rejection) and "Zzorbin" in found[0].reason


def test_options_and_waveforms_of_another_kind_are_refused(aligner):
    with pytest.raises(ValueError, match="of pocketsphinx is 'x', expected spell or"):
        sphinx.open_aligner("", {"unknown": "x"})
    with pytest.raises(ValueError, match="no argument"):
        sphinx.open_recognizer("model", {})
    with pytest.raises(ValueError, match="expected finite floats"):
        aligner.align([np.zeros(16_000, np.int16)], ["anna"])
