"""Log-probabilities of continuations, many to a row.

Scoring sees exactly what training saw: the same rows, the same visibility rule, the same chunked
cross-entropy. A continuation is a document of its row, so it reads nothing of the others. Endings
of one prompt stand side by side and share it: it runs once for all of them, in the same pass
(`shared_prefix`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lst_jax.batch import SharedBatch, stack_rows
from lst_jax.config import LSTConfig
from lst_jax.inference.shared_prefix import RowSize, fill_shared_row, measure_row
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.model.key_ranges import shared_lst_key_ranges, shared_token_key_range
from lst_jax.model.losses import token_nll
from lst_jax.model.models import output_kernel
from lst_jax.patching import Document, PatchingConfig, patch_document
from lst_jax.settings import BatchRows, RowSlots, configuration
from lst_jax.shapes import Float, Int, check_shapes
from lst_jax.sharding import (
    LogicalRules,
    batch_sharding,
    check_rows,
    mesh_context,
    replicated,
)
from lst_jax.vocabulary import Vocabulary

# Rows that are open at a time while packing; more fill better and cost more time.
_OPEN_ROWS = 64
# Budgets that follow from the data are rounded up to whole blocks of the attention.
_MULTIPLE = 128
# Places of a row (`shared_prefix`) cost no run, only memory for a key and a value: there are more
# of them than the mean row needs, so that what runs fills it, and at most so many times what runs.
_SPARE_PLACES = 1.25
_MOST_PLACES = 4


# What the probability of a token is over: the whole vocabulary, or speech alone where the token is
# speech.
Logits = Literal["all", "speech"]


@dataclasses.dataclass(frozen=True, eq=False)
class Continuation:
    """Tokens whose probability is asked, given others.

    Attributes:
      prompt: (T,) int32, given, T ≥ 1: bos, mode token, … .
      ending: (E,) int32, scored, E ≥ 1.
    """

    prompt: Int[np.ndarray, " n"]
    ending: Int[np.ndarray, " m"]

    def __post_init__(self) -> None:
        for name in ("prompt", "ending"):
            value = getattr(self, name)
            if value.ndim != 1 or not value.size or not np.issubdtype(value.dtype, np.integer):
                raise ValueError(
                    f"{name} has shape {value.shape} and type {value.dtype}; "
                    "expected one or more token ids"
                )


@configuration
class ScoringShape:
    """Static shape of the batches.

    Attributes:
      batch_rows: rows B of a batch.
      patches_per_row: patch slots P of a row.
      tokens_per_row: token slots N of a row. None chooses N from the continuations: as many as P
        patches hold on average, at least what the longest one needs. Where every token is a patch
        N = P, always.
    """

    batch_rows: BatchRows = 8
    patches_per_row: RowSlots = 1024
    tokens_per_row: RowSlots | None = None


@check_shapes
def score_continuations(
    trained: TrainedModel,
    continuations: Sequence[Continuation],
    *,
    shape: ScoringShape | None = None,
    logits: Logits = "all",
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, " n"]:
    """Returns the log-probability of every ending given its prompt, Σ_t log p(ending_t | before).

    Equal continuations are scored once, so that they get the same number. A prompt of several
    endings runs once for as many of them as a row holds.

    Args:
      trained: the model.
      continuations: what to score.
      shape: shape of the batches; None is `ScoringShape()`.
      logits: "speech" leaves text and control tokens out where the next token is speech: how likely
        it is, given that speech follows. Text is scored over the whole vocabulary always.
      progress: called after every batch with the number of batches done and in all.

    Returns:
      (len(continuations),) float64, natural logarithms.

    Raises:
      ValueError: a continuation is longer than a row, the rows do not divide over the mesh, or a
        score is not finite.
    """
    shape, mesh, patching = shape or ScoringShape(), trained.mesh, trained.patching
    rules = tuple(trained.rules)
    check_rows(shape.batch_rows, mesh, rules=rules)
    keys = [(c.prompt.tobytes(), c.ending.tobytes()) for c in continuations]
    distinct = dict(zip(keys, continuations, strict=True))
    documents = [make_document(c, trained.vocabulary, patching) for c in distinct.values()]
    scores = np.zeros(len(documents))
    size, rows = _plan_rows(documents, [prompt for prompt, _ in distinct], patching, shape)
    first_unit_id = trained.vocabulary.first_unit_id if logits == "speech" else None
    item_losses = _item_losses_function(
        trained.model, trained.vocabulary.size, first_unit_id, mesh, rules
    )
    batches = [rows[i : i + shape.batch_rows] for i in range(0, len(rows), shape.batch_rows)]
    for done, batch_rows in enumerate(batches, start=1):
        padded = batch_rows + [[]] * (shape.batch_rows - len(batch_rows))
        filled = [
            fill_shared_row([documents[i] for i in row], size, trained.visibility) for row in padded
        ]
        batch = _place(stack_rows(filled), batch_sharding(mesh, rules))
        with mesh_context(mesh, rules):
            losses = np.asarray(item_losses(trained.params, batch), np.float64)
        for row, arrays, row_losses in zip(padded, filled, losses, strict=True):
            scores[row] = _sum_scores(arrays, row_losses, len(row))
        if progress:
            progress(done, len(batches))
    if not np.isfinite(scores).all():
        raise ValueError("params give log-probabilities that are not finite; expected finite ones")
    score_of = dict(zip(distinct, scores, strict=True))
    return np.array([score_of[key] for key in keys], np.float64)


@check_shapes
def make_document(
    continuation: Continuation, vocabulary: Vocabulary, patching: PatchingConfig
) -> Document:
    """Returns the document of a continuation: its ending is scored, its prompt is only given."""
    tokens = np.concatenate([continuation.prompt, continuation.ending])
    loss_weights = np.zeros(len(tokens), np.float32)
    loss_weights[len(continuation.prompt) - 1 : -1] = 1
    document = patch_document(tokens, patching, vocabulary)
    return dataclasses.replace(document, loss_weights=loss_weights)


def group_by_prompt(
    documents: Sequence[Document], prompts: Sequence[bytes], limit: RowSize
) -> list[list[int]]:
    """Groups documents of one prompt, similar ones side by side, as many as the limit allows.

    Args:
      documents: what to group, each within the limit.
      prompts: what the prompt of each is.
      limit: of a group.

    Returns:
      Per group the indices of its documents; every document is in one.
    """
    by_prompt: dict[bytes, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt, []).append(index)
    groups = []
    for indices in by_prompt.values():
        need = np.full(len(limit), np.inf)
        previous: list[Document] = []
        for index in sorted(indices, key=lambda i: documents[i].tokens.tolist()):
            document = documents[index]
            need += np.subtract(measure_row([*previous, document]), measure_row(previous))
            if (need > limit).any():
                groups.append([])
                need = np.array(measure_row([document]), float)
            groups[-1].append(index)
            previous = [document]
    return groups


def pack(needs: Sequence[Sequence[int]] | np.ndarray, budget: Sequence[int]) -> list[list[int]]:
    """Packs first-fit under several budgets at once, among the `_OPEN_ROWS` latest rows.

    Args:
      needs: what each thing takes of every budget, all within them.
      budget: of a row.

    Returns:
      Per row the indices of what it holds; everything is in one row.
    """
    rows: list[list[int]] = []
    free = np.zeros((0, len(budget)), np.int64)  # what is left of the latest rows
    for index, need in enumerate(np.asarray(needs)):
        fits = np.flatnonzero((need <= free).all(axis=1))
        if not fits.size:
            free = np.concatenate([free[1 - _OPEN_ROWS :], [budget]])
            rows.append([])
            fits = [len(free) - 1]
        rows[len(rows) - len(free) + fits[0]].append(index)
        free[fits[0]] -= need
    return rows


def _plan_rows(
    documents: Sequence[Document],
    prompts: Sequence[bytes],
    patching: PatchingConfig,
    shape: ScoringShape,
) -> tuple[RowSize, list[list[int]]]:
    """Returns the slots of a row, and the indices of the documents in each row, in order."""
    if not documents:
        return RowSize(0, 0, 0, 0), []
    slots = _row_slots([measure_row([document])[2:] for document in documents], patching, shape)
    limit = RowSize(_MOST_PLACES * slots[0], _MOST_PLACES * slots[1], *slots)
    groups = group_by_prompt(documents, prompts, limit)
    needs = np.array([measure_row([documents[i] for i in group]) for group in groups])
    slots = _row_slots(needs[:, 2:], patching, shape)
    sums = needs.sum(axis=0)
    places = np.maximum(_SPARE_PLACES * np.array(slots) * sums[:2] / sums[2:], needs[:, :2].max(0))
    size = RowSize(_round_up(places[0]), _round_up(places[1]), *slots)
    return size, [[i for group in row for i in groups[group]] for row in pack(needs, size)]


def _row_slots(
    needs: Sequence[Sequence[int]] | np.ndarray, patching: PatchingConfig, shape: ScoringShape
) -> tuple[int, int]:
    """Returns patch and token slots of a row (P, N), checked against what the continuations need.

    Args:
      needs: patches and tokens of every continuation or group of them.
      patching: how the model was trained.
      shape: what is asked for.
    """
    num_patches, num_tokens = shape.patches_per_row, shape.tokens_per_row
    most_patches, most_tokens = np.max(needs, axis=0).tolist()
    if most_patches > num_patches:
        raise ValueError(
            f"patches_per_row is {num_patches}; expected at least {most_patches}, what the "
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
        all_patches, all_tokens = np.sum(needs, axis=0).tolist()
        return num_patches, _round_up(max(num_patches * all_tokens / all_patches, most_tokens))
    if most_tokens > num_tokens:
        raise ValueError(
            f"tokens_per_row is {num_tokens}; expected at least {most_tokens}, what the longest "
            "continuation needs"
        )
    return num_patches, num_tokens


def _round_up(size: float) -> int:
    return _MULTIPLE * math.ceil(size / _MULTIPLE)


def _sum_scores(row: SharedBatch, losses: np.ndarray, count: int) -> np.ndarray:
    """Returns log-probabilities (count,) of a row's documents from the losses (M,) of its items."""
    # A token's weight is that of predicting the next one, 0 for the last of a document. Document i
    # of a row has id i + 1, padding 0.
    weighted = np.roll(row.places.loss_weights, 1) * losses[row.token_items]
    return -np.bincount(row.places.document_ids, weighted, minlength=count + 1)[1:]


