"""Rows for training a CTC model: clips of speech, their letters, and the letter of every frame."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple

import numpy as np

from data_pipelines.speech.alignment import time_pieces
from data_pipelines.speech.hugging_face import normalize_waveform
from data_pipelines.speech.random_rows import RandomRows
from data_pipelines.speech.spelling import Speller
from lst_jax.settings import BatchRows, Bounds, Fraction, Seed32, configuration, require
from lst_jax.speech.interfaces import Rejection, TimedText
from lst_jax.speech.wav2vec2_config import (
    Wav2Vec2Config,
    frame_count,
    receptive_field,
    samples_per_frame,
)

SAMPLE_RATE = 16_000
BLANK, DELIMITER = "<pad>", "|"
_SPECIAL = (BLANK, "<s>", "</s>", "<unk>", DELIMITER)  # as wav2vec 2.0 has them

_NOISE_DB = (5.0, 50.0)  # of the speech over the noise
_GAIN_DB = 6.0
_TILT = (-0.5, 0.9)  # of a first-order filter: dull to bright
_TRIES = 8  # clips that are tried for the rest of a row


@configuration
class CTCDataConfig:
    """Rows.

    Attributes:
      batch_size: rows of a batch.
      row_s: seconds of each; clips that are longer are left out.
      seed: of what is said, drawn and mixed.
      clean_share: of rows without noise and filter.
    """

    batch_size: BatchRows = 16
    row_s: Annotated[float, Bounds(above=0, most=120)] = 4.0
    seed: Seed32 = 0
    clean_share: Fraction = 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A recording of a few words.

    Attributes:
      samples: float32 or int16 (S,) at 16 kHz.
      words: the letters of each word, one or more.
      times_s: of each letter of each word its start and end, (letters, 2). None: they are unknown.
    """

    samples: np.ndarray
    words: tuple[str, ...]
    times_s: tuple[np.ndarray, ...] | None


class Row(NamedTuple):
    """A row of `lst_jax.training.ctc_task.CTCBatch`."""

    waveforms: np.ndarray
    targets: np.ndarray
    lengths: np.ndarray
    frame_targets: np.ndarray


def make_labels(letters: Sequence[str]) -> dict[str, int]:
    """Returns the ids of labels: the special ones of wav2vec 2.0, then the letters."""
    return {label: i for i, label in enumerate([*_SPECIAL, *letters])}


def spell_clip(
    samples: np.ndarray,
    words: Sequence[TimedText],
    phoneme_starts_s: Sequence[Sequence[float]] | None,
    speller: Speller,
    *,
    timed: bool = True,
) -> Clip | Rejection:
    """Returns a clip of words as they are written; those without letters are passed over.

    Args:
      samples: its recording at 16 kHz.
      words: what is said.
      phoneme_starts_s: see `time_pieces`. None: letters share a word's time evenly.
      speller: of the words.
      timed: whether the words' times are known.
    """
    spelled, times = [], []
    for i, word in enumerate(words):
        letters = speller.spell(word.text)
        if isinstance(letters, Rejection):
            return letters
        if not letters:
            continue
        parts = letters.split()
        starts = [word.start_s] if phoneme_starts_s is None else phoneme_starts_s[i]
        count = len("".join(parts))
        if phoneme_starts_s is None:
            starts = np.linspace(word.start_s, word.end_s, count, endpoint=False).tolist()
        cut = time_pieces([word], [starts], [[1] * count]) / 1000
        for part in parts:  # a number may be several words
            spelled.append(part)
            times.append(cut[: len(part)])
            cut = cut[len(part) :]
    return Clip(samples, tuple(spelled), tuple(times) if timed else None)


def label_letters(
    words: Sequence[tuple[str, np.ndarray]], centers_s: np.ndarray, labels: Mapping[str, int]
) -> np.ndarray:
    """Returns the label of every frame, int32 (L,).

    A letter lasts as long as it is said. A delimiter is at the first frame behind each word but the
    last, be it the next word's. A letter that follows its like begins with a blank, where it has
    the frames for that.

    Args:
      words: of a row, the letters of each and their times (letters, 2).
      centers_s: times of frames, rising.
      labels: ids.
    """
    found = np.full(len(centers_s), labels[BLANK], np.int32)
    for word, times in words:
        before = ""
        for letter, (start, end) in zip(word, times, strict=True):
            first, last = np.searchsorted(centers_s, (start, end))
            found[first:last] = labels[letter]
            if letter == before and last - first > 1:
                found[first] = labels[BLANK]
            before = letter
    edges = np.searchsorted(centers_s, [times[-1][1] for _, times in words[:-1]])
    found[edges[edges < len(found)]] = labels[DELIMITER]
    return found


