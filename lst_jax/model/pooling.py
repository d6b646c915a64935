"""Pooling of token states over patches, without scatters.

Patches are runs of consecutive tokens, so a segmented scan by doubling (log2 N shifted maxima or
sums, all element-wise) pools every patch at its last token, where it is gathered; the backward
pass is a gather as well.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from lst_jax.config import Pooling
from lst_jax.shapes import Float, Int32, check_shapes


@check_shapes
def pool_patches(
    h: Float[Array, "B N d"],
    patch_ids: Int32[Array, "B N"],
    patch_start: Int32[Array, "B P"],
    patch_end: Int32[Array, "B P"],
    pooling: Pooling,
) -> Float[Array, "B P d"]:
    """Pools the hidden states of each patch's own tokens by maximum or mean.

    Args:
      h: (B, N, d) token states.
      patch_ids: (B, N) int32 non-decreasing patch of each token; P where padded.
      patch_start: (B, P) int32 first token of each patch.
      patch_end: (B, P) int32 token after its last; start where the slot is unused.
      pooling: "max" or "mean".

    Returns:
      (B, P, d) in h's dtype; zeros for unused slots. Equal maxima share the gradient.
    """
    if pooling == "max":
        return _max_pool(h, patch_ids, patch_start, patch_end)
    lengths = jnp.maximum(patch_end - patch_start, 1)[..., None]
    return (_sum_pool(h, patch_ids, patch_start, patch_end) / lengths).astype(h.dtype)


def _segmented_scan(x: Array, ids: Array, combine: Callable[[Array, Array], Array]) -> Array:
    """Scans x (B, N, d) inclusively by `combine`, restarting where ids (B, N) change."""
    shift = 1
    while shift < x.shape[1]:
        same = (ids[:, shift:] == ids[:, :-shift])[..., None]
        joined = jnp.where(same, combine(x[:, shift:], x[:, :-shift]), x[:, shift:])
        x = jnp.concatenate([x[:, :shift], joined], axis=1)
        shift *= 2
    return x


def _at_last_token(x: Array, patch_start: Array, patch_end: Array) -> Array:
    """Returns x (B, N, d) at each patch's last token: (B, P, d), zero where the patch is empty."""
    last = jnp.maximum(patch_end - 1, 0)[..., None]
    values = jnp.take_along_axis(x, last, axis=1)
    return jnp.where((patch_end > patch_start)[..., None], values, 0)


def _to_tokens(x: Array, patch_ids: Array) -> Array:
    """Copies patch values (B, P, d) to every token of the patch: (B, N, d), zero at padding."""
    slots = x.shape[1]
    values = jnp.take_along_axis(x, jnp.minimum(patch_ids, slots - 1)[..., None], axis=1)
    return jnp.where((patch_ids < slots)[..., None], values, 0)


@jax.custom_vjp
def _sum_pool(h: Array, patch_ids: Array, patch_start: Array, patch_end: Array) -> Array:
    """Returns float32 sums (B, P, d)."""
    total = _segmented_scan(h.astype(jnp.float32), patch_ids, jnp.add)
    return _at_last_token(total, patch_start, patch_end)


def _sum_forward(
    h: Array, patch_ids: Array, patch_start: Array, patch_end: Array
) -> tuple[Array, tuple[Array, Array]]:
    # An empty array carries h's dtype, which the cotangent must have.
    like = jnp.zeros((0,), h.dtype)
    return _sum_pool(h, patch_ids, patch_start, patch_end), (patch_ids, like)


def _sum_backward(saved: tuple[Array, Array], d_out: Array) -> tuple[Array | None, ...]:
    patch_ids, like = saved
    return _to_tokens(d_out, patch_ids).astype(like.dtype), None, None, None


_sum_pool.defvjp(_sum_forward, _sum_backward)


@jax.custom_vjp
def _max_pool(h: Array, patch_ids: Array, patch_start: Array, patch_end: Array) -> Array:
    return _max_forward(h, patch_ids, patch_start, patch_end)[0]


def _max_forward(
    h: Array, patch_ids: Array, patch_start: Array, patch_end: Array
) -> tuple[Array, tuple[Array, ...]]:
    scanned = _segmented_scan(h, patch_ids, jnp.maximum)
    pooled = _at_last_token(scanned, patch_start, patch_end)
    return pooled, (h, patch_ids, patch_start, patch_end, pooled)


def _max_backward(saved: tuple[Array, ...], d_out: Array) -> tuple[Array | None, ...]:
    h, patch_ids, patch_start, patch_end, pooled = saved
    is_maximum = (h == _to_tokens(pooled, patch_ids)) & (patch_ids < pooled.shape[1])[..., None]
    count = _sum_pool(is_maximum.astype(h.dtype), patch_ids, patch_start, patch_end)
    share = _to_tokens(d_out.astype(jnp.float32) / jnp.maximum(count, 1.0), patch_ids)
    return jnp.where(is_maximum, share, 0.0).astype(h.dtype), None, None, None


_max_pool.defvjp(_max_forward, _max_backward)
