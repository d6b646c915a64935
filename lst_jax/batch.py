"""A batch: what the data pipelines make and the models are trained on.

Its arrays are made on the host, in static shapes, and go to the devices as they are. This module
loads no JAX, as data workers need none; `sharding` makes batches JAX trees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from lst_jax.shapes import Float32, Int32

AnyArray = Any  # of NumPy on the host, of JAX on the devices

Rows = TypeVar("Rows", "Batch", "SharedBatch")


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """B rows, each of documents side by side; a JAX tree of its arrays.

    What `patching.fill_row` makes is a single row: the same arrays without the axis B.

    Attributes:
      tokens: (B, N) int32, 0 in padding.
      targets: (B, N) int32, the token after each position, 0 where there is none.
      loss_weights: (B, N) float32, weight of predicting the target, 0 in padding.
      document_ids: (B, N) int32, 1, 2, … along the row, 0 in padding.
      patch_ids: (B, N) int32, patch of the row, P in padding.
      visible_patch: (B, N) int32, last patch of the row that the prediction may use, −1 in padding;
        where it precedes the token's document, the prediction may use none.
      speech_examples: (B,) int32, documents with speech.
      aligned_examples: (B,) int32, those of them that are segmented by words.
      num_patches: P, patch slots of a row; static.
    """

    tokens: Int32[AnyArray, "*b N"]
    targets: Int32[AnyArray, "*b N"]
    loss_weights: Float32[AnyArray, "*b N"]
    document_ids: Int32[AnyArray, "*b N"]
    patch_ids: Int32[AnyArray, "*b N"]
    visible_patch: Int32[AnyArray, "*b N"]
    speech_examples: Int32[AnyArray, " *b"]
    aligned_examples: Int32[AnyArray, " *b"]
    num_patches: int = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True, eq=False)
class SharedBatch:
    """B rows of documents that share the items of their beginnings (`inference.shared_prefix`).

    Attributes:
      places: the rows as in training, of P patch and N token places.
      token_items, patch_items: (B, N) and (B, P) int32, the item in each place, 0 in padding.
      token_places, patch_places: (B, M) and (B, Q) int32, the first place of each item, increasing;
        N or P in padding.
      item_tokens: (B, M) int32, the token that each item is.
      item_patch_ids: (B, M) int32, the patch item that each item belongs to, Q in padding.
      previous_items: (B, M) int32, the item in the place before the first one, which predicts it;
        any for the first token of a document.
    """

    places: Batch
    token_items: Int32[AnyArray, "*b N"]
    patch_items: Int32[AnyArray, "*b _"]
    token_places: Int32[AnyArray, "*b M"]
    patch_places: Int32[AnyArray, "*b _"]
    item_tokens: Int32[AnyArray, "*b M"]
    item_patch_ids: Int32[AnyArray, "*b M"]
    previous_items: Int32[AnyArray, "*b M"]


def padding_rows(num_patches: int, num_tokens: int, rows: tuple[int, ...] = ()) -> Batch:
    """Returns rows without documents.

    Args:
      num_patches: P, patch slots of a row.
      num_tokens: N, token slots of a row.
      rows: (B,) for a batch, () for a single row.
    """
    shape = (*rows, num_tokens)
    return Batch(
        tokens=np.zeros(shape, np.int32),
        targets=np.zeros(shape, np.int32),
        loss_weights=np.zeros(shape, np.float32),
        document_ids=np.zeros(shape, np.int32),
        patch_ids=np.full(shape, num_patches, np.int32),
        visible_patch=np.full(shape, -1, np.int32),
        speech_examples=np.zeros(rows, np.int32),
        aligned_examples=np.zeros(rows, np.int32),
        num_patches=num_patches,
    )


def batch_arrays(batch: Batch) -> dict[str, Any]:
    """Returns the arrays by their names, without `num_patches`."""
    return {name: value for name, value in vars(batch).items() if name != "num_patches"}


def stack_rows(rows: Sequence[Rows]) -> Rows:
    """Returns the batch of single rows, all of one shape."""
    return _merge(np.stack, rows)


def join_batches(batches: Sequence[Rows]) -> Rows:
    """Returns the rows of several batches as one, in arrays that share no memory with theirs."""
    return _merge(np.concatenate, batches)


def _merge(function: Callable[[list[Any]], Any], batches: Sequence[Rows]) -> Rows:
    def merged(name: str, first: Any) -> Any:
        if name == "num_patches":
            return first
        values = [getattr(batch, name) for batch in batches]
        return _merge(function, values) if isinstance(first, Batch) else function(values)

    fields = {name: merged(name, first) for name, first in vars(batches[0]).items()}
    return dataclasses.replace(batches[0], **fields)
