"""Word timings to frames: the aligned form of a record, whatever aligner found the timings."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Sequence

import numpy as np

from data_pipelines.records.types import SILENCE
from lst_jax.speech.interfaces import TimedText


def align_units(
    timings: Sequence[TimedText], num_units: int, frame_rate: float
) -> tuple[tuple[str, ...], np.ndarray]:
    """Shares the units of an utterance between its words and the silences around them.

    Boundaries are rounded to whole frames, then moved as little as it takes to give every word
    at least one unit, so that each has its patch. A silence that rounds to no frame
    disappears. (Records of other alignments may hold words of no unit: those have no patch, see
    `patching.aligned_run_lengths`.)

    Args:
      timings: at least one word, in order, not overlapping.
      num_units: units of the utterance, at least as many as words.
      frame_rate: units per second.

    Returns:
      `words`, the W words with `SILENCE` between them where there is one, and `unit_counts`,
      int32 (W,), at least 1 each, summing to `num_units`.

    Raises:
      ValueError: the timings are not as described, or the units are fewer than the words.
    """
    _check_timings(timings)
    _check_frame_rate(frame_rate)
    if num_units < len(timings):
        raise ValueError(
            f"num_units is {num_units}, expected at least one for each of {len(timings)} words"
        )
    names = [SILENCE]
    ends = [round(timings[0].start_s * frame_rate)]
    for i, timing in enumerate(timings):
        following = timings[i + 1].start_s if i + 1 < len(timings) else math.inf
        names += [timing.text, SILENCE]
        ends.append(round(timing.end_s * frame_rate))
        ends.append(round(min(following * frame_rate, num_units)))
    needs = np.array([name != SILENCE for name in names], dtype=np.int64)
    # A boundary leaves room for the words before it and for those after it.
    before = np.cumsum(needs)
    after = num_units - (before[-1] - before)
    # e_i ≥ e_{i−1} + need_i is "e − before never falls"; clipping then keeps every gap.
    slack = np.maximum.accumulate(np.maximum(np.array(ends, dtype=np.int64), before) - before)
    bounds = np.minimum(slack + before, after)
    bounds[-1] = num_units
    counts = np.diff(bounds, prepend=0)
    kept = counts > 0
    words = tuple(name for name, keep in zip(names, kept, strict=True) if keep)
    return words, counts[kept].astype(np.int32)


def time_words(timings: Sequence[TimedText], words: Sequence[str], duration_s: float) -> np.ndarray:
    """Returns when the words and silences of an utterance are heard.

    Args:
      timings: its words.
      words: the same words with `SILENCE` between some of them, as `align_units` returns them.
      duration_s: of the recording in seconds.

    Returns:
      int32 (W, 2): start and end in milliseconds, in order and not overlapping. A silence lasts
      from the end of the word before it to the start of the next.

    Raises:
      ValueError: the timings are not as `align_units` has them, end after the recording, or are
        of other words.
    """
    _check_timings(timings)
    if timings[-1].end_s > duration_s:
        raise ValueError(f"duration_s is {duration_s}, expected at least {timings[-1].end_s}")
    if [word for word in words if word != SILENCE] != [timing.text for timing in timings]:
        raise ValueError(f"words are {len(words)} that differ from the timings' {len(timings)}")
    edges = [(0.0, 0.0), *((t.start_s, t.end_s) for t in timings), (duration_s, duration_s)]
    times, spoken = [], 0
    for word in words:
        if word == SILENCE:
            times.append((edges[spoken][1], edges[spoken + 1][0]))
        else:
            spoken += 1
            times.append(edges[spoken])
    return _milliseconds(times)


def time_pieces(
    timings: Sequence[TimedText],
    phoneme_starts_s: Sequence[Sequence[float]],
    letters: Sequence[Sequence[int]],
) -> np.ndarray:
    """Returns when the pieces of an utterance's words are heard.

    No synthesizer says which letters a phoneme is for. A word is cut where its phonemes start, at
    as large a part of them as the pieces so far are of its letters; its first piece starts and its
    last piece ends with it. A piece that no phoneme falls to has no length.

    Args:
      timings: the words.
      phoneme_starts_s: for every word the seconds at which its phonemes start, one or more.
      letters: for every word the letters in each of its pieces, one or more pieces.

    Returns:
      int32 (S, 2): start and end of every piece in milliseconds, in order and not overlapping.
    """
    times: list[tuple[float, float]] = []
    for timing, starts, sizes in zip(timings, phoneme_starts_s, letters, strict=True):
        bounds = [timing.start_s, *starts[1:], timing.end_s]
        parts = np.cumsum([0, *sizes]) if any(sizes) else np.arange(len(sizes) + 1)
        cuts = np.floor(parts * (len(starts) / parts[-1]) + 0.5).astype(int)
        edges = [bounds[cut] for cut in cuts]
        times += itertools.pairwise(edges)
    return _milliseconds(times)


def align_pieces(
    piece_times_ms: np.ndarray,
    piece_counts: np.ndarray,
    unit_counts: np.ndarray,
    frame_rate: float,
) -> np.ndarray:
    """Shares the units of every word between its pieces.

    A piece's last unit is the one at its end, rounded to whole frames and kept within the word.

    Args:
      piece_times_ms: int (S, 2) start and end of every piece.
      piece_counts: int (W,) pieces of every word, 0 for a silence; they sum to S.
      unit_counts: int (W,) units of every word and silence.
      frame_rate: units per second.

    Returns:
      int32 (S,): units of every piece, at least 0; those of a word's pieces sum to the word's.
    """
    _check_frame_rate(frame_rate)
    ends = np.round(piece_times_ms[:, 1] * (frame_rate / 1000)).astype(np.int64)
    word_ends = np.cumsum(unit_counts)
    first = np.repeat(word_ends - unit_counts, piece_counts)
    last = np.repeat(word_ends, piece_counts)
    ends = np.clip(ends, first, last)
    last_pieces = np.cumsum(piece_counts)[piece_counts > 0] - 1
    ends[last_pieces] = last[last_pieces]
    starts = np.concatenate([[0], ends[:-1]])
    return (ends - np.maximum(starts, first)).astype(np.int32)


def _milliseconds(times_s: Sequence[tuple[float, float]]) -> np.ndarray:
    return np.round(np.array(times_s).reshape(-1, 2) * 1000).astype(np.int32)


def label_frames(
    timings: Sequence[TimedText], num_frames: int, frame_rate: float, parts: int = 4
) -> np.ndarray:
    """Says which part of which word is spoken at the center of every frame.

    Args:
      timings: words in order, not overlapping.
      num_frames: frames F of the utterance.
      frame_rate: frames per second.
      parts: into how many equal parts a word is divided.

    Returns:
      Strings (F,): "word/part", the word in lower case without punctuation, or `SILENCE`.

    Raises:
      ValueError: the timings are not as described.
    """
    _check_timings(timings)
    _check_frame_rate(frame_rate)
    if parts < 1:
        raise ValueError(f"parts is {parts}, expected at least 1")
    starts = np.array([timing.start_s for timing in timings])
    ends = np.array([timing.end_s for timing in timings])
    words = [_without_punctuation(timing.text.lower()) for timing in timings]
    times = (np.arange(num_frames) + 0.5) / frame_rate
    word = np.searchsorted(starts, times, side="right") - 1
    spoken = (word >= 0) & (times < ends[word])
    part = np.zeros(num_frames, np.int64)
    inside = times[spoken] - starts[word[spoken]]
    part[spoken] = parts * inside / (ends - starts)[word[spoken]]
    labels = [
        f"{words[word[i]]}/{min(part[i], parts - 1)}" if spoken[i] else SILENCE
        for i in range(num_frames)
    ]
    return np.array(labels, dtype=np.str_)


def _without_punctuation(word: str) -> str:
    """Keeps letters, their marks (many scripts write vowels and tones so), numbers, apostrophes."""
    return "".join(c for c in word if c == "'" or unicodedata.category(c)[0] in "LMN")


def _check_timings(timings: Sequence[TimedText]) -> None:
    if not timings:
        raise ValueError("timings is empty, expected at least one word")
    last = 0.0
    for timing in timings:
        if not last <= timing.start_s <= timing.end_s < math.inf:
            raise ValueError(
                f"timings holds {timing}, expected {last} <= start_s <= end_s, all finite"
            )
        last = timing.end_s


def _check_frame_rate(frame_rate: float) -> None:
    if not 0 < frame_rate < math.inf:
        raise ValueError(f"frame_rate is {frame_rate}, expected a positive number")
