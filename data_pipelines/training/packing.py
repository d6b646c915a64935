"""Packing: streams of documents become rows of a static shape, one row per stream and step.

Row b of every batch comes from stream b, which emits exactly one row per optimizer step, so that a
row's number in its stream is the step u it will be trained on. A document's patching depends on
u through the curriculum, and its size on its patching; Grain's `FirstFitPackIterDataset` packs
elements whose sizes are known beforehand and does not tell which of its bins will come out at which
step, hence the packer here. It keeps a window of open rows, puts every document in the first one
with room for it (patched as that row's step asks for), and emits the oldest row when a document
fits nowhere.

What a stream emits depends on its documents alone, not on other streams: so it does not matter
which process or host runs it, how far ahead, or whether it was restored.
"""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Iterator
from typing import Annotated, Any, Protocol

import numpy as np
from absl import logging

from lst_jax.batch import Batch
from lst_jax.patching import (
    Document,
    PatchingConfig,
    Visibility,
    aligned_probability,
    fill_row,
    largest_head,
    patch_document,
)
from lst_jax.settings import Bounds, Fraction, configuration
from lst_jax.vocabulary import Vocabulary

# A row must hold a continuation's prefix and one patch more, or long documents never end.
RowSize = Annotated[int, Bounds(least=16, most=2**24)]
OpenRows = Annotated[int, Bounds(least=1, most=2**16)]


@dataclasses.dataclass(frozen=True, eq=False)
class Draft:
    """A document before its step, and so its patching, is known.

    Attributes:
      tokens: int32 (T,), bos … eos.
      draw: uniform in [0, 1); the document is aligned at the steps u with draw < P(u).
      aligned_lengths: int32 (Q,) patch lengths by words; None for text, and where no step asks for
        them.
      answer_begin: first token that is predicted, see `patch_document`.
    """

    tokens: np.ndarray
    draw: float
    aligned_lengths: np.ndarray | None
    answer_begin: int = 0


class DraftStream(Protocol):
    """The documents of one stream by position; reading one again gives the same document."""

    def __len__(self) -> int: ...

    def load(self, index: int, probability: float) -> Draft:
        """Document `index`, `aligned_lengths` too if spoken and its draw is below `probability`."""
        ...


@configuration
class PackingConfig:
    """The shape of a row and how it is filled.

    Attributes:
      num_patches: P, patch slots of a row.
      num_tokens: N, token slots of a row.
      open_rows: rows that a stream keeps open at once.
      largest_gap: share of a row's patches (or tokens) that may stay empty. Where the next
        document fits in no open row and more is left of the row to be emitted, the document is
        split: its head fills the row, the rest continues in a later one.
      patching: how speech is segmented.
      visibility: see `fill_row`.
    """

    num_patches: RowSize
    num_tokens: RowSize
    open_rows: OpenRows = 8
    largest_gap: Fraction = 0.05
    patching: PatchingConfig = dataclasses.field(default_factory=PatchingConfig)
    visibility: Visibility = "causal"


_PREFIX = 2  # bos and mode token of a continuation


@dataclasses.dataclass(eq=False)
class _OpenRow:
    """A row being filled, and what is left of it.

    `pieces` holds the numbers of whole documents, and [number, begin, end] of pieces of others
    (end −1 for the document's), as the state has it.
    """

    step: int
    probability: float
    free_patches: int
    free_tokens: int
    pieces: list[int | list[int]] = dataclasses.field(default_factory=list)
    # None for a piece that a restored row holds, until the row is emitted.
    documents: list[Document | None] = dataclasses.field(default_factory=list)


