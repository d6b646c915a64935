"""Interval attention for GPUs, in Pallas (Triton): blocks outside the intervals are skipped.

One program for each head and block of queries runs an online softmax over the key blocks of its
span. In the backward pass another does so for dq, and one for each block of keys sums dk and dv
over the query blocks that read it.

JAX deprecated the Triton backend of Pallas in 0.11, so nothing may depend on this module: `gpu`
imports it where it is still there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from lst_jax.model.attention.blocks import (
    Spans,
    end_to_end,
    end_to_end_ranges,
    key_spans,
    output_products,
    query_spans,
    rows_again,
    with_gradient,
)
from lst_jax.model.attention.kernels import dot, on_platform
from lst_jax.model.key_ranges import KeyRange
from lst_jax.shapes import Float, check_shapes

QUERY_BLOCK = 64
KEY_BLOCK = 64

# Matrix products on a GPU take at least 16 features.
_NARROWEST_HEAD = 16
# Bytes of a head's features up to which whole blocks fit in shared memory, loads overlapping; then
# half blocks do, up to twice as many.
_HEAD_BYTES = 256
# Ampere, the first generation that XLA compiles Triton for.
_OLDEST_CAPABILITY = 8.0
# Below every score; masked scores lie lower still, so that their weights are zero from the start.
_LOWEST = -1e30


class _Problem(NamedTuple):
    """What is static about a call: scale of the scores, block sizes."""

    scale: float
    queries: int
    keys: int


def unsupported(dtype: str, width: int, capability: str | None = None) -> str | None:
    """Says why the kernels cannot serve a call, or None if they can.

    Args:
      dtype: name of the arrays' dtype.
      width: features D of a head.
      capability: compute capability of the GPU, such as "9.0"; None where there is no GPU.
    """
    size = _padded_width(width) * jnp.dtype(dtype).itemsize
    if size > 2 * _HEAD_BYTES:
        return f"heads of {width} features in {dtype}"
    if capability is not None and not capability.replace(".", "", 1).isdigit():
        return f"a GPU of capability {capability!r}, which is not one of CUDA's"
    if capability is not None and float(capability) < _OLDEST_CAPABILITY:
        return f"a GPU of compute capability {capability}, older than {_OLDEST_CAPABILITY}"
    return None


@check_shapes
def triton_attention(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    key_range: KeyRange,
) -> Float[Array, "B Q H D"]:
    """Computes interval attention on a GPU; elsewhere Pallas's interpreter runs the kernels.

    Raises:
      ValueError: heads are too wide for shared memory (`unsupported`).
    """
    rows, length, _, width = q.shape
    reason = unsupported(q.dtype.name, width)
    if reason:
        raise ValueError(
            f"shape of q is {q.shape}, expected what the Triton kernels support, not {reason}"
        )
    padded = _padded_width(width)
    split = 1 if padded * q.dtype.itemsize <= _HEAD_BYTES else 2
    problem = _Problem(width**-0.5, QUERY_BLOCK // split, KEY_BLOCK // split)
    ranges = end_to_end_ranges(key_range, k.shape[1], problem.queries, problem.keys)
    q, k, v = (
        end_to_end(x, block, padded)
        for x, block in ((q, problem.queries), (k, problem.keys), (v, problem.keys))
    )
    out = _attention(q, k, v, *ranges, problem)
    return rows_again(out, rows, length)[..., :width]


def _padded_width(width: int) -> int:
    return pl.next_power_of_2(max(width, _NARROWEST_HEAD))


@with_gradient(static=5)
def _attention(q: Array, k: Array, v: Array, start: Array, end: Array, problem: _Problem) -> Array:
    return _forward(q, k, v, start, end, problem)[0]


def _forward(
    q: Array, k: Array, v: Array, start: Array, end: Array, problem: _Problem
) -> tuple[Array, tuple[Array, ...]]:
    like = jax.ShapeDtypeStruct
    spans = key_spans(KeyRange(start, end), problem.queries, problem.keys)
    out, lse = _call(
        _forward_kernel,
        problem,
        spans,
        [("queries", q), ("all", k), ("all", v), ("range", start), ("range", end)],
        [("queries", like(q.shape, q.dtype)), ("statistics", like(q.shape[1::-1], jnp.float32))],
    )
    return out, (q, k, v, start, end, out, lse)


def _backward(
    problem: _Problem, saved: tuple[Array, ...], d_out: Array
) -> tuple[Array | None, ...]:
    q, k, v, start, end, out, lse = saved
    like = jax.ShapeDtypeStruct
    delta = output_products(out, d_out).T
    spans = key_spans(KeyRange(start, end), problem.queries, problem.keys)
    inputs = [("queries", q), ("queries", d_out), ("all", k), ("all", v)]
    inputs += [("range", start), ("range", end), ("statistics", lse), ("statistics", delta)]
    (dq,) = _call(_dq_kernel, problem, spans, inputs, [("queries", like(q.shape, q.dtype))])
    inputs = [("all", q), ("all", d_out), ("keys", k), ("keys", v)]
    inputs += [("all ranges", x) for x in (start, end)]
    inputs += [("all statistics", x) for x in (lse, delta)]
    dk, dv = _call(
        _dkv_kernel,
        problem,
        query_spans(spans, len(k) // problem.keys),
        inputs,
        [("keys", like(k.shape, k.dtype)), ("keys", like(v.shape, v.dtype))],
    )
    return dq, dk, dv, None, None


_attention.defvjp(_forward, _backward)


def _call(
    kernel: Callable[..., None],
    problem: _Problem,
    spans: Spans,
    inputs: Sequence[tuple[str, Array]],
    outputs: Sequence[tuple[str, jax.ShapeDtypeStruct]],
) -> list[Array]:
    """Runs one program for each block that has a span, and head.

    Args:
      kernel: takes the problem and references to the span's ends, inputs and outputs.
      problem: static sizes.
      spans: of the programs' blocks.
      inputs: arrays, each with what a program sees of it: "queries" or "keys" its block of
        (positions, H, D), "all" its head; "range" its block of (queries,), "all ranges" the whole;
        "statistics" its head's block of (H, queries), "all statistics" its head.
      outputs: shapes, in the same way.
    """
    _, heads, width = inputs[0][1].shape

    def spec(kind: str, x: Any) -> pl.BlockSpec:
        return {
            "queries": pl.BlockSpec((problem.queries, None, width), lambda i, h: (i, h, 0)),
            "keys": pl.BlockSpec((problem.keys, None, width), lambda i, h: (i, h, 0)),
            "all": pl.BlockSpec((x.shape[0], None, width), lambda i, h: (0, h, 0)),
            "range": pl.BlockSpec((problem.queries,), lambda i, h: (i,)),
            "all ranges": pl.BlockSpec(x.shape[:1], lambda i, h: (0,)),
            "statistics": pl.BlockSpec((None, problem.queries), lambda i, h: (h, i)),
            "all statistics": pl.BlockSpec((None, x.shape[-1]), lambda i, h: (h, 0)),
        }[kind]

    bound = pl.BlockSpec((1,), lambda i, h: (i,))
    call = functools.partial(
        pl.pallas_call,
        functools.partial(kernel, problem),
        grid=(len(spans.first), heads),
        in_specs=[bound, bound, *(spec(*item) for item in inputs)],
        out_specs=[spec(*item) for item in outputs],
        out_shape=[x for _, x in outputs],
        compiler_params=pltriton.CompilerParams(num_warps=4 if width <= 64 else 8, num_stages=2),
        name=f"triton{kernel.__name__}",
    )
    return on_platform("cuda", call, *spans, *(x for _, x in inputs))


def _scores(
    q: Array, k: Array, start: Array, end: Array, block: Array, problem: _Problem
) -> tuple[Array, Array]:
    """Returns scaled scores (queries, keys) of a pair of blocks, and which of them are read."""
    keys = block * problem.keys + jnp.arange(problem.keys, dtype=jnp.int32)
    mask = (start[:, None] <= keys[None]) & (keys[None] < end[:, None])
    return dot(q, k, (1, 1)) * problem.scale, mask


def _forward_kernel(problem: _Problem, *refs: Any) -> None:
    """Runs online softmax over the key blocks of a query block."""
    first, last, q_ref, k_ref, v_ref, start_ref, end_ref, out_ref, lse_ref = refs
    q, start, end = q_ref[...], start_ref[...], end_ref[...]

    def step(block: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        peak, total, out = state
        rows = pl.ds(block * problem.keys, problem.keys)
        k, v = k_ref[rows, :], v_ref[rows, :]
        scores, mask = _scores(q, k, start, end, block, problem)
        scores = jnp.where(mask, scores, 2 * _LOWEST)
        new_peak = jnp.maximum(peak, jnp.max(scores, axis=1))
        weights = jnp.exp(scores - new_peak[:, None])
        shrink = jnp.exp(peak - new_peak)
        update = dot(weights.astype(v.dtype), v, (1, 0))
        return new_peak, total * shrink + jnp.sum(weights, axis=1), out * shrink[:, None] + update

    lowest = jnp.full((problem.queries,), _LOWEST, jnp.float32)
    state = lowest, jnp.zeros_like(lowest), jnp.zeros(q.shape, jnp.float32)
    peak, total, out = jax.lax.fori_loop(first[0], last[0], step, state)
    total = jnp.where(total > 0, total, 1.0)
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    lse_ref[...] = peak + jnp.log(total)


def _weights_and_gradient(
    arrays: tuple[Array, Array, Array, Array],
    ranges: tuple[Array, Array],
    statistics: tuple[Array, Array],
    block: Array,
    problem: _Problem,
) -> tuple[Array, Array]:
    """Returns softmax weights (queries, keys) of a pair of blocks, and the scores' gradient."""
    (q, d_out, k, v), (lse, delta) = arrays, statistics
    scores, mask = _scores(q, k, *ranges, block, problem)
    weights = jnp.where(mask, jnp.exp(scores - lse[:, None]), 0.0)
    d_weights = dot(d_out, v, (1, 1))
    return weights, weights * (d_weights - delta[:, None]) * problem.scale


