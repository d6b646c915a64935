"""Blocked interval attention in plain XLA: cost follows the intervals, on any platform.

Queries are cut into blocks. For each block of each row, an online softmax runs over just those key
blocks that meet the block's intervals: because start and end never decrease, they lie between the
first query's start and the last query's end. A window W therefore costs O(N W) time and no score
matrix is ever stored; the backward pass recomputes scores block by block from the saved
log-sum-exp, and adds to the blocks of dk and dv in place. Loop bounds depend on the data, which
reverse-mode differentiation of a loop cannot take, hence the custom derivative.

A GPU would idle through loops of such small products; there `lockstep` takes all blocks at once.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from lst_jax.model.attention.blocks import by_blocks, output_products, spans_of_blocks
from lst_jax.model.attention.lockstep import lockstep_attention
from lst_jax.model.attention.platform import target
from lst_jax.model.key_ranges import KeyRange
from lst_jax.shapes import Float, check_shapes

# Queries and keys of a block; the fastest powers of two on a CPU.
QUERY_BLOCK = 64
KEY_BLOCK = 64

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@check_shapes
def blocked_attention(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    key_range: KeyRange,
) -> Float[Array, "B Q H D"]:
    """Computes interval attention by blocks; see the module's docstring."""
    if target().platform == "gpu":
        return lockstep_attention(q, k, v, key_range)
    return by_blocks(_attention, (q, k, v), key_range, QUERY_BLOCK, KEY_BLOCK)


def _block(x: Array, index: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False)


def _add_block(x: Array, block: Array, index: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(x, _block(x, index) + block, index, 0)


def _scores(q: Array, k: Array, start: Array, end: Array, index: Array) -> tuple[Array, Array]:
    """Returns scaled float32 scores (H, q, k) and the mask (q, k) of one pair of blocks."""
    keys = index * k.shape[1] + jnp.arange(k.shape[1], dtype=jnp.int32)
    mask = (start[:, None] <= keys) & (keys < end[:, None])
    return _einsum("hqd,hkd->hqk", q, k) * q.shape[-1] ** -0.5, mask


@jax.custom_vjp
def _attention(q: Array, k: Array, v: Array, start: Array, end: Array) -> Array:
    return _forward(q, k, v, start, end)[0]


def _forward(
    q: Array, k: Array, v: Array, start: Array, end: Array
) -> tuple[Array, tuple[Array, ...]]:
    """Returns output like q and what the backward pass needs, log-sum-exp included.

    Args:
      q, k, v: (blocks, H, size, D).
      start, end: (blocks, size of q's).
    """

    def query_step(carry: None, block: tuple[Array, ...]) -> tuple[None, tuple[Array, Array]]:
        q_i, start_i, end_i, first, last = block

        def key_step(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            peak, total, out = state
            scores, mask = _scores(q_i, _block(k, j), start_i, end_i, j)
            # The peak starts finite, so a row whose keys all come later stays at weight zero.
            new_peak = jnp.maximum(peak, jnp.where(mask, scores, -jnp.inf).max(-1))
            weights = jnp.where(mask, jnp.exp(scores - new_peak[..., None]), 0.0)
            shrink = jnp.exp(peak - new_peak)
            update = _einsum("hqk,hkd->hqd", weights.astype(v.dtype), _block(v, j))
            return new_peak, total * shrink + weights.sum(-1), out * shrink[..., None] + update

        zeros = jnp.zeros(q_i.shape, jnp.float32)
        lowest = jnp.full(q_i.shape[:-1], -1e30, jnp.float32)
        state = (lowest, zeros[..., 0], zeros)
        peak, total, out = jax.lax.fori_loop(first, last, key_step, state)
        total = jnp.where(total > 0, total, 1.0)
        return carry, ((out / total[..., None]).astype(q.dtype), peak + jnp.log(total))

    _, (out, lse) = jax.lax.scan(query_step, None, (q, start, end, *spans_of_blocks(start, end, k)))
    return out, (q, k, v, start, end, out, lse)


def _backward(saved: tuple[Array, ...], d_out: Array) -> tuple[Array | None, ...]:
    q, k, v, start, end, out, lse = saved
    scale = q.shape[-1] ** -0.5
    delta = output_products(out, d_out)

    # A block of queries has its gradient when its loop over keys ends. Blocks of keys are read by
    # several blocks of queries, one after another, so theirs are carried on, all of them, in
    # float32: each is rounded once, when all that reads it has been added.
    def query_step(
        carry: tuple[Array, Array], block: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], Array]:
        q_i, d_out_i, lse_i, delta_i, start_i, end_i, first, last = block

        def key_step(j: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq_i, dk, dv = state
            k_j, v_j = _block(k, j), _block(v, j)
            scores, mask = _scores(q_i, k_j, start_i, end_i, j)
            # The saved log-sum-exp gives the forward pass's weights without a running peak.
            # Where a query reads nothing it is very low and exp overflows: the mask comes after.
            weights = jnp.where(mask, jnp.exp(scores - lse_i[..., None]), 0.0)
            d_weights = _einsum("hqd,hkd->hqk", d_out_i, v_j)
            d_scores = (weights * (d_weights - delta_i[..., None]) * scale).astype(q.dtype)
            dq_i = dq_i + _einsum("hqk,hkd->hqd", d_scores, k_j)
            dk_j = _einsum("hqk,hqd->hkd", d_scores, q_i)
            dv_j = _einsum("hqk,hqd->hkd", weights.astype(q.dtype), d_out_i)
            return dq_i, _add_block(dk, dk_j, j), _add_block(dv, dv_j, j)

        zeros = jnp.zeros(q_i.shape, jnp.float32)
        dq_i, dk, dv = jax.lax.fori_loop(first, last, key_step, (zeros, *carry))
        return (dk, dv), dq_i.astype(q.dtype)

    zeros = jnp.zeros(k.shape, jnp.float32)
    blocks = (q, d_out, lse, delta, start, end, *spans_of_blocks(start, end, k))
    (dk, dv), dq = jax.lax.scan(query_step, (zeros, zeros), blocks)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attention.defvjp(_forward, _backward)
