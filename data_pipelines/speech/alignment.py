"""Word timings to frames: the aligned form of a record, whatever aligner found the timings."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from data_pipelines.records.types import SILENCE

_PUNCTUATION = re.compile(r"[^\w']+")


@dataclasses.dataclass(frozen=True)
class WordTiming:
    """A word and when it is spoken, in seconds."""

    word: str
    start_s: float
    end_s: float


def align_units(
    timings: Sequence[WordTiming], num_units: int, frame_rate: float
) -> tuple[tuple[str, ...], np.ndarray]:
    """Shares the units of an utterance between its words and the silences around them.

    Boundaries are rounded to whole frames, then moved as little as it takes to give every word
    at least one unit. A silence that rounds to no frame disappears.

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
        names += [timing.word, SILENCE]
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


def label_frames(
    timings: Sequence[WordTiming], num_frames: int, frame_rate: float, parts: int = 4
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
    words = [_PUNCTUATION.sub("", timing.word.lower()) for timing in timings]
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


def _check_timings(timings: Sequence[WordTiming]) -> None:
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
