"""Word and character error rates of transcripts.

Both sides are normalized first (`normalize`). Errors are substitutions, deletions and insertions of
the least costly alignment, counted by jiwer; a rate is the sum of the errors of all utterances over
the sum of their reference words (WER) or characters (CER: code points as normalized, spaces
included), so it may exceed 1.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence

import jiwer
import numpy as np

from lst_jax.evaluation.statistics import bootstrap_ratio_interval
from lst_jax.settings import quote

# Characters without a glyph: joiners, variation selectors, directions, soft hyphens; Unicode's
# property Default_Ignorable_Code_Point, without code points that are not assigned. The zero-width
# space is left out, since it separates words of Khmer and Thai.
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0001-\U000e01ef]"
)
# The dot that İ keeps as it is folded; i has one already.
_SECOND_DOT = re.compile("(?<=i)\u0307+")
# Inside a word these are part of it (MidLetter of Unicode's word boundaries, UAX 29): apostrophes,
# the Catalan middle dot, the Hebrew gershayim. As typed, they are other characters.
_JOINERS = "'\N{MIDDLE DOT}\N{HEBREW PUNCTUATION GERSHAYIM}"
_AS_TYPED = str.maketrans(
    dict.fromkeys("\N{RIGHT SINGLE QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}", "'")
    | {"\N{HEBREW PUNCTUATION GERESH}": "'"}
)
_GERSHAYIM_AS_TYPED = re.compile('(?<=[\u05d0-\u05ea])["\u201d](?=[\u05d0-\u05ea])')
_LONELY_JOINER = re.compile(rf"(?<![^ {_JOINERS}])[{_JOINERS}]+|[{_JOINERS}]+(?![^ {_JOINERS}])")


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
        """Returns the word error rate of this utterance."""
        return self.word_errors / self.words

    @property
    def cer(self) -> float:
        """Returns the character error rate of this utterance."""
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
    """Returns the words of a text of any script, without case, apart by single spaces.

    What Unicode calls the same text is the same: compatibility forms are folded (NFKC), case is
    folded in full (ß is ss, final ς is σ, and İ is i, for one language spells with it), characters
    without a glyph are dropped. A word is letters and numbers with their marks (categories L, N, Mn
    and Mc), so vowel signs, tones and points count, and with apostrophes and the like between them.
    Everything else separates words. Numbers stay as they are written, and no language is told
    apart: I folds to i in Turkish, too.
    """
    # Folding may break a normal form and decomposing may bring capitals, so each is done again.
    folded = unicodedata.normalize("NFD", text).casefold()
    folded = unicodedata.normalize("NFKD", folded).casefold()
    folded = unicodedata.normalize("NFKD", _IGNORABLE.sub("", folded))
    folded = unicodedata.normalize("NFKC", _SECOND_DOT.sub("", folded))
    folded = _GERSHAYIM_AS_TYPED.sub(
        "\N{HEBREW PUNCTUATION GERSHAYIM}", folded.translate(_AS_TYPED)
    )
    kept = " "
    for character in folded:
        kept += character if _is_of_word(character, kept[-1]) else " "
    return " ".join(_LONELY_JOINER.sub(" ", kept).split())


def _is_of_word(character: str, before: str) -> bool:
    """Returns whether a character may belong to a word; a mark does if what it marks does."""
    category = unicodedata.category(character)
    if category in ("Mn", "Mc"):
        return before not in f" {_JOINERS}"
    return category[0] in "LN" or character in _JOINERS


def count_errors(utterance_id: str, reference: str, hypothesis: str) -> UtteranceErrors:
    """Returns the errors of one transcript.

    Args:
      utterance_id: its name.
      reference: what was said.
      hypothesis: what was understood; may be empty.

    Raises:
      ValueError: the reference has no words.
    """
    reference, hypothesis = normalize(reference), normalize(hypothesis)
    if not reference:
        raise ValueError(
            f"the reference of utterance {quote(utterance_id)} has no words, expected some"
        )
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
    """Returns the WER over all utterances, at least one."""
    return _rate([u.word_errors for u in utterances], [u.words for u in utterances])


def character_error_rate(utterances: Sequence[UtteranceErrors]) -> ErrorRate:
    """Returns the CER over all utterances, at least one."""
    return _rate([u.character_errors for u in utterances], [u.characters for u in utterances])


def _rate(errors: Sequence[int], lengths: Sequence[int]) -> ErrorRate:
    interval = bootstrap_ratio_interval(np.array(errors), np.array(lengths))
    return ErrorRate(sum(errors) / sum(lengths), interval)
