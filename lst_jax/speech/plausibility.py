"""Alignments that cannot be true, whatever aligner they are from.

An aligner finds the best place of every word in a recording even where the words are not said in
it. What such an alignment looks like is stated here, once for every aligner and for alignments
that come from files.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from lst_jax.settings import NaturalFloat, NaturalInt, PositiveFloat, PositiveInt, configuration
from lst_jax.speech.interfaces import Rejection, TimedText


@configuration
class PlausibilityConfig:
    """What an alignment must hold to; None switches a check off.

    Scores are mean log-probabilities of frames, in nats. Where they are unknown, the checks of
    scores pass.

    Attributes:
      longest_word_s: of a word; one of ten syllables takes two seconds, a long number more.
      longest_silence_s: between words, and before the first and after the last.
      shortest_word_s: words shorter than this count as of no length.
      most_short_words: words of no length in a row.
      least_score: of all words, weighted by their lengths. Labels drawn at random from 30 have
        −3.4.
      largest_fall: of the score from the words before a point to those after it: the alignment
        has lost the speech there.
      fall_words: words at least on both sides of that point.
    """

    longest_word_s: PositiveFloat | None = 5.0
    longest_silence_s: PositiveFloat | None = 10.0
    shortest_word_s: NaturalFloat = 0.02
    most_short_words: NaturalInt | None = 2
    least_score: float | None = -3.0
    largest_fall: PositiveFloat | None = 2.0
    fall_words: PositiveInt = 8


def check_plausible(
    words: Sequence[TimedText], duration_s: float, config: PlausibilityConfig
) -> Rejection | None:
    """Returns why an alignment cannot be true; None where nothing speaks against it.

    Args:
      words: of an utterance, as an aligner or a file has them.
      duration_s: of its recording.
      config: limits.

    Returns:
      A rejection of the kind "no-words", "word-times" (they are out of order, or not within the
      recording), "long-word", "short-words", "long-silence", "low-score" or "drift".
    """
    if not words:
        return Rejection("no-words", "no word is aligned, expected one or more")
    return (
        _check_order(words, duration_s)
        or _check_lengths(words, config)
        or _check_silences(words, duration_s, config)
        or _check_scores(words, config)
    )


def _check_order(words: Sequence[TimedText], duration_s: float) -> Rejection | None:
    last = 0.0
    for word in words:
        if not last <= word.start_s <= word.end_s <= duration_s:  # also of what is no number
            return Rejection(
                "word-times",
                f"{_name(word)} is at {word.start_s:.2f} … {word.end_s:.2f} s, expected times in "
                f"{last:.2f} … {duration_s:.2f} s",
            )
        last = word.end_s
    return None


def _check_lengths(words: Sequence[TimedText], config: PlausibilityConfig) -> Rejection | None:
    longest = max(words, key=lambda word: word.end_s - word.start_s)
    length = longest.end_s - longest.start_s
    if config.longest_word_s is not None and length > config.longest_word_s:
        return Rejection(
            "long-word",
            f"{_name(longest)} at {longest.start_s:.2f} s lasts {length:.2f} s, expected at most "
            f"{config.longest_word_s:g} s",
        )
    if config.most_short_words is None:
        return None
    runs = itertools.groupby(words, lambda w: w.end_s - w.start_s < config.shortest_word_s)
    short = max((list(run) for is_short, run in runs if is_short), key=len, default=[])
    if len(short) > config.most_short_words:
        return Rejection(
            "short-words",
            f"{len(short)} words in a row at {short[0].start_s:.2f} s are shorter than "
            f"{config.shortest_word_s:g} s, expected at most {config.most_short_words}",
        )
    return None


def _check_silences(
    words: Sequence[TimedText], duration_s: float, config: PlausibilityConfig
) -> Rejection | None:
    if config.longest_silence_s is None:
        return None
    starts = [0.0, *(word.end_s for word in words)]
    ends = [*(word.start_s for word in words), duration_s]
    start, end = max(zip(starts, ends, strict=True), key=lambda silence: silence[1] - silence[0])
    if end - start > config.longest_silence_s:
        return Rejection(
            "long-silence",
            f"no word is said for {end - start:.2f} s at {start:.2f} s, expected at most "
            f"{config.longest_silence_s:g} s",
        )
    return None


def _check_scores(words: Sequence[TimedText], config: PlausibilityConfig) -> Rejection | None:
    scored = [(word.score, word.end_s - word.start_s, word) for word in words]
    known = [(score, length, word) for score, length, word in scored if score is not None]
    if not known:
        return None
    lengths = np.array([max(length, 1e-3) for _, length, _ in known])
    sums = np.cumsum(np.array([score for score, _, _ in known]) * lengths)
    lasted = np.cumsum(lengths)
    mean = sums[-1] / lasted[-1]
    if config.least_score is not None and not mean >= config.least_score:
        return Rejection(
            "low-score", f"the mean score is {mean:.2f}, expected at least {config.least_score:g}"
        )
    least = config.fall_words
    if config.largest_fall is None or len(known) < 2 * least:
        return None
    split = slice(least - 1, len(known) - least)
    before = sums[split] / lasted[split]
    after = (sums[-1] - sums[split]) / (lasted[-1] - lasted[split])
    at = int(np.argmax(before - after))
    if before[at] - after[at] > config.largest_fall:
        return Rejection(
            "drift",
            f"the mean score falls from {before[at]:.2f} to {after[at]:.2f} after "
            f"{known[at + least - 1][2].end_s:.2f} s, expected a fall of at most "
            f"{config.largest_fall:g}",
        )
    return None


def _name(word: TimedText) -> str:
    text = word.text if len(word.text) <= 40 else word.text[:39] + "…"
    return f"word {text!r}"
