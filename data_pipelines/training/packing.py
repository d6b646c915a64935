"""Packing: streams of documents become rows of a static shape, one row per stream and step.

Row b of every batch comes from stream b, which emits exactly one row per optimizer step, so that a
row's number in its stream is the step u it will be trained on. A document's patching depends on
u through the curriculum, and its size on its patching. The packer keeps a window of open rows and
has two policies. `choose_row` puts a document in the first open row with room for it, patched as
that row's step asks for. Where it fits nowhere, `choose_head` splits it to fill a row that else
would keep a gap; if no row has one, the oldest row is emitted.

Nothing of Grain's does this. `FirstFitPackIterDataset` and `BestFitPackIterDataset` place elements
whose lengths are known before a bin is chosen, leave them whole, and emit a group of bins when one
element fits in none of them. `ConcatThenSplitIterDataset` splits each feature where that feature's
length is full, tokens and patches at different places, and knows nothing of the bos and mode token
that a continuation opens with. All three restore by reading again what is in the open bins; the
state here is the place of every piece, and documents are read when their row is emitted.
`ElasticIterator` continues on another number of hosts from one count of elements, and so refuses
whatever makes rows of a changing number of them.

What a stream emits depends on its documents alone, not on other streams: so it does not matter
which process or host runs it, how far ahead, or whether it was restored.
"""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Protocol

from absl import logging

from data_pipelines.training.interleaving import Draft
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


class DraftStream(Protocol):
    """The documents of one stream by position; reading one again gives the same document."""

    def __len__(self) -> int: ...

    def load(self, index: int, probability: float) -> Draft:
        """Loads document `index`, with `aligned_lengths` if drawn below `probability`."""
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
class OpenRow:
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


def choose_row(rows: Sequence[OpenRow], candidate: Callable[[OpenRow], Document]) -> OpenRow | None:
    """Returns the first row with room for the whole of a piece, None where none has.

    Args:
      rows: in the order of steps.
      candidate: the piece as it is patched in a row.
    """
    for row in rows:
        document = candidate(row)
        if document.num_patches <= row.free_patches and document.num_tokens <= row.free_tokens:
            return row
    return None


def choose_head(
    rows: Sequence[OpenRow],
    candidate: Callable[[OpenRow], Document],
    config: PackingConfig,
    oldest_step: int,
) -> tuple[OpenRow, int] | None:
    """Returns where to put a head of a piece that fits nowhere whole, and how many patches it has.

    Args:
      rows: in the order of steps, those that may hold the piece.
      candidate: the piece as it is patched in a row.
      config: shape of a row, and the gap that may stay.
      oldest_step: step of the row that is emitted next.

    Returns:
      A row and a number of patches; None where the oldest row must be emitted first.

    Raises:
      ValueError: a single patch exceeds a row.
    """
    for row in rows:
        document = candidate(row)
        # A piece that would fit in an empty row waits for one, except to fill the row that goes
        # now: a split costs a continuation's prefix and its context, later rows may yet fill up.
        if not _exceeds_row(document, config) and row.step != oldest_step:
            return None
        # The scarcer of the two budgets says how full a row is. A row without documents is never
        # left as it is: a piece too large for every row would never be placed.
        gap = min(row.free_patches / config.num_patches, row.free_tokens / config.num_tokens)
        if gap <= config.largest_gap and row.pieces:
            continue
        num_patches = largest_head(document, row.free_patches, row.free_tokens)
        # A head of a continuation's prefix alone would bring the piece no further.
        if num_patches > _PREFIX:
            return row, num_patches
        if not row.pieces:
            raise ValueError(
                f"PackingConfig.num_tokens is {config.num_tokens}, expected room for bos, a mode "
                f"token and a patch of {int(document.patch_lengths[num_patches])} tokens"
            )
    return None


def _exceeds_row(document: Document, config: PackingConfig) -> bool:
    return document.num_patches > config.num_patches or document.num_tokens > config.num_tokens


def _warn_of_split_question(draft: Draft, document: Document, config: PackingConfig) -> None:
    if draft.answer_begin and _exceeds_row(document, config):
        logging.log_first_n(
            logging.WARNING,
            "a question with its answer has %d patches and %d tokens, a row has %d and %d: "
            "it is split, and of its answer only what stands in the first row is learned",
            1,
            *(document.num_patches, document.num_tokens),
            *(config.num_patches, config.num_tokens),
        )


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
        self._rows: deque[OpenRow] = deque()
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
        """Returns the step of the next row."""
        return self._rows[0].step

    def __next__(self) -> Batch:
        while self._index < self._size:
            if not self._place():
                return self._emit()
        if any(row.pieces for row in self._rows):
            return self._emit()
        raise StopIteration

    def get_state(self) -> str:
        """Returns the position as JSON: references to documents in open rows and the next one."""
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
        self._rows.append(OpenRow(step, probability, config.num_patches, config.num_tokens))

    def _emit(self) -> Batch:
        row = self._rows.popleft()
        self._open(row.step + self._config.open_rows)
        documents = [
            document or self._load(piece, row)
            for piece, document in zip(row.pieces, row.documents, strict=True)
        ]
        config = self._config
        return fill_row(documents, config.num_patches, config.num_tokens, config.visibility)

    def _load(self, piece: int | list[int], row: OpenRow) -> Document:
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
        # The rest of a split document comes after its head, in a row of a later step.
        rows = [row for row in self._rows if row.step >= self._first_step]
        row = choose_row(rows, self._candidate)
        if row is not None:
            self._add(row, self._candidate(row), -1)
            self._advance()
            return True
        found = choose_head(rows, self._candidate, self._config, self._rows[0].step)
        if found is None:
            return False
        self._add_head(*found)
        return True

    def _candidate(self, row: OpenRow) -> Document:
        """Returns the next piece as it would be patched in a row: in one of two ways, made once."""
        assert self._draft is not None  # `_place` has read it
        aligned = self._draft.draw < row.probability
        if aligned not in self._candidates:
            self._candidates[aligned] = self._patch(self._draft, aligned, self._begin, None)
        return self._candidates[aligned]

    def _add_head(self, row: OpenRow, num_patches: int) -> None:
        """Puts the first patches of the next piece in a row; what is left is the next piece."""
        draft, document = self._draft, self._candidate(row)
        assert draft is not None  # `_place` has read it
        _warn_of_split_question(draft, document, self._config)
        size = len(draft.tokens)
        # A piece that continues a document opens with a bos and a mode token that the document
        # has elsewhere; they are no part of what is used up.
        prefix = document.num_tokens - (size - self._begin)
        end = self._begin + int(document.patch_lengths[:num_patches].sum()) - prefix
        # Patched again, not cut: a head knows the token after it, its last target, and where it
        # is a continuation's own head its first patches may differ.
        self._add(row, self._patch(draft, document.aligned, self._begin, end), end)
        if end == size - 1:
            self._advance()  # only eos is left, which the head predicts
            return
        self._begin = end
        # Steps order the pieces, so that no document's end is learned before its beginning.
        self._first_step = row.step + 1
        self._candidates = {}

    def _add(self, row: OpenRow, document: Document, end: int) -> None:
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
