"""What the blocked backends share: rows laid end to end, and which blocks of keys and queries meet.

The rows of a batch are laid end to end, each padded to whole blocks, and the ranges count along the
keys of all rows. Ranges stay non-decreasing, so that the keys which a block of queries reads are
one span of blocks, and so are the queries that read a block of keys.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lst_jax.model.key_ranges import KeyRange


class Spans(NamedTuple):
    """Block i meets the blocks first[i] … last[i] - 1 of the other side; both (blocks,) int32."""

    first: Array
    last: Array


def end_to_end(x: Array, block: int) -> Array:
    """Pads the rows of (B, L, …) to whole blocks and lays them end to end: (B * L', …)."""
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, -x.shape[1] % block)
    padded = jnp.pad(x, padding)
    return padded.reshape(-1, *x.shape[2:])


def split_blocks(x: Array, size: int) -> Array:
    """(B, L, H, D) to blocks of the rows laid end to end, heads apart: (blocks, H, size, D)."""
    x = end_to_end(x, size)
    return jnp.swapaxes(x.reshape(-1, size, *x.shape[1:]), 1, 2)


def join_blocks(x: Array, rows: int, length: int) -> Array:
    """Undoes `split_blocks`: (blocks, H, size, D) to (B, L, H, D)."""
    x = jnp.swapaxes(x, 1, 2)
    return rows_again(x.reshape(-1, *x.shape[2:]), rows, length)


def rows_again(x: Array, rows: int, length: int) -> Array:
    """Undoes `end_to_end`: (B * L', …) to (B, L, …)."""
    return x.reshape(rows, -1, *x.shape[1:])[:, :length]


def end_to_end_ranges(
    key_range: KeyRange, num_keys: int, query_block: int, key_block: int
) -> KeyRange:
    """Ranges of queries over keys that both lie end to end; queries that pad a row read nothing.

    Args:
      key_range: start and end, each (B, Q) int32.
      num_keys: K, before padding.
      query_block, key_block: sizes of the blocks.

    Returns:
      start and end, each (B * Q',) int32, non-decreasing.
    """
    rows, length = key_range.start.shape
    padding = ((0, 0), (0, -length % query_block))
    padded_keys = num_keys + -num_keys % key_block
    offset = padded_keys * jnp.arange(rows, dtype=jnp.int32)[:, None]
    return KeyRange(
        *((jnp.pad(x, padding, constant_values=num_keys) + offset).reshape(-1) for x in key_range)
    )


def key_spans(key_range: KeyRange, query_block: int, key_block: int) -> Spans:
    """The key blocks that each block of queries reads; an empty span where it reads nothing.

    Args:
      key_range: start and end of queries end to end, each (Q,) int32.
      query_block, key_block: sizes of the blocks.
    """
    start, end = (x.reshape(-1, query_block) for x in key_range)
    used = end > start
    first = jnp.where(used, start, jnp.iinfo(jnp.int32).max).min(-1) // key_block
    last = -(-jnp.where(used, end, 0).max(-1) // key_block)
    return Spans(jnp.minimum(first, last), last)


def query_spans(spans: Spans, num_key_blocks: int) -> Spans:
    """The query blocks that read each key block, from the key blocks that each query block reads.

    Blocks of queries that read nothing may lie inside a span.
    """
    used = spans.last > spans.first
    first = jnp.where(used, spans.first, jnp.iinfo(jnp.int32).max)
    first = jax.lax.cummin(first, reverse=True)
    last = jax.lax.cummax(jnp.where(used, spans.last, 0))
    blocks = jnp.arange(num_key_blocks, dtype=jnp.int32)[:, None]
    begin = jnp.sum(last <= blocks, axis=1, dtype=jnp.int32)
    return Spans(begin, jnp.maximum(begin, jnp.sum(first <= blocks, axis=1, dtype=jnp.int32)))
