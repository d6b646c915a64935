"""The one id space: text pieces, mode tokens and speech units.

With `V` the size of the SentencePiece model, a token is

| ids             | meaning                                   |
|-----------------|-------------------------------------------|
| 0 … V−1         | text pieces (bos and eos among them)      |
| V … V+3         | reserved                                  |
| V+4, V+5        | `<t>`, `<s>`: a text, a speech segment opens |
| V+6 … V+5+C     | speech units 0 … C−1, C = `unit_count`    |
| V+6+C …         | pieces of several units, where `units` has some |

which for Llama 2's 32,000 pieces and 502 units is the layout of the published checkpoints.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import pathlib
from collections.abc import Sequence

import numpy as np

from lst_jax.local_paths import local_path
from lst_jax.settings import NaturalInt, TextSize, UnitCount, configuration, quote, require
from lst_jax.unit_encoding import UnitEncoding, UnitPieces, drop_repeats, repeat_units

_LOGGER = logging.getLogger(__name__)
_NUM_RESERVED = 4  # ids V … V+3 of the published layout, never used in a document
_WORD_START = "\u2581"  # SentencePiece's mark of a word beginning
_MAX_CACHED_WORDS = 1_000_000


@configuration
class Vocabulary:
    """Which id means what; the whole model and data pipeline share one of these.

    Attributes:
      text_size: number of text pieces V, the size of the SentencePiece model.
      bos_id: id that opens every document, below `text_size`.
      eos_id: id that ends every document, below `text_size`, not `bos_id`.
      unit_count: number of speech units C.
      units: how ids come from units. Plain: every unit is an id.
    """

    text_size: TextSize
    bos_id: NaturalInt = 1
    eos_id: NaturalInt = 2
    unit_count: UnitCount = 502
    units: UnitEncoding = UnitEncoding()

    def __post_init__(self) -> None:
        last = self.text_size - 1
        require(self.bos_id <= last, "Vocabulary.bos_id", self.bos_id, f"an id, 0 … {last}")
        require(self.eos_id <= last, "Vocabulary.eos_id", self.eos_id, f"an id, 0 … {last}")
        different = self.bos_id != self.eos_id
        require(
            different, "Vocabulary.eos_id", self.eos_id, f"another id than bos_id, {self.bos_id}"
        )
        _ = self._pieces  # they are checked where they are made

    @functools.cached_property
    def _pieces(self) -> UnitPieces | None:
        return UnitPieces(self.units, self.unit_count) if self.units.pieces else None

    @property
    def text_mode_id(self) -> int:
        """Returns the id of `<t>`, which opens a text segment."""
        return self.text_size + _NUM_RESERVED

    @property
    def speech_mode_id(self) -> int:
        """Returns the id of `<s>`, which opens a speech segment."""
        return self.text_size + _NUM_RESERVED + 1

    @property
    def first_unit_id(self) -> int:
        """Returns the id of speech unit 0."""
        return self.text_size + _NUM_RESERVED + 2

    @property
    def size(self) -> int:
        """Returns the number of ids: all that an embedding table or a softmax must cover."""
        return self.first_unit_id + self.unit_count + len(self.units.pieces)

    def units_to_ids(self, units: np.ndarray | Sequence[int]) -> np.ndarray:
        """Returns the token ids of speech units.

        Args:
          units: integers (U,) in 0 … unit_count−1.

        Returns:
          int32 (T,) ids; T is U where units are plain, and at most U where they are joined.

        Raises:
          ValueError: a unit is out of range or not an integer.
        """
        units = _integers("units", units)
        _check_range("units", units, 0, self.unit_count)
        if self.units.deduplicated:
            units = drop_repeats(units)
        units = self._pieces.join(units) if self._pieces else units.astype(np.int32)
        return units + np.int32(self.first_unit_id)

    def ids_to_units(self, ids: np.ndarray | Sequence[int]) -> np.ndarray:
        """Returns the speech units of token ids (T,), the inverse of `units_to_ids`.

        Units without their repeats last `units.run_length` each, on average.

        Raises:
          ValueError: an id is not a speech unit's, or not an integer.
        """
        ids = _integers("ids", ids)
        _check_range("ids", ids, self.first_unit_id, self.size)
        units = (ids - self.first_unit_id).astype(np.int32)
        units = self._pieces.spell(units) if self._pieces else units
        return repeat_units(units, self.units.run_length) if self.units.deduplicated else units

    @property
    def unit_lengths(self) -> np.ndarray:
        """Returns how many plain units each speech id stands for, on average, float64."""
        pieces = np.fromiter(map(len, self.units.pieces), np.float64)
        return self.units.run_length * np.concatenate([np.ones(self.unit_count), pieces])

    def is_unit(self, ids: np.ndarray | Sequence[int]) -> np.ndarray:
        """Returns bool (…,): which of the ids (…,) are speech units, or pieces of them."""
        ids = np.asarray(ids)
        return (ids >= self.first_unit_id) & (ids < self.size)

    def is_text(self, ids: np.ndarray | Sequence[int]) -> np.ndarray:
        """Returns bool (…,): which of the ids (…,) are text pieces, bos and eos aside."""
        ids = np.asarray(ids)
        in_text = (ids >= 0) & (ids < self.text_size)
        return in_text & (ids != self.bos_id) & (ids != self.eos_id)

    def split_runs(self, ids: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the maximal runs of speech units in a sequence of tokens.

        Args:
          ids: token ids (T,).

        Returns:
          `(starts, ends)`, int64 (R,) each: run r is `ids[starts[r]:ends[r]]`, all units, with
          no unit next to it.
        """
        inside = self.is_unit(ids)
        if inside.ndim != 1:
            raise ValueError(f"ids has shape {inside.shape}, expected one dimension")
        padded = np.zeros(len(inside) + 2, bool)
        padded[1:-1] = inside
        edges = np.flatnonzero(padded[1:] != padded[:-1])
        return edges[0::2], edges[1::2]