class CTCBatches(RandomRows):
    """Rows of clips with gaps between them, some with noise and filtered."""

    def __init__(
        self,
        clips: Callable[[int], Clip | None],
        num_clips: int,
        labels: Mapping[str, int],
        model: Wav2Vec2Config,
        config: CTCDataConfig,
    ) -> None:
        """Takes what batches are made of.

        Args:
          clips: returns the clip of a number below `num_clips`; None where there is none.
          num_clips: clips that there are.
          labels: ids.
          model: whose frames are labeled.
          config: of the rows.
        """
        super().__init__(config.batch_size, config.seed)
        self._clips, self._num_clips = clips, num_clips
        self._labels, self._config = labels, config
        self._samples = round(config.row_s * SAMPLE_RATE)
        self._frames = frame_count(model, self._samples)
        require(self._frames > 0, "CTCDataConfig.row_s", config.row_s, "seconds of a frame or more")
        first, step = receptive_field(model) / 2, samples_per_frame(model)
        self._centers = first + step * np.arange(self._frames)  # in samples

    def draw(self, rng: np.random.Generator) -> Row:
        """Returns a row of what was drawn, its letters and those of its frames."""
        chosen, left = self._choose(rng)
        labels, samples = self._labels, np.zeros(self._samples, np.float32)
        gaps = np.diff(np.sort(rng.integers(0, left + 1, len(chosen))), prepend=0)
        words: list[str] = []
        timed: list[tuple[str, np.ndarray]] = []
        unknown = np.zeros(self._frames, bool)
        end = 0
        for clip, gap in zip(chosen, gaps, strict=True):
            start = end + int(gap)
            end = start + len(clip.samples)
            gain = 10 ** (rng.uniform(-_GAIN_DB, _GAIN_DB) / 20)
            samples[start:end] = gain * _as_float(clip.samples)
            words += clip.words
            if clip.times_s is None:
                unknown |= (self._centers >= start) & (self._centers < end)
                continue
            times = [of_word + start / SAMPLE_RATE for of_word in clip.times_s]
            timed += zip(clip.words, times, strict=True)
        frame_targets = label_letters(timed, self._centers / SAMPLE_RATE, labels)
        frame_targets[unknown] = -1
        spelled = [labels[c] for c in DELIMITER.join(words)]
        repeats = sum(a == b for a, b in itertools.pairwise(spelled))
        length = len(spelled) if len(spelled) + repeats <= self._frames else 0
        targets = np.zeros(self._frames, np.int32)
        targets[:length] = spelled[:length]
        waveform = normalize_waveform(self._disturb(samples, rng))
        return Row(waveform, targets, np.array(length, np.int32), frame_targets)

    def _choose(self, rng: np.random.Generator) -> tuple[list[Clip], int]:
        """Returns clips that fit into a row, and the samples that they leave."""
        chosen: list[Clip] = []
        left = self._samples
        for _ in range(_TRIES):
            clip = self._clips(int(rng.integers(self._num_clips)))
            if clip is not None and len(clip.samples) <= left:
                chosen.append(clip)
                left -= len(clip.samples)
        return chosen, left

    def _disturb(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = rng.standard_normal(len(samples)).astype(np.float32)
        power = float(np.mean(samples**2)) + 1e-10
        clean = rng.random() < self._config.clean_share
        ratio_db = _NOISE_DB[1] if clean else rng.uniform(*_NOISE_DB)
        tilt, color = rng.uniform(*_TILT, 2)
        if not clean:
            samples = _tilt(samples, tilt)
            noise = _tilt(noise, color)
            power = float(np.mean(samples**2)) + 1e-10
        scale = np.sqrt(power / 10 ** (ratio_db / 10) / (np.mean(noise**2) + 1e-10))
        return samples + scale * noise


def _tilt(samples: np.ndarray, amount: float) -> np.ndarray:
    """Filters by a first difference of the amount: loses low tones, or high ones below 0."""
    return samples - amount * np.concatenate([samples[:1], samples[:-1]])


def _as_float(samples: np.ndarray) -> np.ndarray:
    return samples / np.float32(2**15) if samples.dtype == np.int16 else samples
