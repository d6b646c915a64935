"""Blocks of queries and keys, and which of them meet: what the blocked backends share."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def pad_length(x: Array, multiple: int, value: int = 0) -> Array:
    """Pads axis 1 of (B, L, …) at its end, up to a multiple."""
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, -x.shape[1] % multiple)
    return jnp.pad(x, padding, constant_values=value)


def key_block_bounds(
    start: Array, end: Array, query_block: int, key_block: int
) -> tuple[Array, Array]:
    """The key blocks that each query block must visit.

    Args:
      start, end: (B, Q) int32 key ranges, non-decreasing along Q; Q a multiple of `query_block`.
      query_block, key_block: sizes of the blocks.

    Returns:
      First key block and one past the last, each (B, Q / query_block) int32; the same number twice
      where no query of the block reads anything.
    """
    used = end > start
    shape = (start.shape[0], -1, query_block)
    far = jnp.iinfo(jnp.int32).max
    first = jnp.where(used, start, far).reshape(shape).min(-1) // key_block
    last = -(-jnp.where(used, end, 0).reshape(shape).max(-1) // key_block)
    return jnp.minimum(first, last), last
