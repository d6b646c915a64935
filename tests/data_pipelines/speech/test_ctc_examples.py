"""Rows for training a CTC model: the letter of every frame, and batches that are functions of
their number."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.speech.ctc_examples import (
    Clip,
    CTCBatches,
    CTCDataConfig,
    label_letters,
    make_labels,
    spell_clip,
)
from data_pipelines.speech.spelling import Speller
from lst_jax.speech.interfaces import Rejection, TimedText
from lst_jax.speech.wav2vec2_config import Wav2Vec2Config

LABELS = make_labels("ABEL")
NAMES = {number: label for label, number in LABELS.items()} | {0: "_"}
MODEL = Wav2Vec2Config(conv_dim=(8, 8), conv_kernel=(32, 20), conv_stride=(20, 16))
CONFIG = CTCDataConfig(batch_size=3, row_s=0.6)


def _read(frames) -> str:
    return "".join(NAMES.get(number, "?") for number in frames)


def _even(word: str, start: float, end: float):
    edges = np.linspace(start, end, len(word) + 1)
    return word, np.stack([edges[:-1], edges[1:]], axis=1)


def test_frames_have_the_letters_that_are_said_at_their_centers():
    centers = (np.arange(20) + 0.5) / 10
    words = [_even("AB", 0.2, 0.6), _even("BELL", 0.6, 1.4), _even("A", 1.6, 1.8)]
    assert _read(label_letters(words, centers, LABELS)) == "__AABB|BEELL_L|_AA__"
    assert _read(label_letters([], centers[:3], LABELS)) == "___"
    assert _read(label_letters([_even("LL", 0, 0.2)], centers[:2], LABELS)) == "LL"


def test_letters_of_a_word_share_its_time_and_punctuation_is_passed_over():
    words = [TimedText("Bell,", 0.1, 0.5), TimedText("\u2014", 0.5, 0.5)]
    clip = spell_clip(np.zeros(8000), words, None, Speller(frozenset("ABEL")))
    assert isinstance(clip, Clip) and clip.words == ("BELL",) and clip.times_s is not None
    np.testing.assert_allclose(clip.times_s[0][:, 0], [0.1, 0.2, 0.3, 0.4])
    late = spell_clip(np.zeros(8000), words[:1], [[0.1, 0.45]], Speller(frozenset("ABEL")))
    assert isinstance(late, Clip) and late.times_s is not None
    assert late.times_s[0][2, 0] == 0.45  # two phonemes for four letters
    assert isinstance(
        spell_clip(np.zeros(9), [TimedText("x", 0, 1)], None, Speller("A")), Rejection
    )


def _batches(timed: bool = True) -> CTCBatches:
    def clip(index: int) -> Clip | None:
        samples = np.random.default_rng(index).integers(-999, 999, 2000).astype(np.int16)
        word, times = _even("ABLE"[: index + 1], 0.02, 0.1)
        return None if index == 3 else Clip(samples, (word,), (times,) if timed else None)

    return CTCBatches(clip, 4, LABELS, MODEL, CONFIG)


def test_a_batch_is_a_function_of_its_number():
    first, second = _batches(), _batches()
    wanted = [next(first) for _ in range(3)]
    next(second)
    state = second.get_state()
    for batches in (second, _batches()):
        batches.set_state(state)
        for array, expected in zip(next(batches), wanted[1], strict=True):
            np.testing.assert_array_equal(array, expected)
    other = CTCBatches(lambda i: None, 1, LABELS, MODEL, dataclasses.replace(CONFIG, seed=1))
    empty = next(other)
    assert (empty.frame_targets == 0).all() and (empty.lengths == 0).all()


def test_targets_are_what_the_frames_say():
    row = next(_batches())
    for frames, targets, length in zip(row.frame_targets, row.targets, row.lengths, strict=True):
        collapsed = [x for i, x in enumerate(frames) if x and (i == 0 or frames[i - 1] != x)]
        assert _read(collapsed) == _read(targets[:length])
        assert "|" in _read(frames) and not targets[length:].any()
    np.testing.assert_allclose(row.waveforms.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(row.waveforms.std(axis=1), 1, atol=1e-3)


def test_frames_of_clips_without_times_are_unknown_and_those_between_are_blank():
    frames = next(_batches(timed=False)).frame_targets
    assert set(np.unique(frames)) == {-1, 0}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_clean_rows_are_heard_over_their_noise(share):
    clip = Clip(np.full(4000, 0.5, np.float32), ("A",), None)
    config = dataclasses.replace(CONFIG, clean_share=share, row_s=0.25, batch_size=8)
    row = next(CTCBatches(lambda i: clip, 1, LABELS, MODEL, config))
    spread = row.waveforms.std(axis=1)
    assert np.isfinite(row.waveforms).all() and (spread > 0.9).all()


@pytest.mark.parametrize(
    ("word", "row_s", "length"), [("AB", 0.06, 2), ("ABA", 0.06, 0), ("AA", 0.06, 0)]
)
def test_a_row_has_all_its_letters_or_none(word, row_s, length):
    config = CTCDataConfig(batch_size=1, row_s=row_s)
    clip = Clip(np.full(960, 0.5, np.float32), (word,), None)  # all of the row
    row = next(CTCBatches(lambda i: clip, 1, LABELS, MODEL, config))
    assert (row.frame_targets == -1).all()
    assert row.frame_targets.shape[1] == 2 and row.lengths.tolist() == [length]
