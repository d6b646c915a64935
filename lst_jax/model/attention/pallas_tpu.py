"""Interval attention for TPUs, in Pallas (Mosaic): only blocks that meet an interval are read.

The grid runs over groups of heads and over a list of visits, pairs of a query block and a key block
that meet, made from the ranges and prefetched as scalars; its length is dynamic, so that blocks
outside every interval cost nothing. The forward and the dq pass list the visits query block by
query block, the dk/dv pass key block by key block; each keeps its result in VMEM from a block's
first visit to its last.

Arrays are seen as (positions, heads * width), which is how projections make them, in blocks whose
lanes hold one or several heads. Scores are kept transposed, keys along sublanes and queries along
lanes: the softmax's statistics and the ranges are then rows, and so is the log-sum-exp in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lst_jax.model.attention.blocks import (
    Spans,
    end_to_end,
    end_to_end_ranges,
    key_spans,
    query_spans,
    rows_again,
    with_gradient,
)
from lst_jax.model.attention.kernels import dot, on_platform
from lst_jax.model.key_ranges import KeyRange
from lst_jax.shapes import Float, check_shapes

QUERY_BLOCK = 256
KEY_BLOCK = 256

_LANES = 128
# Narrower heads are padded to this, so that a tile of lanes holds at most two.
_NARROWEST_HEAD = 64
# Lanes of a block, where the heads fill them: more work for each step of the grid.
_BLOCK_LANES = 256
# Pairs of blocks whose list fits the scalar memory of a TPU's core (1 MiB).
_MOST_VISITS = 100_000
# Below every score; masked scores lie lower still, so that their weights are zero from the start.
_LOWEST = -1e30


class _Visits(NamedTuple):
    """Visit t pairs block outer[t] with block inner[t], or with none (-1); there are `number`."""

    outer: Array
    inner: Array
    number: Array


class _Shape(NamedTuple):
    """Blocks of the kernels: queries, keys, heads and (padded) head width."""

    queries: int
    keys: int
    heads: int
    width: int

    @property
    def lanes(self) -> int:
        return self.heads * self.width


@check_shapes
def pallas_tpu_attention(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    key_range: KeyRange,
) -> Float[Array, "B Q H D"]:
    """Computes interval attention on a TPU; elsewhere Pallas's interpreter runs the kernels.

    Raises:
      ValueError: the batch has more pairs of blocks than a TPU can list.
    """
    rows, length, heads, width = q.shape
    shape = _choose_shape(length, k.shape[1], heads, width)
    pairs = rows * -(-length // shape.queries) * -(-k.shape[1] // shape.keys)
    if pairs > _MOST_VISITS:
        raise ValueError(
            f"shapes of q and k are {q.shape} and {k.shape}, expected at most {_MOST_VISITS} "
            f"pairs of a query block and a key block ({shape.queries} and "
            f"{shape.keys} long), these are {pairs}"
        )
    ranges = end_to_end_ranges(key_range, k.shape[1], shape.queries, shape.keys)
    flat = [_merge_heads(q, shape, shape.queries)]
    flat += [_merge_heads(x, shape, shape.keys) for x in (k, v)]
    out = _attention(*flat, *ranges, _Problem(rows, width**-0.5, shape))
    out = rows_again(out, rows, length).reshape(rows, length, -1, shape.width)
    return out[:, :, :heads, :width]


def _choose_shape(length: int, num_keys: int, heads: int, width: int) -> _Shape:
    """Returns blocks that fit the arrays and the tiling of a TPU's registers, (8, 128)."""
    padded = pl.next_power_of_2(max(width, _NARROWEST_HEAD))
    padded = padded if width <= _LANES else width + -width % _LANES
    tile = max(1, _LANES // padded)
    tiles = -(-heads // tile)
    wide = tiles % 2 == 0 and 2 * tile * padded <= _BLOCK_LANES
    return _Shape(
        min(QUERY_BLOCK, length + -length % _LANES),
        min(KEY_BLOCK, num_keys + -num_keys % _LANES),
        2 * tile if wide else tile,
        padded,
    )


def _merge_heads(x: Array, shape: _Shape, block: int) -> Array:
    """Maps (B, L, H, D) to (B * L', H' * D'), padded to whole blocks."""
    heads, width = x.shape[2:]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -heads % shape.heads), (0, shape.width - width)))
    return end_to_end(x.reshape(*x.shape[:2], -1), block)


class _Problem(NamedTuple):
    """What is static about a call: rows of the batch, scale of the scores, blocks."""

    rows: int
    scale: float
    shape: _Shape


