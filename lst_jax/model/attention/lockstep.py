"""Blocked interval attention for parallel machines, in plain XLA: all blocks step together.

`blocked` walks through blocks of queries one after another, which keeps a CPU's caches warm and a
GPU idle. Here every block of queries holds its own place in its span of key blocks, and all advance
at once: turn j is one batched product of every block of queries with the j-th block of its span.
There are as many turns as the longest span has blocks. In the backward pass blocks of keys walk
through the spans of queries that read them in the same way, so nothing is scattered.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from lst_jax.model.attention.blocks import (
    Spans,
    by_blocks,
    output_products,
    query_spans,
    spans_of_blocks,
)
from lst_jax.model.key_ranges import KeyRange
from lst_jax.shapes import Float, check_shapes

# A turn's products are large enough for matrix units, and a window of 512 has five turns.
QUERY_BLOCK = 128
KEY_BLOCK = 128

_LOWEST = -1e30

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@check_shapes
def lockstep_attention(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    key_range: KeyRange,
) -> Float[Array, "B Q H D"]:
    """Computes interval attention by blocks in lock step; see the module's docstring."""
    return by_blocks(_attention, (q, k, v), key_range, QUERY_BLOCK, KEY_BLOCK)


def _turn(spans: Spans, turn: Array, num_blocks: int) -> tuple[Array, Array]:
    """Returns the block of each span that is due in a turn, (blocks,), and whether there is one."""
    index = spans.first + turn
    return jnp.minimum(index, num_blocks - 1), index < spans.last


def _turns(spans: Spans) -> Array:
    return jnp.max(spans.last - spans.first)


def _scores(
    q: Array, k: Array, ranges: tuple[Array, Array], key_block: Array, due: Array
) -> tuple[Array, Array]:
    """Returns scaled float32 scores (blocks, H, q, k), and which are read (blocks, 1, q, k).

    Args:
      q: (blocks, H, q, D).
      k: (blocks, H, k, D), each the block of keys `key_block` (blocks,).
      ranges: start and end of the queries, (blocks, q) each.
      due: (blocks,) bool, false where nothing is read.
    """
    keys = key_block[:, None] * k.shape[2] + jnp.arange(k.shape[2], dtype=jnp.int32)
    start, end = (x[:, :, None] for x in ranges)
    mask = (start <= keys[:, None]) & (keys[:, None] < end) & due[:, None, None]
    return _einsum("nhqd,nhkd->nhqk", q, k) * q.shape[-1] ** -0.5, mask[:, None]


@jax.custom_vjp
def _attention(q: Array, k: Array, v: Array, start: Array, end: Array) -> Array:
    return _forward(q, k, v, start, end)[0]


def _forward(
    q: Array, k: Array, v: Array, start: Array, end: Array
) -> tuple[Array, tuple[Array, ...]]:
    """Returns output like q and what the backward pass needs, log-sum-exp included."""
    spans = spans_of_blocks(start, end, k)

    def step(turn: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        peak, total, out = state
        block, due = _turn(spans, turn, len(k))
        scores, mask = _scores(q, k[block], (start, end), block, due)
        scores = jnp.where(mask, scores, 2 * _LOWEST)
        new_peak = jnp.maximum(peak, scores.max(-1))
        weights = jnp.exp(scores - new_peak[..., None])
        shrink = jnp.exp(peak - new_peak)
        # Keys that are not read may hold anything, and zero times infinity is no number.
        values = jnp.where(due[:, None, None, None], v[block], 0)
        update = _einsum("nhqk,nhkd->nhqd", weights.astype(v.dtype), values)
        return new_peak, total * shrink + weights.sum(-1), out * shrink[..., None] + update

    zeros = jnp.zeros(q.shape, jnp.float32)
    state = jnp.full(q.shape[:-1], _LOWEST, jnp.float32), zeros[..., 0], zeros
    peak, total, out = jax.lax.fori_loop(0, _turns(spans), step, state)
    total = jnp.where(total > 0, total, 1.0)
    out = (out / total[..., None]).astype(q.dtype)
    return out, (q, k, v, start, end, out, peak + jnp.log(total))


def _backward(saved: tuple[Array, ...], d_out: Array) -> tuple[Array | None, ...]:
    q, k, v, start, end, out, lse = saved
    delta = output_products(out, d_out)
    spans = spans_of_blocks(start, end, k)

    def gradients(
        queries: tuple[Array, ...], keys: tuple[Array, Array], block: Array, due: Array
    ) -> tuple[Array, Array]:
        """Returns weights and gradients of scores (blocks, H, q, k), in the compute dtype."""
        q_i, d_out_i, lse_i, delta_i, start_i, end_i = queries
        k_j, v_j = keys
        scores, mask = _scores(q_i, k_j, (start_i, end_i), block, due)
        weights = jnp.where(mask, jnp.exp(scores - lse_i[..., None]), 0.0)
        d_weights = _einsum("nhqd,nhkd->nhqk", d_out_i, v_j)
        d_scores = weights * (d_weights - delta_i[..., None]) * q.shape[-1] ** -0.5
        return weights.astype(q.dtype), jnp.where(mask, d_scores, 0.0).astype(q.dtype)

    everything = q, d_out, lse, delta, start, end

    def query_step(turn: Array, dq: Array) -> Array:
        block, due = _turn(spans, turn, len(k))
        k_j = k[block]
        _, d_scores = gradients(everything, (k_j, v[block]), block, due)
        # As in the forward pass: what is not due may hold anything, gradients are zero there.
        k_j = jnp.where(due[:, None, None, None], k_j, 0)
        return dq + _einsum("nhqk,nhkd->nhqd", d_scores, k_j)

    # First every block of queries walks through its keys, then every block of keys through its
    # readers: each adds to its own place alone, so nothing is scattered and no two turns collide.
    # The scores are computed twice for it, which costs a GPU less than the scatters would.
    dq = jax.lax.fori_loop(0, _turns(spans), query_step, jnp.zeros(q.shape, jnp.float32))

    readers = query_spans(spans, len(k))
    numbers = jnp.arange(len(k), dtype=jnp.int32)

    def key_step(turn: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        dk, dv = state
        block, due = _turn(readers, turn, len(q))
        queries = tuple(x[block] for x in everything)
        weights, d_scores = gradients(queries, (k, v), numbers, due)
        dk = dk + _einsum("nhqk,nhqd->nhkd", d_scores, queries[0])
        return dk, dv + _einsum("nhqk,nhqd->nhkd", weights, queries[1])

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = jax.lax.fori_loop(0, _turns(readers), key_step, (zeros, zeros))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attention.defvjp(_forward, _backward)
