"""Ring buffers: the last C items of a sequence, item i in slot i mod C, and attention over them.

Decoding keeps in rings what it reads again: keys and values of tokens, of patches, of latent
vectors. A ring that never wraps is a plain cache. Every row counts its own items.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from lst_jax.model.key_ranges import AnyKeyRange
from lst_jax.shapes import Bool, Float, Int32, Shaped, check_shapes


@check_shapes
def ring_attention(
    q: Float[Array, "B Q H D"],
    past: tuple[Float[Array, "B H C D"], Float[Array, "B H C D"]],
    own: tuple[Float[Array, "B Q H D"], Float[Array, "B Q H D"]] | None,
    key_range: AnyKeyRange,
) -> Float[Array, "B Q H D"]:
    """Computes interval attention, as `attend`, over keys and values in rings.

    Items of the range must still be in the ring: it is no longer than C.

    Args:
      q: (B, Q, H, D) queries.
      past: keys and values, each (B, H, C, D): for one query, heads are best apart.
      own: keys and values of the queries' own items, each (B, Q, H, D), where they are the last
        of their ranges and not yet in the ring; None if the ring holds the whole ranges.
      key_range: start and end, each (B, Q) int32.

    Returns:
      (B, Q, H, D) in q's dtype, zeros where the range is empty; softmax in float32.
    """
    keys, values = past
    capacity, scale = keys.shape[2], q.shape[-1] ** -0.5
    start = key_range.start[..., None]
    length = key_range.end[..., None] - start - (own is not None)
    # Slot s holds the item (s - start) mod C after the first of the range.
    mask = (jnp.arange(capacity, dtype=jnp.int32) - start) % capacity < length
    scores = jnp.einsum("bqhd,bhkd->bhqk", q, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None], scores * scale, -jnp.inf)
    if own is not None:
        own_scores = jnp.einsum("bqhd,bqhd->bhq", q, own[0], preferred_element_type=jnp.float32)
        scores = jnp.concatenate([scores, own_scores[..., None] * scale], axis=-1)
    # An empty range has no maximum; any finite stand-in keeps its weights at zero.
    weights = jnp.exp(scores - jnp.maximum(scores.max(-1, keepdims=True), -1e30))
    total = weights.sum(-1, keepdims=True)
    weights = (weights / jnp.where(total > 0, total, 1.0)).astype(values.dtype)
    out = jnp.einsum(
        "bhqk,bhkd->bqhd", weights[..., :capacity], values, preferred_element_type=jnp.float32
    )
    if own is not None:
        out += jnp.einsum("bhq,bqhd->bqhd", weights[..., -1], own[1].astype(jnp.float32))
    return out.astype(q.dtype)


@check_shapes
def write(
    ring: Shaped[Array, " B *c"],
    items: Shaped[Array, " B *n"],
    index: Int32[Array, " B"],
    active: Bool[Array, " B"],
    axis: int = 1,
) -> Shaped[Array, " B *c"]:
    """Puts the items index · n … index · n + n − 1 of some rows into their rings.

    Args:
      ring: (B, …, C, …), C slots along `axis`.
      items: (B, …, n, …), n ≤ C.
      index: (B,) int32.
      active: (B,) bool, rows that are written; the others stay as they are.
      axis: of the items.

    Returns:
      The ring.
    """
    capacity, count = ring.shape[axis], items.shape[axis]
    slots = (count * index[:, None] + jnp.arange(count, dtype=jnp.int32)) % capacity
    slots = jnp.where(active[:, None], slots, capacity)  # past the end: dropped

    def write_row(row: Array, at: Array, values: Array) -> Array:
        return row.at[(slice(None),) * (axis - 1) + (at,)].set(values, mode="drop")

    return jax.vmap(write_row)(ring, slots, items)


@check_shapes
def take(ring: Shaped[Array, "B C *d"], index: Int32[Array, "B n"]) -> Shaped[Array, "B n *d"]:
    """Returns items (B, n, …) of the ring (B, C, …) by their index (B, n) int32."""
    slots = index % ring.shape[1]
    return jnp.take_along_axis(ring, slots.reshape(*slots.shape, *[1] * (ring.ndim - 2)), axis=1)


@check_shapes
def latest(
    sequence: Shaped[Array, "B L *d"], length: Int32[Array, " B"], capacity: int
) -> Shaped[Array, "B C *d"]:
    """Returns the ring (B, capacity, …) after the first `length` items of each row of a sequence.

    Args:
      sequence: (B, L, …).
      length: (B,) int32, at most L.
      capacity: C.

    Returns:
      (B, capacity, …); slots that no item is for hold any item.
    """
    newest = length[:, None] - 1
    slots = jnp.arange(capacity, dtype=jnp.int32)
    index = jnp.maximum(newest - (newest - slots) % capacity, 0)
    index = jnp.minimum(index, sequence.shape[1] - 1)
    return jnp.take_along_axis(
        sequence, index.reshape(*index.shape, *[1] * (sequence.ndim - 2)), axis=1
    )
