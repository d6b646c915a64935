"""What a record is: an utterance aligned with its words, or a document of text."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from lst_jax.settings import Bounds, configuration
from lst_jax.vocabulary import TextTokenizer, Vocabulary

SILENCE = "[SIL]"

Count = Annotated[int, Bounds(least=0, most=2**63 - 1)]


@dataclasses.dataclass(frozen=True, eq=False)
class Utterance:
    """Speech aligned with the words said: W words and silences in the order of time.

    The fields from `piece_unit_counts` on may be None, which always says that it is not known:
    records of version 1 have none of them, and an input has what it has.

    Attributes:
      file_id: name of the recording.
      words: W words, `SILENCE` for a silence.
      pieces: int32 (Σ piece_counts,) text ids of all the words one after the other, each word
        as it reads after a space; S of them.
      piece_counts: int32 (W,) pieces of every word, 0 for a silence and for nothing else.
      units: int32 (Σ unit_counts,) speech units 0 … unit_count−1 of the whole recording.
      unit_counts: int32 (W,) units spoken during every word or silence. It may be 0: an aligner
        that is finer than a unit gives some short words and silences none. At least
        one is positive.
      piece_unit_counts: int32 (S,) units spoken during every piece, at least 0; those of a word's
        pieces sum to the word's. None: known by words alone.
      word_times_ms: int32 (W, 2) start and end of every word or silence in milliseconds from the
        start of the recording, in order and not overlapping; a length may be 0. None: only units
        tell when a word is spoken.
      piece_times_ms: int32 (S, 2) start and end of every piece, likewise. None: known by words
        alone.
      transcript: what is said as the source writes it, with its case and punctuation. None: the
        source has nothing but the words.
      speaker: the speaker's name in the source. None: unknown.
      license: under which the source gives the recording away. None: unknown, which is not "free".
      source: corpus that the recording is from. None: unknown.
    """

    file_id: str
    words: tuple[str, ...]
    pieces: np.ndarray
    piece_counts: np.ndarray
    units: np.ndarray
    unit_counts: np.ndarray
    piece_unit_counts: np.ndarray | None = None
    word_times_ms: np.ndarray | None = None
    piece_times_ms: np.ndarray | None = None
    transcript: str | None = None
    speaker: str | None = None
    license: str | None = None
    source: str | None = None

    @property
    def is_silence(self) -> np.ndarray:
        """Returns which of the words are silences, (W,) bool."""
        return self.piece_counts == 0


@dataclasses.dataclass(frozen=True, eq=False)
class TextDocument:
    """A document of text.

    Attributes:
      file_id: name of the document.
      pieces: int32 (T,) text ids without bos and eos, T at least 1.
      word_count: words between whitespace.
      license: under which the source gives the text away. None: unknown, which is not "free".
      source: corpus that the text is from. None: unknown.
    """

    file_id: str
    pieces: np.ndarray
    word_count: int
    license: str | None = None
    source: str | None = None


Record = Utterance | TextDocument


def make_utterance(
    file_id: str,
    words: Sequence[str],
    units: np.ndarray | Sequence[int],
    unit_counts: np.ndarray | Sequence[int],
    tokenizer: TextTokenizer,
) -> Utterance:
    """Returns an utterance with its words encoded.

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


def make_text_document(
    file_id: str,
    text: str,
    tokenizer: TextTokenizer,
    *,
    license: str | None = None,
    source: str | None = None,
) -> TextDocument:
    """Returns a text document with its text encoded.

    Args:
      file_id: name of the document.
      text: what it says.
      tokenizer: encodes it.
      license, source: see `TextDocument`.

    Raises:
      ValueError: the text cannot be encoded.
    """
    return TextDocument(file_id, tokenizer.encode(text), len(text.split()), license, source)


def check_record(record: Record, vocabulary: Vocabulary) -> None:
    """Checks what the docstrings of `Utterance` and `TextDocument` promise.

    Raises:
      ValueError: a promise is broken; names the record, the field and what was expected.
    """
    if isinstance(record, Utterance):
        _check_utterance(record, vocabulary)
    else:
        _check_text(record, vocabulary)


