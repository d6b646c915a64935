"""The caches of a model while it decodes: rings of what its attentions read, by path.

Modules sow keys and values as they make them (`layers.SOWN`) and read earlier ones from the
collection `layers.CACHE`; a cache is that collection, flattened: path, such as
"encoder/layer_0/attention/keys", to a ring of C items. Keys and values are (B, H, C, D), token
states (B, C, d); a stack of layers has an axis more, the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from lst_jax.model.attention import ring
from lst_jax.model.layers import CACHE, SOWN, constrain

Cache = dict[str, Array]


def apply(
    model: nn.Module, params: Any, cache: Cache, function: Callable[..., Any], *args: Any
) -> tuple[Any, Cache]:
    """Calls `function(bound model, *args)` with a cache.

    Returns:
      What it returns, and the keys and values that it made, by path.
    """
    variables = {"params": params, CACHE: unflatten_dict(cache, sep="/")}
    result, made = model.apply(variables, *args, method=function, mutable=[SOWN])
    return result, flatten(made)


def flatten(made: Mapping[str, Any]) -> Cache:
    """What the modules have sown, by path, from the collections that `apply` returns."""
    return flatten_dict(made.get(SOWN, {}), sep="/")


def of_prompt(sown: Cache, capacity: Callable[[str], int], length: Callable[[str], Array]) -> Cache:
    """The cache after a forward pass over whole rows.

    Args:
      sown: all that the pass has sown: keys and values (B, N, H, D), token states (B, N, d).
      capacity: path to slots C of the ring.
      length: path to items (B,) of the rows that count.
    """

    def fill(path: str, x: Array) -> Array:
        def latest(y: Array) -> Array:
            return ring.latest(y, length(path), capacity(path))

        x = jax.vmap(latest)(x) if _is_stacked(path) else latest(x)
        names = (
            ("batch", "heads", "length", None) if _has_heads(path) else ("batch", "length", None)
        )
        return constrain(_heads_first(path, x), *["layers"] * _is_stacked(path), *names)

    return {path: fill(path, x) for path, x in sown.items()}


def append(cache: Cache, made: Mapping[str, Array], index: Array, active: Array) -> Cache:
    """Writes the n keys and values, n = 1 or more, that item `index` (B,) of active rows has made.

    Args:
      cache: rings.
      made: some of its paths: keys and values (B, n, H, D), token states (B, n, d).
      index: (B,) int32, number of the token or patch.
      active: (B,) bool.
    """

    def updated(path: str, x: Array) -> Array:
        def write_layer(of_layer: Array, items: Array) -> Array:
            return ring.write(of_layer, items, index, active, axis=1 + _has_heads(path))

        items = _heads_first(path, x)
        write = jax.vmap(write_layer) if _is_stacked(path) else write_layer
        return write(cache[path], items)

    return cache | {path: updated(path, x) for path, x in made.items()}


def take_rows(cache: Cache, rows: Array) -> Cache:
    """The cache whose row i is row `rows[i]`."""
    return {path: x.take(rows, axis=1 if _is_stacked(path) else 0) for path, x in cache.items()}


def _has_heads(path: str) -> bool:
    return path.endswith(("/keys", "/values"))


def _heads_first(path: str, x: Array) -> Array:
    """Keys and values (…, n, H, D) to (…, H, n, D), and anything else as it is."""
    return x.swapaxes(-2, -3) if _has_heads(path) else x


def _is_stacked(path: str) -> bool:
    return "/layers/" in path