@with_gradient(static=5)
def _attention(q: Array, k: Array, v: Array, start: Array, end: Array, problem: _Problem) -> Array:
    return _forward(q, k, v, start, end, problem)[0]


def _forward(
    q: Array, k: Array, v: Array, start: Array, end: Array, problem: _Problem
) -> tuple[Array, tuple[Array, ...]]:
    shape = problem.shape
    spans = key_spans(KeyRange(start, end), shape.queries, shape.keys)
    statistics = (q.shape[1] // shape.lanes, shape.heads, len(q))
    out, lse = _call(
        _forward_kernel,
        problem,
        _list_visits(spans, len(k) // shape.keys, problem.rows),
        "query",
        {"query": [q], "key": [k, v], "range": [start[None], end[None]]},
        [("query", q.shape, q.dtype), ("statistics", statistics, jnp.float32)],
        [(shape.heads, shape.queries)] * 2 + [(shape.lanes, shape.queries)],
    )
    return out, (q, k, v, start, end, out, lse)


def _backward(
    problem: _Problem, saved: tuple[Array, ...], d_out: Array
) -> tuple[Array | None, ...]:
    q, k, v, start, end, out, lse = saved
    shape = problem.shape
    keys_read = key_spans(KeyRange(start, end), shape.queries, shape.keys)
    ranges = [start[None], end[None]]
    dq, delta = _call(
        _dq_kernel,
        problem,
        _list_visits(keys_read, len(k) // shape.keys, problem.rows),
        "query",
        {"query": [q, d_out, out], "key": [k, v], "range": ranges, "statistics": [lse]},
        [("query", q.shape, q.dtype), ("statistics", lse.shape, jnp.float32)],
        [(shape.lanes, shape.queries)],
    )
    readers = query_spans(keys_read, len(k) // shape.keys)
    dk, dv = _call(
        _dkv_kernel,
        problem,
        _list_visits(readers, len(q) // shape.queries, problem.rows),
        "key",
        {"query": [q, d_out], "key": [k, v], "range": ranges, "statistics": [lse, delta]},
        [("key", k.shape, k.dtype), ("key", v.shape, v.dtype)],
        [(shape.keys, shape.lanes)] * 2,
    )
    return dq, dk, dv, None, None


_attention.defvjp(_forward, _backward)


def _list_visits(spans: Spans, inner_blocks: int, rows: int) -> _Visits:
    """Pairs every outer block with each inner block of its span, in order.

    A block whose span is empty is visited once, paired with none, to write its zeros.

    Args:
      spans: inner blocks that the outer blocks meet.
      inner_blocks: blocks of the inner side, of which a span holds at most one row's share.
      rows: of the batch.
    """
    sizes = jnp.maximum(spans.last - spans.first, 1)
    ends = jnp.cumsum(sizes)
    steps = jnp.arange(len(sizes) * inner_blocks // rows, dtype=jnp.int32)
    outer = jnp.searchsorted(ends, steps, side="right", method="compare_all")
    outer = jnp.minimum(outer, len(sizes) - 1).astype(jnp.int32)
    inner = (spans.first - ends + sizes)[outer] + steps
    inner = jnp.where((spans.last > spans.first)[outer], jnp.minimum(inner, inner_blocks - 1), -1)
    return _Visits(outer, inner, ends[-1])


def _call(
    kernel: Callable[..., None],
    problem: _Problem,
    visits: _Visits,
    outer: str,
    inputs: dict[str, list[Array]],
    outputs: list[tuple[str, tuple[int, ...], Any]],
    scratch: list[tuple[int, ...]],
) -> list[Array]:
    """Runs a kernel over groups of heads and visits.

    Args:
      kernel: takes references to the visits' two lists, inputs, outputs and scratch.
      problem: static sizes.
      visits: pairs of blocks.
      outer: "query" or "key", the side that `visits.outer` counts.
      inputs: arrays by kind: "query" and "key" (positions, heads * width), "range" (1, queries),
        "statistics" (groups, heads of a group, queries).
      outputs: kind, shape and dtype of each.
      scratch: shapes of float32 arrays in VMEM.
    """
    shape = problem.shape
    side = {outer: 0, ({"query", "key"} - {outer}).pop(): 1}

    def spec(kind: str) -> pl.BlockSpec:
        def index(group: Array, step: Array, *lists: Any) -> tuple[Any, ...]:
            block = jnp.maximum(lists[side["key" if kind == "key" else "query"]][step], 0)
            return {"range": (0, block), "statistics": (group, 0, block)}.get(kind, (block, group))

        block_shapes = {
            "query": (shape.queries, shape.lanes),
            "key": (shape.keys, shape.lanes),
            "range": (1, shape.queries),
            "statistics": (None, shape.heads, shape.queries),
        }
        return pl.BlockSpec(block_shapes[kind], index)

    arrays = [x for kind in inputs for x in inputs[kind]]
    out_shape = [jax.ShapeDtypeStruct(dims, dtype) for _, dims, dtype in outputs]
    queries, keys = len(inputs["query"][0]), len(inputs["key"][0])
    call = functools.partial(
        pl.pallas_call,
        functools.partial(kernel, shape=shape, scale=problem.scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(inputs["query"][0].shape[1] // shape.lanes, visits.number),
            in_specs=[spec(kind) for kind in inputs for _ in inputs[kind]],
            out_specs=[spec(kind) for kind, *_ in outputs],
            scratch_shapes=[pltpu.VMEM(dims, jnp.float32) for dims in scratch],
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=_estimate_cost(kernel, problem, queries, keys, [*arrays, *out_shape]),
        name=kernel.__name__.strip("_"),
    )
    return on_platform("tpu", call, visits.outer, visits.inner, *arrays)


def _estimate_cost(
    kernel: Callable[..., None], problem: _Problem, queries: int, keys: int, arrays: list[Any]
) -> pl.CostEstimate:
    """Returns an upper bound for causal ranges: half of all pairs. Only the batch can tell more."""
    pairs = queries * (keys // problem.rows) // 2
    features = arrays[0].shape[1]
    return pl.CostEstimate(
        flops=2 * _PRODUCTS[kernel] * pairs * features,
        transcendentals=pairs * features // problem.shape.width,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
    )


def _is_first(outer: Any) -> Array:
    """Returns whether this is the outer block's first visit."""
    step = pl.program_id(1)
    return (step == 0) | (outer[jnp.maximum(step - 1, 0)] != outer[step])


def _is_last(outer: Any) -> Array:
    """Returns whether this is the outer block's last visit."""
    step, following = pl.program_id(1), jnp.minimum(pl.program_id(1) + 1, outer.shape[0] - 1)
    return (step == pl.num_programs(1) - 1) | (outer[following] != outer[step])


def _tile(head: int, shape: _Shape) -> slice:
    """Returns the lanes of the whole tiles that hold a head."""
    size = max(shape.width, _LANES)
    begin = head * shape.width // size * size
    return slice(begin, min(begin + size, shape.lanes))


def _only(x: Array, head: int, shape: _Shape) -> Array:
    """Returns the tiles of a head, zero where other heads share them; x is (positions, lanes)."""
    tile = _tile(head, shape)
    x = x[:, tile]
    if x.shape[1] == shape.width:
        return x
    lanes = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) + (tile.start - head * shape.width)
    return jnp.where((lanes >= 0) & (lanes < shape.width), x, jnp.zeros_like(x))


def _mask(key_block: Array, start: Any, end: Any, shape: _Shape) -> Array:
    """Returns which keys (sublanes) of the block each query (lane) reads."""
    dims = shape.keys, shape.queries
    keys = key_block * shape.keys + jax.lax.broadcasted_iota(jnp.int32, dims, 0)
    return (start[...] <= keys) & (keys < end[...])


def _rows_of(head: int, shape: _Shape) -> slice:
    """Returns a head's features where they lie along sublanes."""
    return slice(head * shape.width, (head + 1) * shape.width)


def _forward_kernel(*refs: Any, shape: _Shape, scale: float) -> None:
    """Runs online softmax over the key blocks of a query block."""
    outer, inner, q_ref, k_ref, v_ref, start, end, *outputs = refs
    out_ref, lse_ref, peak_ref, total_ref, sum_ref = outputs
    partner = inner[pl.program_id(1)]

    @pl.when(_is_first(outer))
    def _() -> None:
        peak_ref[...] = jnp.full(peak_ref.shape, _LOWEST, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    @pl.when(partner >= 0)
    def _() -> None:
        q, k, v = q_ref[...], k_ref[...], v_ref[...]
        values = v.T
        mask = _mask(partner, start, end, shape)
        for head in range(shape.heads):
            row, rows = slice(head, head + 1), _rows_of(head, shape)
            scores = dot(k[:, _tile(head, shape)], _only(q, head, shape), (1, 1)) * scale
            scores = jnp.where(mask, scores, 2 * _LOWEST)
            peak = jnp.maximum(peak_ref[row, :], jnp.max(scores, axis=0, keepdims=True))
            weights = jnp.exp(scores - peak)
            shrink = jnp.exp(peak_ref[row, :] - peak)
            peak_ref[row, :] = peak
            total_ref[row, :] = total_ref[row, :] * shrink + jnp.sum(weights, axis=0, keepdims=True)
            update = dot(values[rows], weights.astype(v.dtype), (1, 0))
            sum_ref[rows, :] = sum_ref[rows, :] * shrink + update

    @pl.when(_is_last(outer))
    def _() -> None:
        total = jnp.where(total_ref[...] > 0, total_ref[...], 1.0)
        lse_ref[...] = peak_ref[...] + jnp.log(total)
        for head in range(shape.heads):
            rows = _rows_of(head, shape)
            sum_ref[rows, :] = sum_ref[rows, :] / total[head : head + 1]
        out_ref[...] = sum_ref[...].T.astype(out_ref.dtype)


def _weights_and_gradient(
    head: int,
    mask: Array,
    arrays: tuple[Array, Array, Array, Array],
    lse: Any,
    delta: Any,
    shape: _Shape,
    scale: float,
) -> tuple[Array, Array]:
    """Returns softmax weights (keys, queries) of a pair of blocks, and the scores' gradient."""
    q, d_out, k, v = arrays
    row, tile = slice(head, head + 1), _tile(head, shape)
    scores = dot(k[:, tile], _only(q, head, shape), (1, 1)) * scale
    weights = jnp.where(mask, jnp.exp(scores - lse[row, :]), 0.0)
    d_weights = dot(v[:, tile], _only(d_out, head, shape), (1, 1))
    return weights, weights * (d_weights - delta[row, :]) * scale


def _dq_kernel(*refs: Any, shape: _Shape, scale: float) -> None:
    """Sums the gradient of a query block over its key blocks.

    d(softmax) needs delta, each output's inner product with its cotangent; the dk/dv pass too.
    """
    outer, inner, q_ref, d_out_ref, out_ref, k_ref, v_ref, start, end, lse, *outputs = refs
    dq_ref, delta, sum_ref = outputs
    partner = inner[pl.program_id(1)]

    @pl.when(_is_first(outer))
    def _() -> None:
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
        products = (d_out_ref[...].astype(jnp.float32) * out_ref[...].astype(jnp.float32)).T
        for head in range(shape.heads):
            row = jnp.sum(products[_rows_of(head, shape)], axis=0, keepdims=True)
            delta[head : head + 1, :] = row

    @pl.when(partner >= 0)
    def _() -> None:
        arrays = q_ref[...], d_out_ref[...], k_ref[...], v_ref[...]
        keys = arrays[2].T
        mask = _mask(partner, start, end, shape)
        for head in range(shape.heads):
            _, d_scores = _weights_and_gradient(head, mask, arrays, lse, delta, shape, scale)
            rows = _rows_of(head, shape)
            sum_ref[rows, :] += dot(keys[rows], d_scores.astype(keys.dtype), (1, 0))

    @pl.when(_is_last(outer))
    def _() -> None:
        dq_ref[...] = sum_ref[...].T.astype(dq_ref.dtype)


def _dkv_kernel(*refs: Any, shape: _Shape, scale: float) -> None:
    """Sums the gradients of a key block over the query blocks that read it."""
    outer, inner, q_ref, d_out_ref, k_ref, v_ref, start, end, lse, delta, *outputs = refs
    dk_ref, dv_ref, dk_sum, dv_sum = outputs
    key_block, partner = outer[pl.program_id(1)], inner[pl.program_id(1)]

    @pl.when(_is_first(outer))
    def _() -> None:
        dk_sum[...] = jnp.zeros(dk_sum.shape, jnp.float32)
        dv_sum[...] = jnp.zeros(dv_sum.shape, jnp.float32)

    @pl.when(partner >= 0)
    def _() -> None:
        arrays = q, d_out, *_ = q_ref[...], d_out_ref[...], k_ref[...], v_ref[...]
        mask = _mask(key_block, start, end, shape)
        for head in range(shape.heads):
            weights, d_scores = _weights_and_gradient(head, mask, arrays, lse, delta, shape, scale)
            tile = _tile(head, shape)
            dk_sum[:, tile] += dot(d_scores.astype(q.dtype), _only(q, head, shape), (1, 0))
            dv_sum[:, tile] += dot(weights.astype(q.dtype), _only(d_out, head, shape), (1, 0))

    @pl.when(_is_last(outer))
    def _() -> None:
        dk_ref[...] = dk_sum[...].astype(dk_ref.dtype)
        dv_ref[...] = dv_sum[...].astype(dv_ref.dtype)


# Matrix products of a pair of blocks.
_PRODUCTS = {_forward_kernel: 2, _dq_kernel: 3, _dkv_kernel: 4}
