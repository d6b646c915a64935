"""Blocked interval attention in plain XLA: cost follows the intervals, on any platform.

Queries are cut into blocks. For each, an online softmax runs over just those key blocks that meet
the union of the block's intervals (over the rows of the batch): because start and end never
decrease, that union lies between the first query's start and the last query's end. A window W
therefore costs O(N W) time and no score matrix is ever stored; the backward pass recomputes scores
block by block from the saved log-sum-exp. Loop bounds depend on the data, which reverse-mode
differentiation of a loop cannot take, hence the custom derivative.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lst_jax.key_ranges import KeyRange

QUERY_BLOCK = 128
KEY_BLOCK = 128


class _Blocks(NamedTuple):
    """Block sizes, and per query block the key blocks to visit: first (n,), last + 1 (n,)."""

    query: int
    key: int
    first: Array
    last: Array


def blocked_attention(q: Array, k: Array, v: Array, key_range: KeyRange) -> Array:
    """Interval attention by blocks; see the module's docstring.

    Args:
      q: (B, Q, H, D).
      k: (B, K, H, D).
      v: (B, K, H, D).
      key_range: start and end, each (B, Q) int32, non-decreasing along Q.

    Returns:
      (B, Q, H, D) in q's dtype; softmax and accumulation in float32.
    """
    length, num_keys = q.shape[1], k.shape[1]
    query_block, key_block = min(QUERY_BLOCK, length), min(KEY_BLOCK, num_keys)
    q = _pad_to_blocks(_heads_first(q), query_block)
    k, v = (_pad_to_blocks(_heads_first(x), key_block) for x in (k, v))
    # Queries that pad the last block read nothing; num_keys keeps the vectors non-decreasing.
    padding = ((0, 0), (0, q.shape[2] - length))
    start, end = (jnp.pad(x, padding, constant_values=num_keys) for x in key_range)
    out = _attention(q, k, v, start, end, query_block, key_block)
    return _heads_first(out[:, :, :length])


def _heads_first(x: Array) -> Array:
    """(B, L, H, D) to (B, H, L, D), and back."""
    return jnp.swapaxes(x, 1, 2)


def _pad_to_blocks(x: Array, block: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block), (0, 0)))


def _plan(start: Array, end: Array, query_block: int, key_block: int) -> _Blocks:
    """Key blocks that each query block must visit, the union over the batch's rows."""
    used = end > start
    rows = start.shape[0]
    far = jnp.iinfo(jnp.int32).max
    first = jnp.where(used, start, far).reshape(rows, -1, query_block).min((0, 2))
    last = jnp.where(used, end, 0).reshape(rows, -1, query_block).max((0, 2))
    return _Blocks(query_block, key_block, first // key_block, -(-last // key_block))


def _slice(x: Array, index: Array, block: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, index * block, block, axis)


def _scores(q: Array, k: Array, start: Array, end: Array, key_offset: Array) -> tuple[Array, Array]:
    """Scaled float32 scores (B, H, q, k) and the mask (B, 1, q, k) of one pair of blocks."""
    keys = key_offset + jnp.arange(k.shape[2], dtype=jnp.int32)
    mask = (start[..., None] <= keys) & (keys < end[..., None])
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    return scores * q.shape[-1] ** -0.5, mask[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attention(
    q: Array, k: Array, v: Array, start: Array, end: Array, query_block: int, key_block: int
) -> Array:
    return _forward(q, k, v, start, end, query_block, key_block)[0]


def _forward(
    q: Array, k: Array, v: Array, start: Array, end: Array, query_block: int, key_block: int
) -> tuple[Array, tuple[Array, ...]]:
    """Output (B, H, Q, D) and what the backward pass needs, log-sum-exp (B, H, Q) included."""
    blocks = _plan(start, end, query_block, key_block)
    rows, heads, length, width = q.shape

    def query_step(carry: None, i: Array) -> tuple[None, tuple[Array, Array]]:
        q_i = _slice(q, i, query_block, 2)
        start_i, end_i = _slice(start, i, query_block, 1), _slice(end, i, query_block, 1)

        def key_step(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            peak, total, out = state
            k_j, v_j = _slice(k, j, key_block, 2), _slice(v, j, key_block, 2)
            scores, mask = _scores(q_i, k_j, start_i, end_i, j * key_block)
            # The peak starts finite, so a row whose keys all come later stays at weight zero.
            new_peak = jnp.maximum(peak, jnp.where(mask, scores, -jnp.inf).max(-1))
            weights = jnp.where(mask, jnp.exp(scores - new_peak[..., None]), 0.0)
            shrink = jnp.exp(peak - new_peak)
            update = jnp.einsum(
                "bhqk,bhkd->bhqd", weights.astype(v.dtype), v_j, preferred_element_type=jnp.float32
            )
            return new_peak, total * shrink + weights.sum(-1), out * shrink[..., None] + update

        lowest = jnp.full((rows, heads, query_block), -1e30, jnp.float32)
        zeros = jnp.zeros((rows, heads, query_block, width), jnp.float32)
        peak, total, out = jax.lax.fori_loop(
            blocks.first[i], blocks.last[i], key_step, (lowest, zeros[..., 0], zeros)
        )
        total = jnp.where(total > 0, total, 1.0)
        return carry, ((out / total[..., None]).astype(q.dtype), peak + jnp.log(total))

    _, (out, lse) = jax.lax.scan(query_step, None, jnp.arange(length // query_block))
    out = jnp.moveaxis(out, 0, 2).reshape(q.shape)
    lse = jnp.moveaxis(lse, 0, 2).reshape(q.shape[:3])
    return out, (q, k, v, start, end, out, lse)


def _backward(
    query_block: int, key_block: int, saved: tuple[Array, ...], d_out: Array
) -> tuple[Array | None, ...]:
    q, k, v, start, end, out, lse = saved
    blocks = _plan(start, end, query_block, key_block)
    scale = q.shape[-1] ** -0.5
    # d(softmax) needs the inner product of each output with its cotangent.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1)

    def query_step(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
        q_i, d_out_i = _slice(q, i, query_block, 2), _slice(d_out, i, query_block, 2)
        lse_i, delta_i = _slice(lse, i, query_block, 2), _slice(delta, i, query_block, 2)
        start_i, end_i = _slice(start, i, query_block, 1), _slice(end, i, query_block, 1)

        def key_step(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq_i, dk, dv = state
            k_j, v_j = _slice(k, j, key_block, 2), _slice(v, j, key_block, 2)
            scores, mask = _scores(q_i, k_j, start_i, end_i, j * key_block)
            weights = jnp.where(mask, jnp.exp(scores - lse_i[..., None]), 0.0)
            d_weights = jnp.einsum(
                "bhqd,bhkd->bhqk", d_out_i, v_j, preferred_element_type=jnp.float32
            )
            d_scores = (weights * (d_weights - delta_i[..., None]) * scale).astype(q.dtype)
            contract = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
            dq_i = dq_i + contract("bhqk,bhkd->bhqd", d_scores, k_j)
            dk_j = contract("bhqk,bhqd->bhkd", d_scores, q_i)
            dv_j = contract("bhqk,bhqd->bhkd", weights.astype(q.dtype), d_out_i)
            return dq_i, _add_block(dk, dk_j, j, key_block), _add_block(dv, dv_j, j, key_block)

        zeros = jnp.zeros(q_i.shape, jnp.float32)
        dq_i, dk, dv = jax.lax.fori_loop(blocks.first[i], blocks.last[i], key_step, (zeros, *carry))
        return (dk, dv), dq_i.astype(q.dtype)

    zeros = jnp.zeros(k.shape, jnp.float32)
    (dk, dv), dq = jax.lax.scan(query_step, (zeros, zeros), jnp.arange(q.shape[2] // query_block))
    dq = jnp.moveaxis(dq, 0, 2).reshape(q.shape)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None


def _add_block(x: Array, block: Array, index: Array, size: int) -> Array:
    updated = _slice(x, index, size, 2) + block
    return jax.lax.dynamic_update_slice_in_dim(x, updated, index * size, 2)


_attention.defvjp(_forward, _backward)
