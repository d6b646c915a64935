"""What the blocked backends share: rows laid end to end, and which blocks of keys and queries meet.

The rows of a batch are laid end to end, each padded to whole blocks, and the ranges count along the
keys of all rows. Ranges stay non-decreasing, so that the keys which a block of queries reads are
one span of blocks, and so are the queries that read a block of keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lst_jax.model.key_ranges import KeyRange
from lst_jax.shapes import Float, Float32, Int32, Shaped, check_shapes


class Spans(NamedTuple):
    """Block i meets the blocks first[i] … last[i] - 1 of the other side; both (blocks,) int32."""

    first: Array
    last: Array


def with_gradient(static: int) -> Callable[[Callable[..., Array]], Any]:
    """Decorates a function that has a backward pass of ours; argument number `static` is static."""
    return lambda function: jax.custom_vjp(function, nondiff_argnums=(static,))


@check_shapes
def end_to_end(
    x: Shaped[Array, "B L *d"], block: int, width: int | None = None
) -> Shaped[Array, " n *m"]:
    """Pads the rows of (B, L, …) to whole blocks and lays them end to end: (B * L', …).

    Features, the last axis, are padded to `width` if it is given.
    """
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, -x.shape[1] % block)
    if width is not None:
        padding[-1] = (0, width - x.shape[-1])
    padded = jnp.pad(x, padding)
    return padded.reshape(-1, *padded.shape[2:])


@check_shapes
def split_blocks(x: Float[Array, "B L H D"], size: int) -> Float[Array, "n H m D"]:
    """Maps (B, L, H, D) to blocks of the rows end to end, heads apart: (blocks, H, size, D)."""
    x = end_to_end(x, size)
    return jnp.swapaxes(x.reshape(-1, size, *x.shape[1:]), 1, 2)


@check_shapes
def join_blocks(x: Float[Array, "n H m D"], rows: int, length: int) -> Float[Array, "B L H D"]:
    """Undoes `split_blocks`: (blocks, H, size, D) to (B, L, H, D)."""
    x = jnp.swapaxes(x, 1, 2)
    return rows_again(x.reshape(-1, *x.shape[2:]), rows, length)


@check_shapes
def by_blocks(
    attention: Callable[..., Array],
    arrays: tuple[Float[Array, "B Q H D"], Float[Array, "B K H D"], Float[Array, "B K H D"]],
    key_range: KeyRange,
    query_block: int,
    key_block: int,
) -> Float[Array, "B Q H D"]:
    """Runs an attention over blocks.

    Args:
      attention: takes queries, keys and values (blocks, H, size, D), and start and end
        (blocks, size) of the queries, all end to end; gives an array like the queries.
      arrays: q (B, Q, H, D), k and v (B, K, H, D).
      key_range: start and end, each (B, Q) int32.
      query_block, key_block: sizes of the blocks, for arrays that are as long.
    """
    q, k, v = arrays
    (rows, length), num_keys = q.shape[:2], k.shape[1]
    query_block, key_block = min(query_block, length), min(key_block, num_keys)
    ranges = end_to_end_ranges(key_range, num_keys, query_block, key_block)
    q = split_blocks(q, query_block)
    k, v = (split_blocks(x, key_block) for x in (k, v))
    out = attention(q, k, v, *(x.reshape(-1, query_block) for x in ranges))
    return join_blocks(out, rows, length)


@check_shapes
def output_products(
    out: Float[Array, "*b D"], d_out: Float[Array, "*b D"]
) -> Float32[Array, " *b"]:
    """Returns the inner product of each output (…, D) with its cotangent, (…) float32.

    The derivative of a softmax subtracts from the gradient of each weight the mean of all of them,
    weighted: Σ_j w_j (d_out · v_j) = d_out · Σ_j w_j v_j = d_out · out. So it is known before the
    backward pass goes through the keys, block by block.
    """
    return jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)


@check_shapes
def rows_again(x: Shaped[Array, " n *d"], rows: int, length: int) -> Shaped[Array, "B L *d"]:
    """Undoes `end_to_end`: (B * L', …) to (B, L, …)."""
    return x.reshape(rows, -1, *x.shape[1:])[:, :length]


def end_to_end_ranges(
    key_range: KeyRange, num_keys: int, query_block: int, key_block: int
) -> KeyRange:
    """Returns the ranges of queries over keys that both lie end to end; padding reads nothing.

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
    """Returns the key blocks that each block of queries reads; an empty span for none.

    Args:
      key_range: start and end of queries end to end, each (Q,) int32.
      query_block, key_block: sizes of the blocks.
    """
    start, end = (x.reshape(-1, query_block) for x in key_range)
    used = end > start
    first = jnp.where(used, start, jnp.iinfo(jnp.int32).max).min(-1) // key_block
    last = -(-jnp.where(used, end, 0).max(-1) // key_block)
    return Spans(jnp.minimum(first, last), last)


@check_shapes
def spans_of_blocks(
    start: Int32[Array, "n Q"], end: Int32[Array, "n Q"], k: Float[Array, "m H K D"]
) -> Spans:
    """Returns `key_spans` of ranges (blocks, q) and keys (blocks, H, k, D), all end to end."""
    return key_spans(KeyRange(start.reshape(-1), end.reshape(-1)), start.shape[1], k.shape[2])


def query_spans(spans: Spans, num_key_blocks: int) -> Spans:
    """Returns the query blocks that read each key block, the inverse of `key_spans`.

    Blocks of queries that read nothing may lie inside a span.
    """
    used = spans.last > spans.first
    first = jnp.where(used, spans.first, jnp.iinfo(jnp.int32).max)
    first = jax.lax.cummin(first, reverse=True)
    last = jax.lax.cummax(jnp.where(used, spans.last, 0))
    blocks = jnp.arange(num_key_blocks, dtype=jnp.int32)[:, None]
    begin = jnp.sum(last <= blocks, axis=1, dtype=jnp.int32)
    return Spans(begin, jnp.maximum(begin, jnp.sum(first <= blocks, axis=1, dtype=jnp.int32)))
