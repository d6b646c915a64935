"""States of chosen patches at every layer of the global transformer, and what a text lens reads."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lst_jax.batch import Batch, stack_rows
from lst_jax.inference.scoring import pack
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.model.intermediates import global_states, text_logits_of_states
from lst_jax.patching import Document, fill_row, patch_document
from lst_jax.settings import require
from lst_jax.shapes import Float32, Int, Int32, check_shapes
from lst_jax.sharding import batch_mesh_size, batch_sharding, check_rows, mesh_context, replicated

_MULTIPLE = 128  # rows are whole blocks of the attention
_LENS_STATES = 256  # that the lens reads at a time: logits of as many vocabularies


@dataclasses.dataclass(frozen=True, eq=False)
class ChosenPatches:
    """M patches of some documents.

    Attributes:
      documents: segmented, each within `patches_per_row`.
      document: (M,) the document of each patch.
      patch: (M,) its place in the document.
    """

    documents: Sequence[Document]
    document: Int[np.ndarray, " m"]
    patch: Int[np.ndarray, " m"]


def mean_token_embeddings(trained: TrainedModel, chosen: ChosenPatches) -> np.ndarray:
    """Returns the mean embedding of the tokens of every patch, (M, d) float32."""
    table = np.asarray(trained.params["encoder"]["embedding"]["table"])
    means = []
    for index, patch in zip(chosen.document, chosen.patch, strict=True):
        document = chosen.documents[index]
        start = document.patch_lengths[:patch].sum()
        tokens = document.tokens[start : start + document.patch_lengths[patch]]
        means.append(table[tokens].mean(axis=0))
    return np.stack(means)


def patch_states(
    trained: TrainedModel,
    chosen: ChosenPatches,
    *,
    batch_rows: int = 8,
    patches_per_row: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> Float32[np.ndarray, "n m D"]:
    """Runs documents and keeps the states of the chosen patches.

    A device holds the states of all patches of a batch, (layers + 1) · B · P · D; the host those
    of the chosen ones.

    Args:
      trained: an LST.
      chosen: documents, and which of their patches.
      batch_rows: rows B of a batch.
      patches_per_row: patch slots P of a row.
      progress: called after every batch with the number of batches done and in all.

    Returns:
      (layers + 1, M, D) float32: the input of the global transformer, then each layer's output.

    Raises:
      ValueError: the model has no patches, or the rows do not divide over the devices.
    """
    mesh, rules = trained.mesh, tuple(trained.rules)
    check_rows(batch_rows, mesh, rules=rules)
    documents = chosen.documents
    needs = [(document.num_patches, document.num_tokens) for document in documents]
    patches, tokens = np.sum(needs, axis=0)
    mean_tokens = patches_per_row * tokens / patches
    size = patches_per_row, _round_up(max(mean_tokens, max(need for _, need in needs)))
    rows = pack(needs, size)
    where = _places(rows, needs, chosen)
    slots = max(len(members) for members, _ in where)

    run = _states_function(trained.model, mesh)
    results: np.ndarray | None = None
    starts = range(0, len(rows), batch_rows)
    for done, start in enumerate(starts, start=1):
        members = [*rows[start : start + batch_rows], *[[]] * batch_rows][:batch_rows]
        batch = stack_rows(
            [fill_row([documents[i] for i in row], *size, trained.visibility) for row in members]
        )
        places = np.zeros((batch_rows, slots), np.int32)
        for row, (_, patch) in enumerate(where[start : start + batch_rows]):
            places[row, : len(patch)] = patch
        batch, places = jax.device_put((batch, places), batch_sharding(mesh, rules))
        with mesh_context(mesh, rules):
            states = np.asarray(run(trained.params, batch, places))
        if results is None:
            shape = (states.shape[0], len(chosen.patch), states.shape[-1])
            results = np.zeros(shape, np.float32)
        for row, (members, _) in enumerate(where[start : start + batch_rows]):
            results[:, members] = states[:, row, : len(members)]
        if progress:
            progress(done, len(starts))
    assert results is not None  # there is a document
    return results


def _places(
    rows: Sequence[Sequence[int]], needs: Sequence[tuple[int, int]], chosen: ChosenPatches
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns for every row which of the M patches it has, and where in the row they are."""
    row_of, first = np.zeros((2, len(needs)), np.int64)
    for number, row in enumerate(rows):
        position = 0
        for index in row:
            row_of[index], first[index] = number, position
            position += needs[index][0]
    members = [np.flatnonzero(row_of[chosen.document] == row) for row in range(len(rows))]
    places = first[chosen.document] + chosen.patch
    return [(found, places[found]) for found in members]


@check_shapes
def read_as_text(
    trained: TrainedModel,
    states: Float32[np.ndarray, "m D"],
    candidates: Sequence[Int[np.ndarray, " _"]],
) -> Int32[np.ndarray, "n m"]:
    """Returns the text pieces that states are read as (`text_logits_of_states`).

    Args:
      trained: an LST.
      states: (M, D) of its global transformer.
      candidates: sets of pieces to choose from.

    Returns:
      (1 + sets, M): the likeliest of all text pieces, then that of each set.
    """
    mesh, rules, vocabulary = trained.mesh, tuple(trained.rules), trained.vocabulary
    parts = batch_mesh_size(mesh, rules)
    count = parts * -(-_LENS_STATES // parts)
    tokens = np.array([vocabulary.bos_id, vocabulary.text_mode_id], np.int32)
    document = patch_document(tokens, trained.patching, vocabulary)
    opening = stack_rows([fill_row([document], 2, 2, trained.visibility)] * count)
    ids = np.arange(vocabulary.text_size)
    sets = [ids[vocabulary.is_text(ids)], *candidates]
    require(all(map(len, sets)), "candidates", candidates, "sets of at least one piece")
    run, sharding = _lens_function(trained.model, mesh), batch_sharding(mesh, rules)
    read = []
    for start in range(0, len(states), count):
        part = states[start : start + count]
        padded = np.pad(part, ((0, count - len(part)), (0, 0)), constant_values=1)
        inputs = jax.device_put((padded, opening), sharding)
        with mesh_context(mesh, rules):
            found = run(trained.params, *inputs, sets)
        read.append(np.asarray(found)[:, : len(part)])
    return np.concatenate(read, axis=1).astype(np.int32)


@functools.lru_cache(maxsize=8)
def _states_function(model: nn.Module, mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
    """Returns (params, batch, places (B, S)) -> states of the places, (layers + 1, B, S, D)."""

    def run(params: Any, batch: Batch, places: jax.Array) -> jax.Array:
        states = global_states(model, params, batch)
        kept = jnp.take_along_axis(states, places[None, :, :, None], axis=2)
        return kept.astype(jnp.float32)

    return jax.jit(run, out_shardings=replicated(mesh))


@functools.lru_cache(maxsize=8)
def _lens_function(model: nn.Module, mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
    """Returns (params, states (M, D), opening, sets of pieces) -> likeliest of each set, (n, M)."""

    def run(params: Any, states: jax.Array, opening: Batch, sets: list[jax.Array]) -> jax.Array:
        states = states.astype(model.config.dtype)  # of which they are: nothing is rounded
        found = text_logits_of_states(model, params, states, opening)
        return jnp.stack([pieces[found[:, pieces].argmax(axis=1)] for pieces in sets])

    return jax.jit(run, out_shardings=replicated(mesh))


def _round_up(size: float) -> int:
    return _MULTIPLE * math.ceil(size / _MULTIPLE)
