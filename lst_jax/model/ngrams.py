"""Hashed n-grams: which row of a table stands for the last tokens.

The patch encoder may add embeddings of the n tokens that end at a token, hashed into a table for
each n (`LSTConfig.hash_ngram_sizes`), as byte models do. The paper tried it and saw no gain.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lst_jax.shapes import Int32, check_shapes

# Odd constants without structure: those of the 32-bit murmur hash (Appleby, public domain).
_STEP, _MIX = np.uint32(0xCC9E2D51), (np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35))


@check_shapes
def recent_tokens(
    tokens: Int32[Array, "B N"], document_ids: Int32[Array, "B N"], count: int
) -> Int32[Array, "B N _"]:
    """Returns each token and those before it in its document.

    Args:
      tokens: (B, N) int32.
      document_ids: (B, N) int32, 0 where padded.
      count: n, tokens to return, the token's own included.

    Returns:
      (B, N, n) int32, the newest first; −1 before the start of the document.
    """

    def before(distance: int) -> Array:
        shift = ((0, 0), (distance, 0))
        moved = jnp.pad(tokens, shift)[:, : tokens.shape[1]]
        document = jnp.pad(document_ids, shift, constant_values=-1)[:, : tokens.shape[1]]
        return jnp.where(document == document_ids, moved, -1)

    return jnp.stack([before(distance) for distance in range(count)], axis=-1)


@check_shapes
def hash_ngram(recent: Int32[Array, "*b n"], size: int, rows: int) -> Int32[Array, " *b"]:
    """Returns the row of a table for the last `size` tokens.

    Args:
      recent: (…, n) int32, tokens, the newest first, n ≥ `size`; −1 where there is none.
      size: tokens of the n-gram.
      rows: of the table, at most 2^31.

    Returns:
      (…,) int32, 0 … rows − 1; −1 where the document has fewer tokens.
    """
    tokens = recent[..., :size]
    value = jnp.full(tokens.shape[:-1], size, jnp.uint32)
    for i in range(size):
        value = (value ^ tokens[..., i].astype(jnp.uint32)) * _STEP
        value = (value << 13) | (value >> 19)
    for factor in _MIX:
        value = (value ^ (value >> 16)) * factor
    row = ((value ^ (value >> 16)) % jnp.uint32(rows)).astype(jnp.int32)
    return jnp.where((tokens >= 0).all(axis=-1), row, -1)


@check_shapes
def push_token(recent: Int32[Array, "B n"], tokens: Int32[Array, " B"]) -> Int32[Array, "B n"]:
    """Returns the recent tokens (B, n) of rows after one more token (B,) each."""
    return jax.lax.concatenate([tokens[:, None], recent], 1)[:, : recent.shape[1]]
