"""Interval attention for NVIDIA's Hopper GPUs, in Pallas (Mosaic GPU): blocks outside are skipped.

Only products that a whole warpgroup issues, on operands in shared memory, use all of the matrix
units. In three kernels two warpgroups of a program compute on 64 rows each, while a third copies:

| kernel  | rows    | loops over                               | computes                          |
|---------|---------|------------------------------------------|-----------------------------------|
| forward | queries | blocks of keys that its queries read     | outputs, log2 of the softmax sums |
| dq      | queries | the same                                 | gradients of the queries          |
| dkv     | keys    | blocks of queries that read its keys     | gradients of keys and values      |

Who touches shared memory, and when:

- A program's rows are copied, awaited, read and in the end overwritten with the results by the
  warpgroup that they belong to. Its products have ended by then.
- Blocks pass through slots. Copies into a slot arrive at its barrier `ready`, which both computing
  warpgroups await. Each of their threads arrives at the slot's barrier `free` once its products and
  loads from the slot have ended; the copying warpgroup awaits that before it fills the slot again.

The file is over 500 lines since the kernels keep one protocol of slots and are read side by side.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lst_jax.model.attention.blocks import (
    end_to_end,
    end_to_end_ranges,
    key_spans,
    output_products,
    query_spans,
    rows_again,
    with_gradient,
)
from lst_jax.model.attention.platform import target
from lst_jax.model.key_ranges import KeyRange
from lst_jax.shapes import Float, check_shapes

# Rows that a warpgroup multiplies at a time, and computing warpgroups of a program.
_ROWS = 64
_GROUPS = 2
_BLOCK = _ROWS * _GROUPS
# Positions of the blocks that are looped over. More do not fit in the backward pass's registers.
_FORWARD_KEYS = 128
_BACKWARD_BLOCK = 64
# Bytes of shared memory for each array that blocks are copied from, and the fewest slots.
_STREAM_BYTES = 1 << 16
_FEWEST_SLOTS = 2
# Registers of each thread that computes or copies; those of three such threads share 504.
_COMPUTE_REGISTERS, _COPY_REGISTERS = 240, 24

# Hopper's; other generations have other instructions for such products.
_CAPABILITY = "9.0"
_DTYPES = ("bfloat16", "float16")
_WIDTHS = (64, 128)
# Below every score, yet finite: masked scores are -inf and have no weight from the start.
_LOWEST = -1e30
_LOG2_E = math.log2(math.e)

# How kernels run where no GPU is compiled for; JAX before 0.11 cannot.
_INTERPRETER = getattr(plgpu, "InterpretGPUParams", lambda: None)()

# JAX before 0.10.2 calls a kernel's results and memory by other names.
_NAMES = ("out_type", "scratch_types")
if _NAMES[0] not in inspect.signature(plgpu.kernel).parameters:
    _NAMES = ("out_shape", "scratch_shapes")

# How products expect blocks of a matrix in shared memory, and how they spread one over registers.
_TILED = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
# JAX has it in its documentation, and does not mark it as exported.
_ACC: Any = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]
_MATRIX = plgpu.Layout.WGMMA
_OF_ROWS, _OF_COLUMNS = _MATRIX.reduce(1), _MATRIX.reduce(0)


class _Problem(NamedTuple):
    """What is static about a call: scale of the scores, and whether kernels are interpreted."""

    scale: float
    interpreted: bool


class _Stream(NamedTuple):
    """Blocks that pass through shared memory together.

    Attributes:
      buffers: references to a matrix (slots, positions, D) or vector (slots, positions) each.
      ready: barriers of the slots, at which each copy arrives.
      free: barriers of the slots, at which each computing warpgroup arrives.
    """

    buffers: Sequence[Any]
    ready: Any
    free: Any

    @property
    def slots(self) -> int:
        return self.buffers[0].shape[0]


class _Rows(NamedTuple):
    """What a warpgroup computes on.

    Attributes:
      first: position of the first row.
      matrices: references to its rows in shared memory, (64, D) each.
      vectors: numbers of each row, (64,) each.
      bounds: scalars of the program's block; the first two are its span's ends.
    """

    first: Array | int
    matrices: Sequence[Any]
    vectors: Sequence[Array]
    bounds: Sequence[Array]


def unsupported(dtype: str, width: int, capability: str | None = _CAPABILITY) -> str | None:
    """Says why the kernels cannot serve a call, or None if they can.

    Args:
      dtype: name of the arrays' dtype.
      width: features D of a head.
      capability: compute capability of the GPU, such as "9.0"; None where it is not known.
    """
    if dtype not in _DTYPES:
        return f"heads in {dtype}"
    if width > _WIDTHS[-1]:
        return f"heads of {width} features"
    if capability != _CAPABILITY:
        return f"a GPU of compute capability {capability or 'unknown'}, which is not Hopper's"
    return None


@check_shapes
def mosaic_gpu_attention(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K H D"],
    v: Float[Array, "B K H D"],
    key_range: KeyRange,
) -> Float[Array, "B Q H D"]:
    """Computes interval attention on a Hopper GPU; elsewhere Pallas's interpreter runs the kernels.

    Raises:
      ValueError: what `unsupported` says, or no GPU and no interpreter.
    """
    rows, length, _, width = q.shape
    problem = _Problem(width**-0.5, target().platform != "gpu")
    reason = unsupported(q.dtype.name, width)
    if problem.interpreted and _INTERPRETER is None:
        reason = reason or f"JAX {jax.__version__} without a GPU"
    if reason:
        raise ValueError(
            f"shape of q is {q.shape}, expected what the Mosaic kernels support, not {reason}"
        )
    padded = next(x for x in _WIDTHS if x >= width)
    ranges = end_to_end_ranges(key_range, k.shape[1], _BLOCK, _BLOCK)
    q, k, v = (end_to_end(x.astype(q.dtype), _BLOCK, padded) for x in (q, k, v))
    out = _attention(q, k, v, *ranges, problem)
    return rows_again(out, rows, length)[..., :width]


@with_gradient(static=5)
def _attention(q: Array, k: Array, v: Array, start: Array, end: Array, problem: _Problem) -> Array:
    return _forward(q, k, v, start, end, problem)[0]


def _forward(
    q: Array, k: Array, v: Array, start: Array, end: Array, problem: _Problem
) -> tuple[Array, tuple[Array, ...]]:
    spans = key_spans(KeyRange(start, end), _BLOCK, _FORWARD_KEYS)
    # A block of keys that begins and ends between these is read by every query of a block.
    bounds = *spans, start.reshape(-1, _BLOCK).max(1), end.reshape(-1, _BLOCK).min(1)
    lse = jax.ShapeDtypeStruct(q.shape[1::-1], jnp.float32)
    own, streams = [q, start, end], [[k], [v]]
    out, lse = _call(_forward_kernel, problem, bounds, own, streams, _FORWARD_KEYS, [q, lse])
    return out, (q, k, v, start, end, out, lse)


def _backward(
    problem: _Problem, saved: tuple[Array, ...], d_out: Array
) -> tuple[Array | None, ...]:
    q, k, v, start, end, out, lse = saved
    delta = output_products(out, d_out).T
    of_queries, of_keys = [q, d_out, start, end, lse, delta], [k, v]
    size = _BACKWARD_BLOCK
    spans = key_spans(KeyRange(start, end), _BLOCK, size)
    (dq,) = _call(_dq_kernel, problem, spans, of_queries, [of_keys], size, [q])
    spans = query_spans(key_spans(KeyRange(start, end), size, _BLOCK), len(k) // _BLOCK)
    dk, dv = _call(_dkv_kernel, problem, spans, of_keys, [of_queries], size, [k, v])
    return dq, dk, dv, None, None


_attention.defvjp(_forward, _backward)


def _call(
    kernel: Callable[..., Sequence[Array]],
    problem: _Problem,
    bounds: Sequence[Array],
    own: Sequence[Array],
    streams: Sequence[Sequence[Array]],
    size: int,
    outputs: Sequence[Any],
) -> list[Array]:
    """Runs one program of three warpgroups for each block of rows, and head.

    Arrays are matrices (positions, H, D), or vectors (positions,) or (H, positions).

    Args:
      kernel: takes the problem, `_Rows` and the streams to a value for each output.
      problem: what is static.
      bounds: (blocks,) int32 each, the ends of the programs' spans first.
      own: arrays of which a warpgroup needs its rows; the matrices lead.
      streams: arrays of which programs need the blocks of their span.
      size: positions of such a block.
      outputs: arrays like the results; the matrices lead and are no more than those of `own`.
    """
    matrices = [x for x in own if x.ndim == 3]
    vectors = [x for x in outputs if x.ndim < 3]
    scratch = [
        [_shared((_GROUPS, _ROWS), x) for x in (*matrices, *vectors)],
        _barriers(_GROUPS, len(matrices)),
        [_stream(arrays, size) for arrays in streams],
    ]
    inputs = [*bounds, *own, *itertools.chain(*streams)]

    def body(*refs: Any) -> None:
        take = functools.partial(_take, iter(refs))
        head, block, group = (lax.axis_index(x) for x in ("head", "block", "group"))
        limits = [ref[block] for ref in take(len(bounds))]
        rows = pl.ds(block * _BLOCK + group * _ROWS, _ROWS)
        sources = [_part(ref, rows, head) for ref in take(len(own))]
        blocks = [take(len(arrays)) for arrays in streams]
        targets = [_part(ref, rows, head) for ref in take(len(outputs))]
        buffers, ready, slots = take(3)
        buffers = [buffer.at[group] for buffer in buffers]

        @pl.when(group < _GROUPS)
        def _() -> None:
            plgpu.set_max_registers(_COMPUTE_REGISTERS, action="increase")
            count = len(matrices)
            for source, buffer in zip(sources[:count], buffers, strict=False):
                plgpu.copy_gmem_to_smem(source, buffer, ready.at[group])
            loaded = [_load(x, _OF_ROWS, problem) for x in sources[count:]]
            plgpu.barrier_wait(ready.at[group])
            results = kernel(problem, _Rows(rows.start, buffers[:count], loaded, limits), slots)
            used = [*buffers[: len(outputs) - len(vectors)], *buffers[count:]]
            _store(results, used, targets)

        @pl.when(group == _GROUPS)
        def _() -> None:
            plgpu.set_max_registers(_COPY_REGISTERS, action="decrease")
            _fill(slots, blocks, limits[:2], size, head)

    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs]
    made: dict[str, Any] = dict(zip(_NAMES, (results, scratch), strict=True))
    return plgpu.kernel(
        body,
        **made,
        grid=(matrices[0].shape[1], len(bounds[0])),
        grid_names=("head", "block"),
        num_threads=_GROUPS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        interpret=_INTERPRETER if problem.interpreted else None,
        kernel_name=f"mosaic_gpu{kernel.__name__}",
    )(*inputs)


def _take(items: Any, count: int) -> list[Any]:
    return list(itertools.islice(items, count))


def _shared(shape: tuple[int, int], like: Any) -> Any:
    """Allocates shared memory for `shape` positions of one head of an array."""
    if like.ndim < 3:
        return plgpu.SMEM(shape, like.dtype)
    return plgpu.SMEM((*shape, like.shape[-1]), like.dtype, transforms=_TILED)


def _barriers(count: int, arrivals: int) -> Any:
    return plgpu.Barrier(num_arrivals=arrivals, num_barriers=count)


def _stream(arrays: Sequence[Array], size: int) -> _Stream:
    """Returns what to allocate a `_Stream` from, for blocks of `size` positions; a matrix leads."""
    matrix = arrays[0]
    bytes_of_block = size * matrix.shape[-1] * matrix.dtype.itemsize
    slots = max(_FEWEST_SLOTS, _STREAM_BYTES // bytes_of_block)
    buffers = [_shared((slots, size), x) for x in arrays]
    return _Stream(buffers, _barriers(slots, len(buffers)), _barriers(slots, _GROUPS))


def _part(ref: Any, rows: Any, head: Array) -> Any:
    """Returns the rows of a head in global memory."""
    return ref.at[{1: (rows,), 2: (head, rows), 3: (rows, head)}[len(ref.shape)]]


def _fill(
    streams: Sequence[_Stream],
    sources: Sequence[Sequence[Any]],
    span: Sequence[Array],
    size: int,
    head: Array,
) -> None:
    """Copies the blocks of a span into the streams' slots, in turn, and awaits that all are read.

    Args:
      streams: where to.
      sources: references in global memory, a sequence for each stream.
      span: first block, and the one after the last.
      size: positions of a block.
      head: which of the heads.
    """

    def vacate(stream: _Stream, turn: Array) -> Array:
        slot = lax.rem(turn, jnp.int32(stream.slots))
        pl.when(turn >= stream.slots)(lambda: plgpu.barrier_wait(stream.free.at[slot]))
        return slot

    def step(turn: Array, _: None) -> None:
        positions = pl.ds((span[0] + turn) * size, size)
        for stream, refs in zip(streams, sources, strict=True):
            slot = vacate(stream, turn)
            for ref, buffer in zip(refs, stream.buffers, strict=True):
                source = _part(ref, positions, head)
                plgpu.copy_gmem_to_smem(source, buffer.at[slot], stream.ready.at[slot])

    turns = span[1] - span[0]
    lax.fori_loop(jnp.int32(0), turns, step, None)
    for stream in streams:
        for i in range(stream.slots):
            vacate(stream, turns + i)


def _await(stream: _Stream, rows: _Rows, block: Array) -> tuple[list[Any], Any]:
    """Awaits a block of the span; returns its buffers, and the barrier to arrive at after use."""
    slot = lax.rem(block - rows.bounds[0], jnp.int32(stream.slots))
    plgpu.barrier_wait(stream.ready.at[slot])
    return [buffer.at[slot] for buffer in stream.buffers], stream.free.at[slot]


def _store(values: Sequence[Array], buffers: Sequence[Any], targets: Sequence[Any]) -> None:
    """Writes values to global memory, through shared memory."""
    for value, buffer in zip(values, buffers, strict=True):
        buffer[...] = value.astype(buffer.dtype)
    plgpu.commit_smem()
    for buffer, place in zip(buffers, targets, strict=True):
        plgpu.copy_smem_to_gmem(buffer, place)
    plgpu.wait_smem_to_gmem(0)


def _products(*pairs: tuple[Any, Any]) -> list[Any]:
    """Multiplies each `a` by the transpose of its `b`, in shared memory; (M, N) float32."""

    def multiply(*outs: Any) -> list[Array]:
        for out, (a, b) in zip(outs, pairs, strict=True):
            plgpu.wgmma(out, a, b.transpose((1, 0)))
        return [out[...] for out in outs]

    shapes = [(a.shape[0], b.shape[0]) for a, b in pairs]
    return pl.run_scoped(multiply, *(_ACC(shape, jnp.float32) for shape in shapes))


def _add_products(problem: _Problem, *terms: tuple[Array, Array, Any]) -> list[Any]:
    """Adds `a` in registers times `b` in shared memory to each total, (M, N) float32."""
    totals, lefts, rights = zip(*terms, strict=True)
    lefts = [a.astype(b.dtype) for a, b in zip(lefts, rights, strict=True)]
    if problem.interpreted:  # The interpreter takes references only.
        dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
        products = [dot(a, b[...]) for a, b in zip(lefts, rights, strict=True)]
        plgpu.commit_smem()
        return [total + product for total, product in zip(totals, products, strict=True)]

    def multiply(outs: Sequence[Any]) -> None:
        for out, a, b in zip(outs, lefts, rights, strict=True):
            plgpu.wgmma(out, a, b)

    return pl.run_state(multiply)([_ACC.init(total) for total in totals])


def _load(ref: Any, layout: Any, problem: _Problem) -> Array:
    """Loads a vector, spread over the threads as the rows or columns of a matrix are."""
    if problem.interpreted:
        return ref[...]
    options: dict[str, Any] = {"layout": layout, "optimized": False}
    try:
        return plgpu.load(ref, **options)
    except TypeError:  # JAX before 0.11 asks for an index.
        return plgpu.load(ref, idx=(), **options)


def _laid_out(x: Array, problem: _Problem) -> Array:
    """Spreads a matrix, or a number for each of its rows, over the threads as products do."""
    layout = _MATRIX if x.ndim == 2 else _OF_ROWS
    return x if problem.interpreted else plgpu.layout_cast(x, layout)


def _spread(x: Array, shape: tuple[int, ...], axis: int = 0) -> Array:
    """Repeats a vector that runs along `axis` of a matrix."""
    return lax.broadcast_in_dim(x, shape, (axis,))


def _mask(
    ranges: Sequence[Array],
    first_key: Array | int,
    shape: tuple[int, int],
    axis: int,
    problem: _Problem,
) -> Array:
    """Returns which keys are read, with queries along `axis` and keys along the other."""
    keys = _laid_out(lax.broadcasted_iota(jnp.int32, shape, 1 - axis), problem)
    start, end = (_spread(x - first_key, shape, axis) for x in ranges)
    return (start <= keys) & (keys < end)


def _forward_kernel(
    problem: _Problem, rows: _Rows, streams: Sequence[_Stream]
) -> tuple[Array, Array]:
    """Runs online softmax over the key blocks of a query block."""
    (q,), (k_stream, v_stream) = rows.matrices, streams
    first, last, last_start, first_end = rows.bounds
    shape, scale = (_ROWS, _FORWARD_KEYS), problem.scale * _LOG2_E

    def masked(scores: Array, first_key: Array) -> Array:
        every = (last_start <= first_key) & (first_key + _FORWARD_KEYS <= first_end)
        mask = functools.partial(_mask, rows.vectors, first_key, shape, 0, problem)
        return lax.cond(every, lambda: scores, lambda: jnp.where(mask(), scores, -jnp.inf))

    def step(block: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        peak, total, out = state
        (k,), free = _await(k_stream, rows, block)
        (scores,) = _products((q, k))
        plgpu.barrier_arrive(free)
        scores = masked(scores, block * _FORWARD_KEYS)
        new_peak = jnp.maximum(peak, jnp.max(scores, axis=1) * scale)
        weights = jnp.exp2(scores * scale - _spread(new_peak, shape))
        shrink = jnp.exp2(peak - new_peak)
        total = total * shrink + jnp.sum(weights, axis=1)
        out = out * _spread(shrink, out.shape)
        (v,), free = _await(v_stream, rows, block)
        (out,) = _add_products(problem, (out, weights, v))
        plgpu.barrier_arrive(free)
        return new_peak, total, out

    state = jnp.full((_ROWS,), _LOWEST, jnp.float32), jnp.zeros((_ROWS,), jnp.float32)
    state = *state, jnp.zeros(q.shape, jnp.float32)
    state = tuple(_laid_out(x, problem) for x in state)
    peak, total, out = lax.fori_loop(first, last, step, state)
    total = jnp.where(total > 0, total, 1.0)
    return out / _spread(total, out.shape), peak + jnp.log(total) * _LOG2_E


def _dq_kernel(problem: _Problem, rows: _Rows, streams: Sequence[_Stream]) -> tuple[Array]:
    """Sums the gradient of a query block over its key blocks."""
    (q, d_out), (stream,) = rows.matrices, streams
    *ranges, lse, delta = rows.vectors
    shape = _ROWS, _BACKWARD_BLOCK

    def step(block: Array, dq: Array) -> Array:
        (k, v), free = _await(stream, rows, block)
        scores, d_weights = _products((q, k), (d_out, v))
        weights = jnp.exp2(scores * (problem.scale * _LOG2_E) - _spread(lse, shape))
        mask = _mask(ranges, block * _BACKWARD_BLOCK, shape, 0, problem)
        d_scores = jnp.where(mask, weights, 0.0) * (d_weights - _spread(delta, shape))
        (dq,) = _add_products(problem, (dq, d_scores, k))
        plgpu.barrier_arrive(free)
        return dq

    zeros = _laid_out(jnp.zeros(q.shape, jnp.float32), problem)
    return (lax.fori_loop(rows.bounds[0], rows.bounds[1], step, zeros) * problem.scale,)


def _dkv_kernel(problem: _Problem, rows: _Rows, streams: Sequence[_Stream]) -> tuple[Array, Array]:
    """Sums the gradients of a key block over the query blocks that read it; matrices are (K, Q)."""
    (k, v), (stream,) = rows.matrices, streams
    shape = _ROWS, _BACKWARD_BLOCK

    def step(block: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        dk, dv = state
        (q, d_out, *vectors), free = _await(stream, rows, block)
        scores, d_weights = _products((k, q), (v, d_out))
        *ranges, lse, delta = (_load(x, _OF_COLUMNS, problem) for x in vectors)
        weights = jnp.exp2(scores * (problem.scale * _LOG2_E) - _spread(lse, shape, 1))
        weights = jnp.where(_mask(ranges, rows.first, shape, 1, problem), weights, 0.0)
        d_scores = weights * (d_weights - _spread(delta, shape, 1))
        dk, dv = _add_products(problem, (dk, d_scores, q), (dv, weights, d_out))
        # The next copy into the slot shall not overtake the loads of its vectors.
        plgpu.commit_smem()
        plgpu.barrier_arrive(free)
        return dk, dv

    zeros = _laid_out(jnp.zeros(k.shape, jnp.float32), problem)
    dk, dv = lax.fori_loop(rows.bounds[0], rows.bounds[1], step, (zeros, zeros))
    return dk * problem.scale, dv
