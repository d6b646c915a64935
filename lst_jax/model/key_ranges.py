"""Batch arrays to the key ranges of the model's attentions (docs: `attention.attend`).

Every mask of the model says: query i may read the keys in [start_i, end_i), start and end
non-decreasing in i. Here the batch arrays (tokens on the host's side, see `patching.fill_row`)
become those pairs of int32 vectors, one pair for each attention.
"""

from __future__ import annotations

import dataclasses
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from lst_jax.batch import Batch, SharedBatch
from lst_jax.config import LSTConfig
from lst_jax.model.ngrams import recent_tokens
from lst_jax.shapes import Int32, Shaped, check_shapes


class KeyRange(NamedTuple):
    """Query i of row b may read keys start[b, i] … end[b, i] - 1; both (B, Q) int32."""

    start: Int32[Array, "B Q"]
    end: Int32[Array, "B Q"]


class SharedKeyRange(NamedTuple):
    """A key range of a row whose items, tokens or patches, may each stand in several places.

    Documents that begin alike share the items of their beginnings. Those are computed once, and
    their keys and values then stand in every document, so that what a query reads is an interval.

    Attributes:
      start, end: (B, Q) int32, query i reads what stands in the places start … end - 1.
      items: (B, S) int32, the item in each place; S is not that of another range.
      positions: (B, Q) int32 of self-attention, the queries' (and items') own within documents.
    """

    start: Int32[Array, "B Q"]
    end: Int32[Array, "B Q"]
    items: Int32[Array, "B _"]
    positions: Int32[Array, "B Q"] | None = None

    @check_shapes
    def spread(self, x: Shaped[Array, "B L H D"]) -> Shaped[Array, "B S H D"]:
        """Puts the items (B, L, H, D) in their places: (B, S, H, D)."""
        return jnp.take_along_axis(x, self.items[..., None, None], axis=1)


AnyKeyRange = KeyRange | SharedKeyRange
_Range = TypeVar("_Range", KeyRange, SharedKeyRange, AnyKeyRange)


class LSTKeyRanges(NamedTuple, Generic[_Range]):
    """The four attentions of the LST and the token spans of its patches.

    Attributes:
      token_self: encoder and decoder self-attention, queries and keys are the N tokens.
      encoder_cross: P * k patch queries read the N tokens.
      global_self: the P patches read patches.
      decoder_cross: the N tokens read the P * k latent vectors.
      patch_start, patch_end: (B, P) int32, tokens of patch p are patch_start … patch_end - 1;
        an unused slot is empty.
      recent: (B, N, n) int32, each token and those before it (see `ngrams`).
        None: the model has no n-grams.
    """

    token_self: _Range
    encoder_cross: _Range
    global_self: _Range
    decoder_cross: _Range
    patch_start: Int32[Array, "B P"]
    patch_end: Int32[Array, "B P"]
    recent: Int32[Array, "B _ _"] | None = None


