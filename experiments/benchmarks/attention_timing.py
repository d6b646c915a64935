"""The model's four attentions over rows of typical documents, and what computes and times them.

Besides this project's backends there are the library calls that a user would take instead. Some
compute the same function from a mask of booleans, which takes memory and time for every pair of a
query and a key. Others cannot express the intervals: they leave the documents out, and are given
as what the attention would cost if a row were one document.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.aot.attention_estimates import typical_batch
from experiments.benchmarks.step_timing import planned_memory
from lst_jax.config import LSTConfig
from lst_jax.model.attention import attend
from lst_jax.model.key_ranges import KeyRange, lst_key_ranges
from lst_jax.patching import PatchingConfig
from lst_jax.vocabulary import Vocabulary

Attention = Callable[[Array, Array, Array, KeyRange], Array]


class AttentionCase(NamedTuple):
    """One of the model's attentions over a batch.

    Attributes:
      name: `token self`, `encoder cross`, `global` or `decoder cross`.
      key_range: start and end, each (B, Q) int32 NumPy arrays.
      query_shape: (B, Q, H, D).
      key_shape: (B, K, H, D).
      window: tokens (or keys) that a query may read at most; None: any number.
    """

    name: str
    key_range: KeyRange
    query_shape: tuple[int, ...]
    key_shape: tuple[int, ...]
    window: int | None

    @property
    def pairs(self) -> int:
        """Returns the pairs of a query and a key that it reads, of one head."""
        return int(np.sum(np.maximum(self.key_range.end - self.key_range.start, 0)))


def attention_cases(
    config: LSTConfig,
    vocabulary: Vocabulary,
    num_patches: int,
    num_tokens: int,
    rows: int,
    one_document: bool = False,
) -> list[AttentionCase]:
    """Returns the four attentions of a model over a batch of typical rows.

    Args:
      config: of the model: its windows, k, heads and widths.
      vocabulary: the id space.
      num_patches: P, patch slots of a row.
      num_tokens: N, token slots of a row.
      rows: B.
      one_document: the documents of a row are taken for one, the most that a row can cost.
    """
    patching = PatchingConfig("static")
    batch = typical_batch(vocabulary, patching, num_patches, num_tokens, rows)
    if one_document:
        one = np.minimum(batch.document_ids, 1)
        batch = dataclasses.replace(batch, document_ids=one)
    ranges = jax.device_get(lst_key_ranges(batch, config))
    latents = config.latent_vectors_per_patch * num_patches
    local = config.num_heads_local, config.dim_local // config.num_heads_local
    cross = config.cross_attention_heads, config.dim_local // config.cross_attention_heads
    wide = config.num_heads_global, config.dim_global // config.num_heads_global

    def case(
        name: str,
        key_range: KeyRange,
        queries: int,
        keys: int,
        heads: tuple[int, int],
        window: int | None,
    ) -> AttentionCase:
        shapes = (rows, queries, *heads), (rows, keys, *heads)
        return AttentionCase(name, KeyRange(*key_range), *shapes, window)

    window = config.local_window
    return [
        case("token self", ranges.token_self, num_tokens, num_tokens, local, window),
        case("encoder cross", ranges.encoder_cross, latents, num_tokens, cross, None),
        case("global", ranges.global_self, num_patches, num_patches, wide, None),
        case("decoder cross", ranges.decoder_cross, num_tokens, latents, cross, None),
    ]


class Alternative(NamedTuple):
    """A library's attention.

    Attributes:
      attention: takes and returns what `attend` does.
      exact: whether it is the same function; if not, it leaves the documents out.
    """

    attention: Attention
    exact: bool


def alternatives(case: AttentionCase) -> dict[str, Alternative]:
    """Returns what a user could call instead of `attend` for a case, by name."""
    cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    found = {"cudnn mask": Alternative(functools.partial(_masked, cudnn), True)}
    if case.name in ("token self", "global"):
        window = None if case.window is None else (case.window - 1, 0)
        causal = functools.partial(cudnn, is_causal=True, local_window_size=window)
        found["cudnn causal"] = Alternative(lambda q, k, v, _: causal(q, k, v), False)
    if importlib.util.find_spec("tokamax"):
        tokamax = importlib.import_module("tokamax").dot_product_attention
        found["tokamax mask"] = Alternative(functools.partial(_masked, tokamax), True)
    return found


def _masked(
    attention: Callable[..., Array], q: Array, k: Array, v: Array, key_range: KeyRange
) -> Array:
    keys = jnp.arange(k.shape[1], dtype=jnp.int32)
    mask = (key_range.start[..., None] <= keys) & (keys < key_range.end[..., None])
    return attention(q, k, v, mask=mask[:, None])


def attend_with(name: str) -> Attention:
    """Returns `attend` with the backend of that name."""
    return functools.partial(attend, backend=name)


class AttentionTimes(NamedTuple):
    """Times of one call, and what XLA plans to take besides arguments and outputs.

    Attributes:
      forward_s, both_s: seconds, the median; of the forward pass, and of it and the backward pass.
      forward_bytes, both_bytes: temporaries.
    """

    forward_s: float
    both_s: float
    forward_bytes: int
    both_bytes: int


def time_attention(
    attention: Attention, case: AttentionCase, dtype: str, repeats: int, budget_s: float = 10.0
) -> AttentionTimes:
    """Compiles and times an attention on random arrays.

    Args:
      attention: takes and returns what `attend` does.
      case: shapes and intervals.
      dtype: of the arrays.
      repeats: timed runs of each pass.
      budget_s: seconds after which no further run begins.
    """
    rng = np.random.default_rng(0)
    q, k, v, cotangent = (
        jnp.asarray(rng.normal(size=shape), dtype)
        for shape in (case.query_shape, case.key_shape, case.key_shape, case.query_shape)
    )
    key_range = jax.device_put(case.key_range)

    def gradients(
        q: Array, k: Array, v: Array, key_range: KeyRange, cotangent: Array
    ) -> tuple[Array, ...]:
        return jax.vjp(lambda q, k, v: attention(q, k, v, key_range), q, k, v)[1](cotangent)

    forward = _time(attention, repeats, budget_s, q, k, v, key_range)
    both = _time(gradients, repeats, budget_s, q, k, v, key_range, cotangent)
    return AttentionTimes(forward[0], both[0], forward[1], both[1])


def _time(
    function: Callable[..., Any], repeats: int, budget_s: float, *arrays: Any
) -> tuple[float, int]:
    """Returns the seconds of the median run, and the bytes of the program's temporaries."""
    compiled = jax.jit(function).lower(*arrays).compile()
    times: list[float] = []
    jax.block_until_ready(compiled(*arrays))
    while len(times) < repeats and sum(times) < budget_s:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arrays))
        times.append(time.perf_counter() - start)
    return statistics.median(times), planned_memory(compiled)["temporaries"]
