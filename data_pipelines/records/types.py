"""What a record is: an utterance aligned with its words, or a document of text."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from lst_jax.vocabulary import TextTokenizer, Vocabulary

SILENCE = "[SIL]"


@dataclasses.dataclass(frozen=True, eq=False)
class Utterance:
    """Speech aligned with the words said: W words and silences in the order of time.

    Attributes:
      file_id: name of the recording.
      words: W words, `SILENCE` for a silence.
      pieces: int32 (Σ piece_counts,) text ids of all the words one after the other, each word
        as it reads after a space.
      piece_counts: int32 (W,) pieces of every word, 0 for a silence and for nothing else.
      units: int32 (Σ unit_counts,) speech units 0 … unit_count−1 of the whole recording.
      unit_counts: int32 (W,) units spoken during every word or silence. It may be 0: an aligner
        that is finer than a unit gives some short words and silences none of their own. At least
        one is positive.
    """

    file_id: str
    words: tuple[str, ...]
    pieces: np.ndarray
    piece_counts: np.ndarray
    units: np.ndarray
    unit_counts: np.ndarray

    @property
    def is_silence(self) -> np.ndarray:
        """Bool (W,): which of the words are silences."""
        return self.piece_counts == 0


@dataclasses.dataclass(frozen=True, eq=False)
class TextDocument:
    """A document of text.

    Attributes:
      file_id: name of the document.
      pieces: int32 (T,) text ids without bos and eos, T at least 1.
      word_count: words between whitespace.
    """

    file_id: str
    pieces: np.ndarray
    word_count: int


Record = Utterance | TextDocument


def make_utterance(
    file_id: str,
    words: Sequence[str],
    units: np.ndarray | Sequence[int],
    unit_counts: np.ndarray | Sequence[int],
    tokenizer: TextTokenizer,
) -> Utterance:
    """An utterance with its words encoded.

    Args:
      file_id: name of the recording.
      words: W words, `SILENCE` for a silence.
      units: (U,) speech units.
      unit_counts: (W,) units spoken during every word; they sum to U.
      tokenizer: encodes the words.

    Raises:
      ValueError: a word cannot be encoded (see `TextTokenizer.encode_words`), or the units are
        not integers.
    """
    spoken = [word for word in words if word != SILENCE]
    pieces, spoken_counts = tokenizer.encode_words(spoken)
    piece_counts = np.zeros(len(words), np.int32)
    piece_counts[[word != SILENCE for word in words]] = spoken_counts
    return Utterance(
        file_id,
        tuple(words),
        pieces,
        piece_counts,
        _to_int32("units", units),
        _to_int32("unit_counts", unit_counts),
    )


def make_text_document(file_id: str, text: str, tokenizer: TextTokenizer) -> TextDocument:
    """A text document with its text encoded.

    Raises:
      ValueError: the text cannot be encoded.
    """
    return TextDocument(file_id, tokenizer.encode(text), len(text.split()))


def check_record(record: Record, vocabulary: Vocabulary) -> None:
    """Checks what the docstrings of `Utterance` and `TextDocument` promise.

    Raises:
      ValueError: a promise is broken; names the record, the field and what was expected.
    """
    if isinstance(record, Utterance):
        _check_utterance(record, vocabulary)
    else:
        _check_text(record, vocabulary)


@dataclasses.dataclass(frozen=True)
class Totals:
    """What a set of records adds up to; silences and their units are counted apart."""

    documents: int = 0
    words: int = 0
    silences: int = 0
    text_tokens: int = 0
    units: int = 0
    silence_units: int = 0

    def __add__(self, other: Totals) -> Totals:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Totals(*itertools.starmap(int.__add__, pairs))

    @property
    def mean_word_length(self) -> float:
        """Units a word, silences aside; NaN without words."""
        return (self.units - self.silence_units) / self.words if self.words else float("nan")

    @property
    def mean_silence_length(self) -> float:
        """Units a silence; NaN without silences."""
        return self.silence_units / self.silences if self.silences else float("nan")


def count_record(record: Record) -> Totals:
    """The totals of one record."""
    if isinstance(record, TextDocument):
        return Totals(1, record.word_count, text_tokens=len(record.pieces))
    silent = record.is_silence
    silences = int(silent.sum())
    return Totals(
        documents=1,
        words=len(record.words) - silences,
        silences=silences,
        text_tokens=len(record.pieces),
        units=len(record.units),
        silence_units=int(record.unit_counts[silent].sum()),
    )


def _to_int32(name: str, values: np.ndarray | Sequence[int]) -> np.ndarray:
    array = np.asarray(values)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} has dtype {array.dtype}, expected integers")
    return array.astype(np.int32)


def _check_utterance(utterance: Utterance, vocabulary: Vocabulary) -> None:
    where = f"utterance {utterance.file_id!r}"
    words = utterance.words
    if not words:
        raise ValueError(f"{where} has no words")
    if not all(words) or any("\n" in word for word in words):
        raise ValueError(f"{where} has a word that is empty or holds a line break")
    for name in ("piece_counts", "unit_counts"):
        shape = getattr(utterance, name).shape
        if shape != (len(words),):
            raise ValueError(f"{where}: {name} has shape {shape}, expected ({len(words)},)")
    if (utterance.unit_counts < 0).any() or not utterance.unit_counts.any():
        raise ValueError(f"{where}: unit_counts has negative numbers or nothing but zeros")
    silences = np.fromiter((word == SILENCE for word in words), bool, len(words))
    if (utterance.piece_counts < 0).any() or (utterance.is_silence != silences).any():
        raise ValueError(f"{where} has a word without pieces, or a silence with some")
    _check_ids(where, "pieces", utterance.pieces, vocabulary.text_size, utterance.piece_counts)
    _check_ids(where, "units", utterance.units, vocabulary.unit_count, utterance.unit_counts)


def _check_text(document: TextDocument, vocabulary: Vocabulary) -> None:
    where = f"text document {document.file_id!r}"
    if not len(document.pieces):
        raise ValueError(f"{where} is empty")
    if document.word_count < 0:
        raise ValueError(f"{where}: word_count is {document.word_count}, expected at least 0")
    expected_length = np.array([len(document.pieces)])
    _check_ids(where, "pieces", document.pieces, vocabulary.text_size, expected_length)


def _check_ids(where: str, name: str, ids: np.ndarray, size: int, counts: np.ndarray) -> None:
    if ids.shape != (counts.sum(),):
        raise ValueError(f"{where}: {name} has shape {ids.shape}, expected ({counts.sum()},)")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{where}: {name} has dtype {ids.dtype}, expected int32")
    if ids.size and (ids.min() < 0 or ids.max() >= size):
        raise ValueError(
            f"{where}: {name} range from {ids.min()} to {ids.max()}, expected 0 … {size - 1}"
        )