@check_shapes
def document_starts(document_ids: Int32[Array, "B L"]) -> Int32[Array, "B L"]:
    """Returns the position of the first token (or patch) of each token's (or patch's) document."""
    positions = jnp.arange(document_ids.shape[1], dtype=jnp.int32)
    previous = jnp.pad(document_ids, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    starts = jnp.where(document_ids != previous, positions, 0)
    return jax.lax.cummax(starts, axis=1)


@check_shapes
def token_key_range(document_ids: Int32[Array, "B Q"], window: int | None) -> KeyRange:
    """Returns the ranges of causal self-attention in the document's last `window` tokens.

    Args:
      document_ids: (B, Q) int32, 0 where padded; padding reads nothing.
      window: tokens that may be read, the query's own included; None is unbounded.
    """
    length = document_ids.shape[1]
    positions = jnp.arange(length, dtype=jnp.int32)[None]
    start = document_starts(document_ids)
    if window is not None:
        start = jnp.maximum(start, positions - window + 1)
    real = document_ids > 0
    return KeyRange(jnp.where(real, start, length), jnp.where(real, positions + 1, length))


@check_shapes
def lst_key_ranges(batch: Batch, config: LSTConfig) -> LSTKeyRanges[KeyRange]:
    """Returns the key ranges of the LST's four attentions (the table in `attention`'s docstring).

    Args:
      batch: of B rows; its `document_ids`, `patch_ids` and `visible_patch` are read, and its
        `tokens` where there are n-grams.
      config: windows, k, n-grams and whether cross-attention stays inside its document.
    """
    document_ids, patch_ids, num_patches = batch.document_ids, batch.patch_ids, batch.num_patches
    length, k = document_ids.shape[1], config.latent_vectors_per_patch
    real = document_ids > 0
    slots = jnp.arange(num_patches, dtype=jnp.int32)

    patch_start, patch_end = _patch_spans(patch_ids, num_patches)
    used = patch_end > patch_start

    # The document's first patch, seen from tokens and from patches. A patch belongs to the document
    # of its first token: where published batches have an eos inside a patch, the next patch is the
    # first of the next document.
    starts = document_starts(document_ids)
    token_first = jnp.take_along_axis(patch_ids, starts, axis=1)
    first_token = jnp.minimum(patch_start, length - 1)
    patch_first = document_starts(jnp.take_along_axis(document_ids, first_token, axis=1))

    global_self = KeyRange(
        jnp.where(used, patch_first, num_patches), jnp.where(used, slots + 1, num_patches)
    )
    masked = config.document_cross_masking
    oldest = jnp.maximum(slots - config.encoder_cross_window + 1, patch_first if masked else 0)
    oldest = jnp.where(used, oldest, slots)
    encoder_cross = KeyRange(jnp.take_along_axis(patch_start, oldest, axis=1), patch_end)

    visible = batch.visible_patch
    longest = config.recent_tokens
    oldest = jnp.maximum(visible - config.decoder_cross_window + 1, token_first if masked else 0)
    decoder_cross = KeyRange(
        jnp.where(real, k * oldest, k * num_patches),
        jnp.where(real, k * jnp.maximum(visible + 1, oldest), k * num_patches),
    )
    return LSTKeyRanges(
        token_self=token_key_range(document_ids, config.local_window),
        encoder_cross=jax.tree.map(lambda x: jnp.repeat(x, k, axis=1), encoder_cross),
        global_self=global_self,
        decoder_cross=decoder_cross,
        patch_start=patch_start,
        patch_end=patch_end,
        recent=recent_tokens(batch.tokens, document_ids, longest) if longest else None,
    )


@check_shapes
def shared_token_key_range(batch: SharedBatch, window: int | None) -> SharedKeyRange:
    """Returns `token_key_range` for rows with shared items.

    Args:
      batch: of B rows.
      window: as in `token_key_range`.

    Returns:
      Of M token items over N places.
    """
    document_ids, places = batch.places.document_ids, batch.token_places
    positions = _positions(token_key_range(document_ids, None), places)
    key_range = token_key_range(document_ids, window)
    return _share(key_range, places, batch.token_items, document_ids.shape[1], positions)


@check_shapes
def shared_lst_key_ranges(batch: SharedBatch, config: LSTConfig) -> LSTKeyRanges[SharedKeyRange]:
    """Returns `lst_key_ranges` for rows with shared items; documents never read each other.

    Args:
      batch: of B rows.
      config: windows, k and n-grams.

    Returns:
      Of M token items over N places, of Q patch items over P places; patch spans are in items.
    """
    masked = dataclasses.replace(config, document_cross_masking=True)
    ranges = lst_key_ranges(batch.places, masked)
    k, num_tokens = config.latent_vectors_per_patch, batch.places.document_ids.shape[1]
    num_patches = batch.places.num_patches
    tokens, patches = batch.token_places, batch.patch_places
    token_items, patch_items = batch.token_items, batch.patch_items
    patch_start, patch_end = _patch_spans(batch.item_patch_ids, patches.shape[1])
    positions = _positions(ranges.global_self, patches)
    recent = ranges.recent
    if recent is not None:  # an item follows the same tokens in all its places
        recent = jnp.take_along_axis(recent, tokens[..., None], axis=1, mode="fill", fill_value=-1)
    return LSTKeyRanges(
        token_self=shared_token_key_range(batch, config.local_window),
        encoder_cross=_share(ranges.encoder_cross, _vectors(patches, k), token_items, num_tokens),
        global_self=_share(ranges.global_self, patches, patch_items, num_patches, positions),
        decoder_cross=_share(
            ranges.decoder_cross, tokens, _vectors(patch_items, k), k * num_patches
        ),
        patch_start=patch_start,
        patch_end=patch_end,
        recent=recent,
    )


def _patch_spans(patch_ids: Array, num_patches: int) -> tuple[Array, Array]:
    """Returns the first token of each patch and the token after its last, (B, P) int32 each."""
    slots = jnp.arange(num_patches, dtype=jnp.int32)
    search = jax.vmap(lambda ids, side: jnp.searchsorted(ids, slots, side=side), (0, None))
    return search(patch_ids, "left").astype(jnp.int32), search(patch_ids, "right").astype(jnp.int32)


def _positions(document_range: KeyRange, places: Array) -> Array:
    """Returns where in their documents the `places` (B, L) are, by causal ranges, no window."""
    start, end = document_range
    return jnp.take_along_axis(end - 1 - start, places, axis=1, mode="clip")


def _share(
    key_range: KeyRange,
    places: Array,
    items: Array,
    num_keys: int,
    positions: Array | None = None,
) -> SharedKeyRange:
    """Returns the ranges of queries at `places`; a place past the last reads nothing."""
    start, end = (
        jnp.take_along_axis(x, places, axis=1, mode="fill", fill_value=num_keys) for x in key_range
    )
    return SharedKeyRange(start, end, items, positions)


def _vectors(patches: Array, k: int) -> Array:
    """Turns indices of patches (B, L) to those of their vectors (B, L * k)."""
    vectors = k * patches[..., None] + jnp.arange(k, dtype=jnp.int32)
    return vectors.reshape(len(patches), -1)
