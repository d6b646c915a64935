"""Word and character error rates of transcripts.

Both sides are normalized first (`normalize`). Errors are substitutions, deletions and insertions of
the least costly alignment, counted by jiwer; a rate is the sum of the errors of all utterances over
the sum of their reference words (WER) or characters (CER, spaces included), so it may exceed 1.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

import jiwer
import numpy as np

from lst_jax.evaluation.statistics import bootstrap_ratio_interval

# What is neither a letter, a mark, a digit nor an apostrophe inside a word separates words.
_SEPARATORS = re.compile(r"(?:[^\w']|_|(?<!\w)'|'(?!\w))+")
_APOSTROPHES = str.maketrans(
    {"\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{MODIFIER LETTER APOSTROPHE}": "'"}
)


@dataclasses.dataclass(frozen=True)
class UtteranceErrors:
    """The errors of one transcript.

    Attributes:
      utterance_id: its name.
      reference, hypothesis: normalized.
      word_errors, words: errors, and words of the reference.
      character_errors, characters: the same in characters.
    """

    utterance_id: str
    reference: str
    hypothesis: str
    word_errors: int
    words: int
    character_errors: int
    characters: int

    @property
    def wer(self) -> float:
        """Word error rate of this utterance."""
        return self.word_errors / self.words

    @property
    def cer(self) -> float:
        """Character error rate of this utterance."""
        return self.character_errors / self.characters


@dataclasses.dataclass(frozen=True)
class ErrorRate:
    """A rate over all utterances.

    Attributes:
      rate: Σ errors / Σ length of the references.
      interval: 95 % bootstrap interval, utterances drawn with replacement.
    """

    rate: float
    interval: tuple[float, float]


def normalize(text: str) -> str:
    """Words in lower case, apart by single spaces.

    Unicode compatibility forms are folded (NFKC), everything that is no letter, digit or apostrophe
    inside a word becomes a space. Numbers stay as they are written.
    """
    folded = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).lower()
    return _SEPARATORS.sub(" ", folded).strip()


def count_errors(utterance_id: str, reference: str, hypothesis: str) -> UtteranceErrors:
    """The errors of one transcript.

    Args:
      utterance_id: its name.
      reference: what was said.
      hypothesis: what was understood; may be empty.

    Raises:
      ValueError: the reference has no words.
    """
    reference, hypothesis = normalize(reference), normalize(hypothesis)
    if not reference:
        raise ValueError(f"the reference of utterance {utterance_id!r} has no words, expected some")
    words = jiwer.process_words(reference, hypothesis)
    characters = jiwer.process_characters(reference, hypothesis)
    return UtteranceErrors(
        utterance_id,
        reference,
        hypothesis,
        words.substitutions + words.deletions + words.insertions,
        words.hits + words.substitutions + words.deletions,
        characters.substitutions + characters.deletions + characters.insertions,
        characters.hits + characters.substitutions + characters.deletions,
    )


def word_error_rate(utterances: Sequence[UtteranceErrors]) -> ErrorRate:
    """WER over all utterances, at least one."""
    return _rate([u.word_errors for u in utterances], [u.words for u in utterances])


def character_error_rate(utterances: Sequence[UtteranceErrors]) -> ErrorRate:
    """CER over all utterances, at least one."""
    return _rate([u.character_errors for u in utterances], [u.characters for u in utterances])


def _rate(errors: Sequence[int], lengths: Sequence[int]) -> ErrorRate:
    interval = bootstrap_ratio_interval(np.array(errors), np.array(lengths))
    return ErrorRate(sum(errors) / sum(lengths), interval)