def _dq_kernel(problem: _Problem, *refs: Any) -> None:
    """Sums the gradient of a query block over its key blocks."""
    first, last, q_ref, d_out_ref, k_ref, v_ref, *others = refs
    start_ref, end_ref, lse_ref, delta_ref, dq_ref = others
    q, d_out = q_ref[...], d_out_ref[...]
    ranges, statistics = (start_ref[...], end_ref[...]), (lse_ref[...], delta_ref[...])

    def step(block: Array, dq: Array) -> Array:
        rows = pl.ds(block * problem.keys, problem.keys)
        arrays = q, d_out, k_ref[rows, :], v_ref[rows, :]
        _, d_scores = _weights_and_gradient(arrays, ranges, statistics, block, problem)
        return dq + dot(d_scores.astype(q.dtype), arrays[2], (1, 0))

    zeros = jnp.zeros(q.shape, jnp.float32)
    dq_ref[...] = jax.lax.fori_loop(first[0], last[0], step, zeros).astype(dq_ref.dtype)


def _dkv_kernel(problem: _Problem, *refs: Any) -> None:
    """Sums the gradients of a key block over the query blocks that read it."""
    first, last, q_ref, d_out_ref, k_ref, v_ref, *others = refs
    start_ref, end_ref, lse_ref, delta_ref, dk_ref, dv_ref = others
    k, v, block = k_ref[...], v_ref[...], pl.program_id(0)

    def step(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        rows = pl.ds(i * problem.queries, problem.queries)
        q, d_out = q_ref[rows, :], d_out_ref[rows, :]
        ranges, statistics = (start_ref[rows], end_ref[rows]), (lse_ref[rows], delta_ref[rows])
        arrays = q, d_out, k, v
        weights, d_scores = _weights_and_gradient(arrays, ranges, statistics, block, problem)
        dk, dv = state
        dk = dk + dot(d_scores.astype(q.dtype), q, (0, 0))
        return dk, dv + dot(weights.astype(q.dtype), d_out, (0, 0))

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = jax.lax.fori_loop(first[0], last[0], step, (zeros, zeros))
    dk_ref[...], dv_ref[...] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)
