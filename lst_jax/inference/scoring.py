"""Log-probabilities of continuations, many to a row.

Scoring sees exactly what training saw: the same rows, the same visibility rule, the same chunked
cross-entropy. A continuation is a document of its row, so it reads nothing of the others.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lst_jax.losses import token_nll
from lst_jax.models import output_kernel
from lst_jax.patching import Document, PatchingConfig, Visibility, fill_row, patch_document
from lst_jax.sharding import batch_sharding, check_rows, mesh_context, replicated
from lst_jax.vocabulary import Vocabulary

# Rows that are open at a time while packing; more fill better and cost more time.
_OPEN_ROWS = 64
# Token budgets that follow from the data are rounded up to whole blocks of the attention.
_TOKEN_MULTIPLE = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Continuation:
    """Tokens whose probability is asked, given others.

    Attributes:
      prompt: (T,) int32, given, T ≥ 1: bos, mode token, … .
      ending: (E,) int32, scored, E ≥ 1.
    """

    prompt: np.ndarray
    ending: np.ndarray

    def __post_init__(self) -> None:
        for name in ("prompt", "ending"):
            value = getattr(self, name)
            if value.ndim != 1 or not value.size or not np.issubdtype(value.dtype, np.integer):
                raise ValueError(
                    f"{name} has shape {value.shape} and type {value.dtype}; "
                    "expected one or more token ids"
                )


@dataclasses.dataclass(frozen=True)
class ScoringShape:
    """Static shape of the batches.

    Attributes:
      batch_rows: rows B of a batch.
      patches_per_row: patch slots P of a row.
      tokens_per_row: token slots N of a row. None chooses N from the continuations: as many as P
        patches hold on average, at least what the longest one needs. Where every token is a patch
        N = P, always.
    """

    batch_rows: int = 8
    patches_per_row: int = 1024
    tokens_per_row: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_rows", "patches_per_row"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.tokens_per_row is not None and self.tokens_per_row < 1:
            raise ValueError(f"tokens_per_row is {self.tokens_per_row}; expected at least 1")


def score_continuations(
    model: nn.Module,
    params: Any,
    continuations: Sequence[Continuation],
    *,
    vocabulary: Vocabulary,
    patching: PatchingConfig,
    mesh: jax.sharding.Mesh,
    shape: ScoringShape,
    visibility: Visibility = "causal",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Log-probability of every ending given its prompt, Σ_t log p(ending_t | what precedes it).

    Equal continuations are scored once, so that they get the same number.

    Args:
      model: `LatentSpeechTextTransformer` or `TokenTransformer`.
      params: its parameters.
      continuations: what to score.
      vocabulary: the id space of the model.
      patching: how the model was trained. With strategy "none" every token is a patch; with any
        other, patches are static with its `patch_size`, as no alignment exists at test time.
      mesh: the mesh that the parameters live on; rows are spread over its data and fsdp axes. In
        a run of several processes all call this with the same arguments.
      shape: shape of the batches.
      visibility: "causal", or "reference" for checkpoints of the published implementation.
      progress: called after every batch with the number of batches done and in all.

    Returns:
      (len(continuations),) float64, natural logarithms.

    Raises:
      ValueError: a continuation is longer than a row, the rows do not divide over the mesh, or a
        score is not finite.
    """
    check_rows(shape.batch_rows, mesh)
    keys = [(c.prompt.tobytes(), c.ending.tobytes()) for c in continuations]
    distinct = dict(zip(keys, continuations, strict=True))
    documents = [make_document(c, vocabulary, patching) for c in distinct.values()]
    scores = _score_documents(
        model, params, documents, vocabulary, patching, mesh, shape, visibility, progress
    )
    if not np.isfinite(scores).all():
        raise ValueError("params give log-probabilities that are not finite; expected finite ones")
    score_of = dict(zip(distinct, scores, strict=True))
    return np.array([score_of[key] for key in keys], np.float64)


def make_document(
    continuation: Continuation, vocabulary: Vocabulary, patching: PatchingConfig
) -> Document:
    """The document of a continuation: its ending is scored, its prompt is only given."""
    tokens = np.concatenate([continuation.prompt, continuation.ending])
    loss_weights = np.zeros(len(tokens), np.float32)
    loss_weights[len(continuation.prompt) - 1 : -1] = 1
    document = patch_document(tokens, patching, vocabulary)
    return dataclasses.replace(document, loss_weights=loss_weights)