@configuration
class Totals:
    """What a set of records adds up to; silences and their units are counted apart.

    Speech whose words nobody knows is one silence in its record, and none here: it is `wordless`.
    """

    documents: Count = 0
    words: Count = 0
    silences: Count = 0
    text_tokens: Count = 0
    units: Count = 0
    silence_units: Count = 0
    wordless: Count = 0
    wordless_units: Count = 0

    def __add__(self, other: Totals) -> Totals:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Totals(*itertools.starmap(int.__add__, pairs))

    @property
    def mean_word_length(self) -> float:
        """Returns the units a word, silences aside; NaN without words."""
        spoken = self.units - self.silence_units - self.wordless_units
        return spoken / self.words if self.words else float("nan")

    @property
    def mean_silence_length(self) -> float:
        """Returns the units a silence; NaN without silences."""
        return self.silence_units / self.silences if self.silences else float("nan")


def count_record(record: Record) -> Totals:
    """Returns the totals of one record."""
    if isinstance(record, TextDocument):
        return Totals(1, record.word_count, text_tokens=len(record.pieces))
    silent, units = record.is_silence, len(record.units)
    silences = int(silent.sum())
    if silences == len(silent):
        return Totals(1, units=units, wordless=1, wordless_units=units)
    return Totals(
        documents=1,
        words=len(record.words) - silences,
        silences=silences,
        text_tokens=len(record.pieces),
        units=units,
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
    _check_piece_units(where, utterance)
    _check_times(where, "word_times_ms", utterance.word_times_ms, len(words))
    _check_times(where, "piece_times_ms", utterance.piece_times_ms, len(utterance.pieces))
    for name in ("transcript", "speaker", "license", "source"):
        _check_known_text(where, name, getattr(utterance, name))


def _check_piece_units(where: str, utterance: Utterance) -> None:
    counts = utterance.piece_unit_counts
    if counts is None:
        return
    if counts.shape != utterance.pieces.shape or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(
            f"{where}: piece_unit_counts has shape {counts.shape} and dtype {counts.dtype}, "
            f"expected {utterance.pieces.shape} and int32"
        )
    ends = np.concatenate([[0], np.cumsum(counts)])[np.cumsum(utterance.piece_counts)]
    spoken = np.where(utterance.is_silence, 0, utterance.unit_counts)
    if (counts < 0).any() or (ends != np.cumsum(spoken)).any():
        raise ValueError(
            f"{where}: piece_unit_counts has negative numbers, or those of a word's pieces do not "
            "sum to the word's"
        )


def _check_times(where: str, name: str, times: np.ndarray | None, count: int) -> None:
    if times is None:
        return
    if times.shape != (count, 2) or not np.issubdtype(times.dtype, np.integer):
        raise ValueError(
            f"{where}: {name} has shape {times.shape} and dtype {times.dtype}, "
            f"expected ({count}, 2) and int32"
        )
    edges = times.ravel()
    if (edges[:1] < 0).any() or (edges[1:] < edges[:-1]).any():
        raise ValueError(f"{where}: {name} are not in order, or before the recording's start")


def _check_known_text(where: str, name: str, text: str | None) -> None:
    if text is not None and (not isinstance(text, str) or not text):
        raise ValueError(f"{where}: {name} is {text!r}, expected text that is not empty, or None")


def _check_text(document: TextDocument, vocabulary: Vocabulary) -> None:
    where = f"text document {document.file_id!r}"
    if not len(document.pieces):
        raise ValueError(f"{where} is empty")
    if document.word_count < 0:
        raise ValueError(f"{where}: word_count is {document.word_count}, expected at least 0")
    expected_length = np.array([len(document.pieces)])
    _check_ids(where, "pieces", document.pieces, vocabulary.text_size, expected_length)
    for name in ("license", "source"):
        _check_known_text(where, name, getattr(document, name))


def _check_ids(where: str, name: str, ids: np.ndarray, size: int, counts: np.ndarray) -> None:
    if ids.shape != (counts.sum(),):
        raise ValueError(f"{where}: {name} has shape {ids.shape}, expected ({counts.sum()},)")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{where}: {name} has dtype {ids.dtype}, expected int32")
    if ids.size and (ids.min() < 0 or ids.max() >= size):
        raise ValueError(
            f"{where}: {name} range from {ids.min()} to {ids.max()}, expected 0 … {size - 1}"
        )