class RowPacker(Iterator[Batch]):
    """The rows of one stream, in the order of steps."""

    def __init__(self, drafts: DraftStream, config: PackingConfig, vocabulary: Vocabulary) -> None:
        """Starts at step 0.

        Args:
          drafts: the documents.
          config: shape and patching.
          vocabulary: the id space.
        """
        self._drafts = drafts
        self._config = config
        self._vocabulary = vocabulary
        self._size = len(drafts)
        self._rows: deque[_OpenRow] = deque()
        # The piece to place next: rest of document `_index` from token `_begin`, not before
        # `_first_step`; `_draft` and `_candidates` (by aligned or not) are made when needed.
        self._index = 0
        self._begin = 0
        self._first_step = 0
        self._draft: Draft | None = None
        self._candidates: dict[bool, Document] = {}
        for step in range(config.open_rows):
            self._open(step)

    @property
    def step(self) -> int:
        """The step of the next row."""
        return self._rows[0].step

    def __next__(self) -> Batch:
        while self._index < self._size:
            if not self._place():
                return self._emit()
        if any(row.pieces for row in self._rows):
            return self._emit()
        raise StopIteration

    def get_state(self) -> str:
        """The position, as JSON: references to the documents in open rows and the next one."""
        rows = [[row.free_patches, row.free_tokens, row.pieces] for row in self._rows]
        cursor = [self._index, self._begin, self._first_step]
        return json.dumps(
            {"step": self.step, "cursor": cursor, "rows": rows}, separators=(",", ":")
        )

    def set_state(self, state: str) -> None:
        """Goes to a position that `get_state` gave; documents are read when they are needed.

        Raises:
          ValueError: the state is of a packer with another number of open rows.
        """
        fields: dict[str, Any] = json.loads(state)
        if len(fields["rows"]) != self._config.open_rows:
            raise ValueError(
                f"state has {len(fields['rows'])} open rows, expected {self._config.open_rows}"
            )
        self._index, self._begin, self._first_step = fields["cursor"]
        self._draft = None
        self._candidates = {}
        self._rows.clear()
        for step, (free_patches, free_tokens, pieces) in enumerate(fields["rows"], fields["step"]):
            self._open(step)
            row = self._rows[-1]
            row.free_patches, row.free_tokens = free_patches, free_tokens
            row.pieces = pieces
            row.documents = [None] * len(pieces)

    def _open(self, step: int) -> None:
        config = self._config
        probability = aligned_probability(config.patching, step)
        self._rows.append(_OpenRow(step, probability, config.num_patches, config.num_tokens))

    def _emit(self) -> Batch:
        row = self._rows.popleft()
        self._open(row.step + self._config.open_rows)
        documents = [
            document or self._load(piece, row)
            for piece, document in zip(row.pieces, row.documents, strict=True)
        ]
        config = self._config
        return fill_row(documents, config.num_patches, config.num_tokens, config.visibility)

    def _load(self, piece: int | list[int], row: _OpenRow) -> Document:
        index, begin, end = (piece, 0, -1) if isinstance(piece, int) else piece
        draft = self._drafts.load(index, row.probability)
        aligned = draft.draw < row.probability
        return self._patch(draft, aligned, begin, None if end < 0 else end)

    def _patch(self, draft: Draft, aligned: bool, begin: int, end: int | None) -> Document:
        lengths = draft.aligned_lengths if aligned else None
        return patch_document(
            draft.tokens,
            self._config.patching,
            self._vocabulary,
            lengths,
            begin,
            end,
            draft.answer_begin,
        )

    def _place(self) -> bool:
        """Puts the next piece, or a head of it, in an open row; false if the oldest must go."""
        if self._draft is None:
            self._draft = self._drafts.load(self._index, self._rows[0].probability)
        draft, first_step = self._draft, self._first_step
        aligned = None
        for row in self._rows:
            if row.step < first_step:
                continue
            if (draft.draw < row.probability) is not aligned:
                aligned = draft.draw < row.probability
                document = self._candidate(aligned)
                num_patches, num_tokens = document.num_patches, document.num_tokens
            if num_patches <= row.free_patches and num_tokens <= row.free_tokens:
                self._add(row, document, -1)
                self._advance()
                return True
        return self._split()

    def _candidate(self, aligned: bool) -> Document:
        if aligned not in self._candidates:
            self._candidates[aligned] = self._patch(self._draft, aligned, self._begin, None)
        return self._candidates[aligned]

    def _split(self) -> bool:
        """Puts a head of the next piece, which fits nowhere whole, in a row with a gap.

        A piece that would fit in an empty row is split only to fill the row to be emitted.

        Raises:
          ValueError: a single patch exceeds a row.
        """
        config = self._config
        for row in self._rows:
            if row.step < self._first_step:
                continue
            document = self._candidate(self._draft.draw < row.probability)
            too_large = (
                document.num_patches > config.num_patches or document.num_tokens > config.num_tokens
            )
            if not too_large and row is not self._rows[0]:
                return False
            if too_large and self._draft.answer_begin:
                logging.log_first_n(
                    logging.WARNING,
                    "a question with its answer has %d patches and %d tokens, a row has %d and %d: "
                    "it is split, and of its answer only what stands in the first row is learned",
                    1,
                    *(document.num_patches, document.num_tokens),
                    *(config.num_patches, config.num_tokens),
                )
            gap = min(row.free_patches / config.num_patches, row.free_tokens / config.num_tokens)
            if gap <= config.largest_gap and row.pieces:
                continue
            num_patches = largest_head(document, row.free_patches, row.free_tokens)
            if num_patches > _PREFIX:
                self._add_head(row, document, num_patches)
                return True
            if not row.pieces:
                raise ValueError(
                    f"num_tokens is {config.num_tokens}, expected room for bos, a mode token and "
                    f"a patch of {int(document.patch_lengths[num_patches])} tokens"
                )
        return False

    def _add_head(self, row: _OpenRow, document: Document, num_patches: int) -> None:
        size = len(self._draft.tokens)
        prefix = document.num_tokens - (size - self._begin)
        end = self._begin + int(document.patch_lengths[:num_patches].sum()) - prefix
        self._add(row, self._patch(self._draft, document.aligned, self._begin, end), end)
        if end == size - 1:
            self._advance()  # only eos is left, which the head predicts
            return
        self._begin = end
        self._first_step = row.step + 1
        self._candidates = {}

    def _add(self, row: _OpenRow, document: Document, end: int) -> None:
        whole = not self._begin and end < 0
        row.pieces.append(self._index if whole else [self._index, self._begin, end])
        row.documents.append(document)
        row.free_patches -= document.num_patches
        row.free_tokens -= document.num_tokens

    def _advance(self) -> None:
        self._index += 1
        self._begin = 0
        self._first_step = 0
        self._draft = None
        self._candidates = {}