def pack_documents(
    documents: Sequence[Document], num_patches: int, num_tokens: int
) -> list[list[int]]:
    """First-fit packing under both budgets, among the `_OPEN_ROWS` latest rows.

    Args:
      documents: what to pack, each within the budgets.
      num_patches: patch slots P of a row.
      num_tokens: token slots N of a row.

    Returns:
      Per row the indices of its documents; every document is in one row.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # patch and token slots left of the latest rows
    for index, document in enumerate(documents):
        patches, tokens = document.num_patches, document.num_tokens
        fits = (i for i, (p, n) in enumerate(free) if patches <= p and tokens <= n)
        slot = next(fits, None)
        if slot is None:
            free = [*free[1 - _OPEN_ROWS :], (num_patches, num_tokens)]
            rows.append([])
            slot = len(free) - 1
        rows[len(rows) - len(free) + slot].append(index)
        free[slot] = (free[slot][0] - patches, free[slot][1] - tokens)
    return rows


def _score_documents(
    model: nn.Module,
    params: Any,
    documents: Sequence[Document],
    vocabulary: Vocabulary,
    patching: PatchingConfig,
    mesh: jax.sharding.Mesh,
    shape: ScoringShape,
    visibility: Visibility,
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """Σ weight · log p per document, (len(documents),) float64."""
    scores = np.zeros(len(documents))
    if not documents:
        return scores
    num_patches, num_tokens = _row_budgets(documents, patching, shape)
    rows = pack_documents(documents, num_patches, num_tokens)
    batches = [rows[i : i + shape.batch_rows] for i in range(0, len(rows), shape.batch_rows)]
    token_losses = _token_losses_function(model, num_patches, vocabulary.size, mesh)
    for done, batch_rows in enumerate(batches, start=1):
        padded = batch_rows + [[]] * (shape.batch_rows - len(batch_rows))
        filled = [
            fill_row([documents[i] for i in row], num_patches, num_tokens, visibility)
            for row in padded
        ]
        batch = {name: np.stack([row[name] for row in filled]) for name in filled[0]}
        with mesh_context(mesh):
            losses = np.asarray(token_losses(params, _place(batch, mesh)), np.float64)
        for row, ids, row_losses in zip(padded, batch["document_ids"], losses, strict=True):
            # Document i of a row has id i + 1, padding 0.
            scores[row] = -np.bincount(ids, row_losses, minlength=len(row) + 1)[1:]
        if progress:
            progress(done, len(batches))
    return scores


def _row_budgets(
    documents: Sequence[Document], patching: PatchingConfig, shape: ScoringShape
) -> tuple[int, int]:
    """Patch and token slots of a row (P, N), checked against the longest documents."""
    patches = [document.num_patches for document in documents]
    tokens = [document.num_tokens for document in documents]
    num_patches, num_tokens = shape.patches_per_row, shape.tokens_per_row
    if max(patches) > num_patches:
        raise ValueError(
            f"patches_per_row is {num_patches}; expected at least {max(patches)}, what the "
            "longest continuation needs"
        )
    if patching.strategy == "none":
        if num_tokens not in (None, num_patches):
            raise ValueError(
                f"tokens_per_row is {num_tokens}; expected {num_patches} = patches_per_row, as "
                "every token is a patch"
            )
        return num_patches, num_patches
    if num_tokens is None:
        mean_fill = max(num_patches * sum(tokens) / sum(patches), max(tokens))
        return num_patches, _TOKEN_MULTIPLE * math.ceil(mean_fill / _TOKEN_MULTIPLE)
    if max(tokens) > num_tokens:
        raise ValueError(
            f"tokens_per_row is {num_tokens}; expected at least {max(tokens)}, what the longest "
            "continuation needs"
        )
    return num_patches, num_tokens


@functools.lru_cache(maxsize=8)
def _token_losses_function(
    model: nn.Module, num_patches: int, vocab_size: int, mesh: jax.sharding.Mesh
) -> Callable[[Any, Mapping[str, jax.Array]], jax.Array]:
    """The compiled (params, batch) -> weighted losses −weight · log p, (B, N) float32, whole."""

    def token_losses(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        hidden = model.apply({"params": params}, batch, num_patches=num_patches)["hidden"]
        nll = token_nll(hidden, output_kernel(params), batch["targets"], vocab_size)
        return nll * batch["loss_weights"]

    return jax.jit(token_losses, out_shardings=replicated(mesh))


def _place(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Global arrays of a batch that every process holds as a whole, rows over the mesh."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        for name, array in batch.items()
    }
