"""Unit vocabularies that are not plain: deduplicated units, and pieces that join several units.

An encoder gives one unit a frame. The paper's models have an id for each unit. Its *BPE SpeechLLM*
joins units to pieces by byte-pair encoding, and most toolkits drop the repeats of a unit. Both
change only how units become ids and ids units: records, evaluation sets and vocoders hold plain
units.

Ids here count from 0: with C units, 0 … C−1 are units and C … are pieces.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import pathlib
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np

from lst_jax.settings import (
    Bounds,
    Name,
    NaturalInt,
    UnitCount,
    configuration,
    quote,
    require,
    validate_fields,
)
from lst_jax.strict_json import read_json_object

FORMAT = "lst-jax-units"
_FORMAT_VERSION = 1
_LONGEST_PIECE = 2**8  # units; all ways to divide it are tried
_MeanCount = Annotated[float, Bounds(least=1, most=2**20)]


@configuration
class UnitEncoding:
    """How speech ids come from an encoder's units; by default every unit is an id.

    Attributes:
      deduplicated: whether a run of equal units is one unit. How long runs were is lost.
      run_length: mean length of a run in the speech that the encoding was made of. When ids become
        units again each lasts so long, on average. 1 where nothing is deduplicated.
      pieces: the units of each piece, which is one id more, in the order of learning: two or more
        units, made of two units or earlier pieces.
      units_per_id: mean units of an id in that speech, by which amounts are estimated.
    """

    deduplicated: bool = False
    run_length: _MeanCount = 1.0
    pieces: tuple[tuple[NaturalInt, ...], ...] = ()
    units_per_id: _MeanCount = 1.0

    def __post_init__(self) -> None:
        fits = self.deduplicated or self.run_length == 1
        require(fits, "UnitEncoding.run_length", self.run_length, "1 where runs are kept")

    @property
    def is_plain(self) -> bool:
        """Returns whether every unit is an id."""
        return not (self.deduplicated or self.pieces)


class UnitPieces:
    """Joins units to the pieces of an encoding, and spells pieces as units.

    Units are joined as SentencePiece joins characters: of all neighbors that make a piece together
    those of the piece that was learned first, the leftmost of equal ones, until there are none.
    """

    def __init__(self, encoding: UnitEncoding, unit_count: int) -> None:
        """Builds the tables.

        Raises:
          ValueError: a piece has a unit out of range, is there twice, or does not consist of two
            earlier ones.
        """
        ids: dict[tuple[int, ...], int] = {(unit,): unit for unit in range(unit_count)}
        self._joined: dict[tuple[int, int], int] = {}
        for number, piece in enumerate(encoding.pieces):
            name = f"UnitEncoding.pieces[{number}]"
            inside = len(piece) <= _LONGEST_PIECE and all(unit < unit_count for unit in piece)
            require(inside, name, piece, f"units 0 … {unit_count - 1}, at most {_LONGEST_PIECE}")
            require(piece not in ids, name, piece, "a piece that is not there yet")
            halves = any(a in ids and b in ids for a, b in _halves(piece))
            require(halves, name, piece, "two units or earlier pieces, joined")
            ids[piece] = unit_count + number
        for piece in encoding.pieces:
            known = ((a, b) for a, b in _halves(piece) if a in ids and b in ids)
            self._joined |= {(ids[a], ids[b]): ids[piece] for a, b in known}
        self._lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._units = np.fromiter((unit for piece in ids for unit in piece), np.int32)

    def join(self, units: np.ndarray) -> np.ndarray:
        """Returns the ids, int32 (V,), of units (U,); V is at most U."""
        ids: list[int] = units.tolist()
        joined, size = self._joined, len(ids)
        before, after = list(range(-1, size - 1)), list(range(1, size + 1))
        open_pairs = [
            (joined[pair], left)
            for left, pair in enumerate(itertools.pairwise(ids))
            if pair in joined
        ]
        heapq.heapify(open_pairs)
        while open_pairs:
            new, left = heapq.heappop(open_pairs)
            right = after[left]
            # The pair may be gone: one of its halves is part of another piece since.
            if ids[left] < 0 or right == size or joined.get((ids[left], ids[right])) != new:
                continue
            ids[left], ids[right], after[left] = new, -1, after[right]
            if after[left] < size:
                before[after[left]] = left
            for first in (before[left], left):
                if first >= 0 and after[first] < size:
                    pair = (ids[first], ids[after[first]])
                    if pair in joined:
                        heapq.heappush(open_pairs, (joined[pair], first))
        return np.array([i for i in ids if i >= 0], np.int32)

    def spell(self, ids: np.ndarray) -> np.ndarray:
        """Returns the units, int32 (U,), of ids (V,)."""
        lengths = self._lengths[ids]
        shift = np.repeat(self._starts[ids] - (np.cumsum(lengths) - lengths), lengths)
        return self._units[shift + np.arange(len(shift))]


def _halves(piece: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    return ((piece[:end], piece[end:]) for end in range(1, len(piece)))


def drop_repeats(units: np.ndarray) -> np.ndarray:
    """Returns units (U,) without those that equal the one before."""
    return units[np.diff(units, prepend=-1) != 0]


def repeat_units(units: np.ndarray, run_length: float) -> np.ndarray:
    """Returns units (U,), each as often as its share of the time, U · run_length, rounds to."""
    ends = np.floor(run_length * np.arange(len(units) + 1) + 0.5).astype(np.int64)
    return np.repeat(units, np.diff(ends))


@configuration
class _UnitVocabularyFile:
    unit_count: UnitCount
    units: UnitEncoding
    encoder_fingerprint: Name | None = None  # not told


def read_unit_encoding(
    path: pathlib.Path, unit_count: int, encoder_fingerprint: str | None = None
) -> UnitEncoding:
    """Returns what a unit vocabulary's file holds (`experiments.train_unit_vocabulary`).

    Args:
      path: the file.
      unit_count: units of the encoder.
      encoder_fingerprint: of it. None: not known.

    Raises:
      OSError: it cannot be read.
      ValueError: it is no such file, or of other units.
    """
    fields = read_json_object(path)
    form = [fields.pop("format", None), fields.pop("format_version", None)]
    if form != [FORMAT, _FORMAT_VERSION]:
        raise ValueError(
            f"{path}: format and format_version are {quote(form)}, expected "
            f"{quote([FORMAT, _FORMAT_VERSION])}"
        )
    content = validate_fields(_UnitVocabularyFile, fields, path)
    same = content.unit_count == unit_count
    require(same, f"{path}: unit_count", content.unit_count, str(unit_count))
    made_by = content.encoder_fingerprint
    if None not in (made_by, encoder_fingerprint) and made_by != encoder_fingerprint:
        raise ValueError(
            f"{path} is of units of the encoder {made_by}, expected {encoder_fingerprint}, as the "
            "records'"
        )
    return content.units


def unit_encoding_to_json(
    encoding: UnitEncoding, unit_count: int, encoder_fingerprint: str | None = None
) -> dict[str, Any]:
    """Returns the contents of a unit vocabulary's file as JSON values."""
    content = dataclasses.asdict(_UnitVocabularyFile(unit_count, encoding, encoder_fingerprint))
    return {"format": FORMAT, "format_version": _FORMAT_VERSION, **content}
