"""The caches of a model while it decodes: rings of what its attentions read.

A decoder's cache is a tree (`LSTCache`, `TokenCache`) whose leaves are arrays:

| what                                   | as a module makes it | in a ring       |
|----------------------------------------|----------------------|-----------------|
| token states                           | (B, n, d)            | (B, C, d)       |
| keys and values                        | (B, n, H, D)         | (B, H, C, D)    |
| keys and values of L layers in a stack | (L, B, n, H, D)      | (L, B, H, C, D) |

so the number of its axes says what an array is. In a ring heads come first: decoding reads it with
one query a row, a matrix product for each head, whose keys then lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

import flax.linen as nn
import jax
from jax import Array

from lst_jax.model.attention import ring
from lst_jax.model.layers import CACHE, SOWN, constrain
from lst_jax.shapes import Bool, Float, Int32, check_shapes

Tree = TypeVar("Tree")


class KeysValues(NamedTuple):
    """Keys and values of one attention, or of the same attention in every layer of a stack."""

    keys: Float[Array, "*b D"]
    values: Float[Array, "*b D"]

    @classmethod
    def of(cls, variables: Mapping[str, Any]) -> KeysValues:
        """Returns those that the attention of a block or of a `CrossAttention` has sown."""
        return cls(**variables["attention"])

    @property
    def variables(self) -> dict[str, dict[str, Array]]:
        """Returns what a block or a `CrossAttention` finds them in."""
        return {"attention": self._asdict()}


def apply(
    model: nn.Module,
    params: Any,
    variables: Mapping[str, Any],
    function: Callable[..., Any],
    *args: Any,
) -> tuple[Any, Mapping[str, Any]]:
    """Calls `function(bound model, *args)` with the rings of a cache, as variables of the modules.

    Returns:
      What it returns, and the variables that the modules have sown.
    """
    outputs = model.apply(
        {"params": params, CACHE: variables}, *args, method=function, mutable=[SOWN]
    )
    result, made = cast(tuple[Any, Mapping[str, Any]], outputs)  # a pair, where some are mutable
    return result, made.get(SOWN, {})


@check_shapes
def fill(made: Tree, capacity: int, length: Int32[Array, " B"]) -> Tree:
    """Returns the rings after a forward pass over whole rows.

    Args:
      made: what the pass has made of N items a row.
      capacity: slots C of the rings.
      length: (B,) int32, items of the rows that count; those behind them are padding.
    """

    def fill_ring(x: Array) -> Array:
        def latest(of_layer: Array) -> Array:
            return ring.latest(of_layer, length, capacity)

        x = jax.vmap(latest)(x) if _is_stacked(x) else latest(x)
        heads = ["heads"] * _has_heads(x)
        names = [*["layers"] * _is_stacked(x), "batch", *heads, "length", None]
        # Rings stay where they are for the whole loop, so the first ones decide where that is.
        return constrain(_heads_first(x), *names)

    return jax.tree.map(fill_ring, made)


@check_shapes
def append(rings: Tree, made: Tree, index: Int32[Array, " B"], active: Bool[Array, " B"]) -> Tree:
    """Writes what item `index` (B,) of active rows has made, one array item or more.

    Args:
      rings: part of a cache.
      made: the same part, of n array items: n = k for the latent vectors of a patch, else 1.
      index: (B,) int32, number of the token or patch.
      active: (B,) bool; rows that are not keep their rings. They have run, too, with the others of
        the batch, but what they made is of no token.
    """

    def update(of_ring: Array, x: Array) -> Array:
        def write_layer(of_layer: Array, items: Array) -> Array:
            return ring.write(of_layer, items, index, active, axis=1 + _has_heads(x))

        write = jax.vmap(write_layer) if _is_stacked(x) else write_layer
        return write(of_ring, _heads_first(x))

    return jax.tree.map(update, rings, made)


def _has_heads(x: Array) -> bool:
    return x.ndim >= 4


def _is_stacked(x: Array) -> bool:
    return x.ndim == 5


def _heads_first(x: Array) -> Array:
    """Turns keys and values (…, n, H, D) to (…, H, n, D), and leaves token states as they are."""
    return x.swapaxes(-2, -3) if _has_heads(x) else x
