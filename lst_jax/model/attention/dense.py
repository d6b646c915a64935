"""Dense interval attention: the oracle that other backends are tested against."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lst_jax.model.key_ranges import KeyRange
from lst_jax.shapes import Float, check_shapes


@check_shapes
def dense_attention(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    key_range: KeyRange,
) -> Float[Array, "B Q H D"]:
    """Computes interval attention through a full score matrix; O(Q K) time and memory."""
    keys = jnp.arange(k.shape[1], dtype=jnp.int32)
    start, end = key_range.start[..., None], key_range.end[..., None]
    mask = ((start <= keys) & (keys < end))[:, None]
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores * q.shape[-1] ** -0.5, -jnp.inf)
    # An empty range has no maximum; any finite stand-in keeps its weights, and gradients, at zero.
    peak = jnp.max(scores, axis=-1, keepdims=True)
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    weights = jnp.exp(scores - peak)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1.0)
    out = jnp.einsum(
        "bhqk,bkhd->bqhd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return out.astype(q.dtype)