class TextTokenizer:
    """Text to ids and back with a SentencePiece model.

    Words are encoded apart, each as it reads after a space, so that a word has the same pieces
    wherever it stands; for models that split on whitespace (all usual ones) their concatenation
    is the encoding of the words joined by spaces.
    """

    def __init__(self, model_path: str | pathlib.Path) -> None:
        """Loads a model file.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is not a SentencePiece model, or marks no word beginnings.
        """
        self.model_path = local_path(model_path, "tokenizer")
        if not self.model_path.is_file():
            raise FileNotFoundError(f"tokenizer model {self.model_path}: no such file")
        # Only here: the id space and the models on it work where there is no text to encode.
        import sentencepiece

        model = self.model_path.read_bytes()
        self.fingerprint = hashlib.sha256(model).hexdigest()
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
            if not self._model.get_piece_size():  # SentencePiece 0.2.1 opens an empty file
                raise RuntimeError("it has no pieces")
            self._prefix = self._find_prefix()
        except RuntimeError as error:
            raise ValueError(f"{self.model_path} is not a SentencePiece model: {error}") from error
        self.size = self._model.get_piece_size()
        self._word_pieces: dict[str, list[int]] = {}
        self._warned = False

    def __reduce__(self) -> tuple[type[TextTokenizer], tuple[pathlib.Path]]:
        return TextTokenizer, (self.model_path,)

    def vocabulary(self, unit_count: int = 502, units: UnitEncoding | None = None) -> Vocabulary:
        """Returns the id space of this model's pieces and `unit_count` units; None: plain ones.

        Raises:
          ValueError: the model has no bos or eos piece.
        """
        bos_id, eos_id = self._model.bos_id(), self._model.eos_id()
        if bos_id < 0 or eos_id < 0:
            raise ValueError(
                f"{self.model_path} has bos id {bos_id} and eos id {eos_id}, expected both pieces"
            )
        return Vocabulary(self.size, bos_id, eos_id, unit_count, units or UnitEncoding())

    def encode(self, text: str) -> np.ndarray:
        """Returns piece ids of `text`, int32 (T,), without bos and eos.

        Raises:
          ValueError: the text cannot be written as UTF-8 (it holds a lone surrogate).
        """
        _check_unicode("text", text)
        pieces = self._model.encode(self._prefix + text)
        self._warn_of_unknown(text, pieces)
        return np.asarray(pieces, np.int32)

    def encode_words(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns piece ids of every word, each as it reads after a space.

        Args:
          words: W words without whitespace.

        Returns:
          `pieces` int32 (Σ counts,), the words' pieces one after the other, and `counts` int32
          (W,), at least 1 each.

        Raises:
          ValueError: a word is empty, holds whitespace (or U+2581, which SentencePiece takes
            for it) or a lone surrogate, or has no pieces at all.
        """
        known = self._word_pieces
        missing = list(dict.fromkeys(word for word in words if word not in known))
        if missing:
            if len(known) + len(missing) > _MAX_CACHED_WORDS:
                known.clear()
                missing = list(dict.fromkeys(words))
            known.update(zip(missing, self._encode_new_words(missing), strict=True))
        pieces = [known[word] for word in words]
        counts = np.fromiter(map(len, pieces), np.int32, len(pieces))
        return np.fromiter(itertools.chain.from_iterable(pieces), np.int32), counts

    def count_unknown(self, ids: np.ndarray) -> int:
        """Returns how many of the ids (…,) stand for what the model cannot spell."""
        return int(np.count_nonzero(np.asarray(ids) == self._model.unk_id()))

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """Returns the text of piece ids (T,); bos and eos leave no trace.

        Raises:
          ValueError: an id is not a text piece's.
        """
        ids = _integers("ids", ids)
        _check_range("ids", ids, 0, self.size)
        return self._model.decode(ids.tolist())

    def piece(self, piece_id: int) -> str:
        """Returns the piece with this id, U+2581 standing for the space before it.

        Raises:
          ValueError: the id is not a text piece's.
        """
        if not 0 <= piece_id < self.size:
            raise ValueError(f"piece_id is {piece_id}, expected 0 … {self.size - 1}")
        return self._model.id_to_piece(int(piece_id))

    def token_sizes(self, vocabulary: Vocabulary) -> np.ndarray:
        """Returns what each id stands for, float64 (vocabulary.size,).

        That is UTF-8 bytes for a text piece, U+2581 being a space, and plain units for a speech id,
        of deduplicated ones the mean. Control pieces and the unknown piece stand for nothing.
        """
        model, sizes = self._model, np.zeros(vocabulary.size)
        sizes[vocabulary.first_unit_id :] = vocabulary.unit_lengths
        for piece_id in range(self.size):
            if model.is_byte(piece_id):
                sizes[piece_id] = 1
            elif not (model.is_control(piece_id) or model.is_unknown(piece_id)):
                text = model.id_to_piece(piece_id).replace(_WORD_START, " ")
                sizes[piece_id] = len(text.encode("utf-8"))
        return sizes

    def _find_prefix(self) -> str:
        """Returns what to put before a text so that its first word reads as after a space."""
        for prefix in ("", " "):  # most models add the space themselves
            if self._model.encode(prefix + "a", out_type=str)[0].startswith(_WORD_START):
                return prefix
        raise ValueError(f"{self.model_path} marks no word beginnings: 'a' and ' a' read the same")

    def _encode_new_words(self, words: list[str]) -> list[list[int]]:
        for word in words:
            _check_unicode("words", word)
            if word.split() != [word] or _WORD_START in word:
                raise ValueError(f"words holds {quote(word)}, expected one word without whitespace")
        encoded = self._model.encode([self._prefix + word for word in words])
        for word, pieces in zip(words, encoded, strict=True):
            if not pieces:
                raise ValueError(
                    f"words holds {quote(word)}, which has no pieces in {self.model_path}"
                )
            self._warn_of_unknown(word, pieces)
        return encoded

    def _warn_of_unknown(self, text: str, pieces: list[int]) -> None:
        """Says once that text cannot be spelled, which a model then knows nothing of."""
        if not self._warned and self._model.unk_id() in pieces:
            self._warned = True
            _LOGGER.warning(
                "%s cannot spell all of %s; such pieces become unk", self.model_path, quote(text)
            )


def _integers(name: str, values: np.ndarray | Sequence[int]) -> np.ndarray:
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} has dtype {array.dtype}, expected integers")
    return array


def _check_range(name: str, values: np.ndarray, start: int, end: int) -> None:
    outside = values[(values < start) | (values >= end)]
    if outside.size:
        raise ValueError(f"{name} holds {outside.flat[0]}, expected {start} … {end - 1}")


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds {quote(text)}, which is not valid Unicode: {error}"
        ) from error