@functools.lru_cache(maxsize=8)
def _item_losses_function(
    model: nn.Module,
    vocab_size: int,
    first_unit_id: int | None,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules,
) -> Callable[[Any, SharedBatch], jax.Array]:
    """Returns the compiled (params, batch) -> losses −log p of items, (B, M) float32, whole."""

    def item_losses(params: Any, batch: SharedBatch) -> jax.Array:
        hidden = _run_items(model, params, batch)
        before = jnp.take_along_axis(hidden, batch.previous_items[..., None], axis=1)
        kernel, targets = output_kernel(params), batch.item_tokens
        losses = token_nll(before, kernel, targets, vocab_size)
        if first_unit_id is None:
            return losses
        # Speech ids are the last real columns: turned to the front, all others are padding.
        units = jnp.maximum(targets - first_unit_id, 0)
        kernel = jnp.roll(kernel, -first_unit_id, axis=1)
        alone = token_nll(before, kernel, units, vocab_size - first_unit_id)
        return jnp.where(targets >= first_unit_id, alone, losses)

    return jax.jit(item_losses, out_shardings=replicated(mesh))


def _run_items(model: nn.Module, params: Any, batch: SharedBatch) -> jax.Array:
    """Returns the hidden states (B, M, width) of the token items of a batch of shared rows."""
    if isinstance(model.config, LSTConfig):
        ranges = shared_lst_key_ranges(batch, model.config)
        inputs = batch.item_tokens, batch.item_patch_ids, ranges
        outputs: Any = model.apply({"params": params}, *inputs, method="run_tokens")
        return cast(Mapping[str, jax.Array], outputs)["hidden"]
    inputs = batch.item_tokens, shared_token_key_range(batch, None)
    return cast(jax.Array, model.apply({"params": params}, *inputs, method="run_tokens"))


def _place(batch: SharedBatch, sharding: jax.sharding.Sharding) -> SharedBatch:
    """Makes global arrays of a batch that every process holds whole, rows over the mesh."""
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), batch
    )
