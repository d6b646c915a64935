"""Rows in which documents that begin alike share their beginnings, so that these run once.

A row is documents side by side, as in training (`patching.fill_row`); here what stands in its
places need not be distinct. The patches with which a document and the one before it both begin,
and their tokens, are the same *items* in the *places* of both, and only items run:

    documents   a b c d | a b c e f | g
    items       a b c d         e f   g
    places      0 1 2 3   0 1 2 4 5   6

What a model makes of an item depends on nothing after it, hence not on which of the documents it
is read in. Only a patch that has ended, and ended alike, is shared; the last patch of a prompt that
stops inside one runs once for every ending.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lst_jax.batch import SharedBatch
from lst_jax.patching import Document, Visibility, fill_row
from lst_jax.shapes import check_shapes


class RowSize(NamedTuple):
    """Slots of a row.

    Attributes:
      place_patches, place_tokens: P and N, what documents have side by side.
      item_patches, item_tokens: Q and M, what runs.
    """

    place_patches: int
    place_tokens: int
    item_patches: int
    item_tokens: int


def count_common_patches(first: Document, second: Document) -> int:
    """Returns patches with which both begin."""
    count = min(first.num_patches, second.num_patches)
    alike = (first.patch_lengths[:count] == second.patch_lengths[:count]) & (
        first.provable[:count] == second.provable[:count]
    )
    ends = np.cumsum(first.patch_lengths[: _count_leading(alike)])
    size = min(first.num_tokens, second.num_tokens)
    tokens = _count_leading(first.tokens[:size] == second.tokens[:size])
    return int(np.searchsorted(ends, tokens, side="right"))


def measure_row(documents: Sequence[Document]) -> RowSize:
    """Returns the slots that a row of these documents, in this order, needs."""
    patches, tokens = _common(documents)
    place_patches = sum(document.num_patches for document in documents)
    place_tokens = sum(document.num_tokens for document in documents)
    return RowSize(
        place_patches, place_tokens, place_patches - sum(patches), place_tokens - sum(tokens)
    )


@check_shapes
def fill_shared_row(
    documents: Sequence[Document], size: RowSize, visibility: Visibility = "causal"
) -> SharedBatch:
    """Returns one row of a batch.

    Args:
      documents: what the row holds, in order; none gives a row of padding.
      size: P, N, Q and M, each at least what `measure_row` says.
      visibility: see `patching.fill_row`.

    Raises:
      ValueError: the documents do not fit.
    """
    needed = measure_row(documents)
    if any(need > slots for need, slots in zip(needed, size, strict=True)):
        raise ValueError(f"documents need {needed}; expected at most {size}")
    row = fill_row(documents, size.place_patches, size.place_tokens, visibility)
    common_patches, common_tokens = _common(documents)
    patch_items, patch_places = _assign_items(
        [document.num_patches for document in documents], common_patches
    )
    token_items, token_places = _assign_items(
        [document.num_tokens for document in documents], common_tokens
    )
    item_patch_ids = patch_items[row.patch_ids[token_places]]
    return SharedBatch(
        places=row,
        token_items=_pad(token_items, size.place_tokens, 0),
        patch_items=_pad(patch_items, size.place_patches, 0),
        token_places=_pad(token_places, size.item_tokens, size.place_tokens),
        patch_places=_pad(patch_places, size.item_patches, size.place_patches),
        item_tokens=_pad(row.tokens[token_places], size.item_tokens, 0),
        item_patch_ids=_pad(item_patch_ids, size.item_tokens, size.item_patches),
        previous_items=_pad(token_items[token_places - 1], size.item_tokens, 0),
    )


def _common(documents: Sequence[Document]) -> tuple[list[int], list[int]]:
    """Returns patches and tokens that each document shares with the one before it."""
    patches = [count_common_patches(*pair) for pair in itertools.pairwise(documents)]
    patches = [0, *patches][: len(documents)]
    tokens = [
        int(document.patch_lengths[:count].sum())
        for document, count in zip(documents, patches, strict=True)
    ]
    return patches, tokens


def _assign_items(sizes: Sequence[int], common: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the item in each place, and the first place of each item.

    Args:
      sizes: places of each document.
      common: how many of them, from the first on, have the items of the document before.
    """
    items, used, previous = [np.zeros(0, np.int32)], 0, np.zeros(0, np.int32)
    for size, shared in zip(sizes, common, strict=True):
        new = np.arange(used, used + size - shared, dtype=np.int32)
        previous = np.concatenate([previous[:shared], new])
        items.append(previous)
        used += size - shared
    items = np.concatenate(items)
    return items, np.unique(items, return_index=True)[1]


def _count_leading(values: np.ndarray) -> int:
    """Returns how many are true before the first that is not."""
    return int(np.append(values, False).argmin())


def _pad(values: np.ndarray, size: int, filler: int) -> np.ndarray:
    padding = np.full(size - len(values), filler)
    return np.concatenate([values, padding]).astype(np.int32)
