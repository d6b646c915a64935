"""Cross-entropy over the vocabulary, a chunk of tokens at a time.

Each device works on its own tokens and its own columns of the vocabulary: the projection is
gathered once, and its gradient, summed over the chunks in float32, is exchanged once. Left to the
partitioner, both would cross the interconnect again for every chunk.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from lst_jax.shapes import Float, Float32, Int32, check_shapes
from lst_jax.sharding import ambient_mesh_axes

# Tokens of a device whose logits exist at once.
CHUNK = 512


@check_shapes
def token_nll(
    hidden: Float[Array, "B N d"],
    kernel: Float[Array, "d V"],
    targets: Int32[Array, "B N"],
    vocab_size: int,
    chunk_size: int = CHUNK,
) -> Float32[Array, "B N"]:
    """Returns the negative log-likelihood of each target; `chunk_size` tokens' logits at a time.

    Under a mesh (`sharding.mesh_context`) rows and vocabulary lie where the rules say, and the
    chunk is one of each device's tokens.

    Args:
      hidden: (B, N, d) final states in the compute dtype.
      kernel: (d, V) float32 output projection, V >= vocab_size padded columns.
      targets: (B, N) int32 in 0 … vocab_size - 1.
      vocab_size: columns that are real.
      chunk_size: tokens at a time, forward and backward.

    Returns:
      (B, N) float32, natural logarithm.
    """
    return _nll(hidden, kernel.astype(hidden.dtype), targets, vocab_size, chunk_size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _nll(hidden: Array, kernel: Array, targets: Array, vocab_size: int, chunk: int) -> Array:
    return _forward(hidden, kernel, targets, vocab_size, chunk)[0]


def _forward(
    hidden: Array, kernel: Array, targets: Array, vocab_size: int, chunk: int
) -> tuple[Array, tuple[Array, ...]]:
    """Returns the loss and what the backward pass needs, each token's normalizer included."""
    local = functools.partial(_local_forward, vocab_size=vocab_size, chunk=chunk)
    run = _over_mesh(local, ("rows", "columns", "rows"), ("rows", "rows"))
    nll, normalizer = run(hidden, kernel, targets)
    return nll, (hidden, kernel, targets, normalizer)


def _backward(
    vocab_size: int, chunk: int, saved: tuple[Array, ...], d_nll: Array
) -> tuple[Array | None, ...]:
    local = functools.partial(_local_backward, vocab_size=vocab_size, chunk=chunk)
    inputs = ("rows", "columns", "rows", "rows", "rows")
    run = _over_mesh(local, inputs, ("rows", "columns"))
    return *run(*saved, d_nll), None


_nll.defvjp(_forward, _backward)


def _over_mesh(
    function: Callable[..., tuple[Array, Array]], inputs: Sequence[str], outputs: Sequence[str]
) -> Callable[..., tuple[Array, Array]]:
    """Runs `function` on each device's part where a mesh of several devices is set.

    Args:
      function: of arrays; takes by name the mesh axes that rows and columns lie on.
      inputs: what is split of each of its arrays, "rows" (B, …) or "columns" (d, V).
      outputs: what is split of each of its results.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return functools.partial(function, batch_axes=(), vocab_axes=())
    # Of scores (B, N, V), which are split both ways: a mesh axis that has rows has no columns.
    batch_axes, _, vocab_axes = ambient_mesh_axes("batch", None, "vocab")
    specs = {"rows": PartitionSpec(batch_axes), "columns": PartitionSpec(None, vocab_axes)}
    return jax.shard_map(
        functools.partial(function, batch_axes=batch_axes, vocab_axes=vocab_axes),
        in_specs=tuple(specs[name] for name in inputs),
        out_specs=tuple(specs[name] for name in outputs),
        check_vma=False,
    )


def _local_forward(
    hidden: Array,
    kernel: Array,
    targets: Array,
    vocab_size: int,
    chunk: int,
    batch_axes: tuple[str, ...],
    vocab_axes: tuple[str, ...],
) -> tuple[Array, Array]:
    """Returns losses and log-normalizers (b, N) of a device's rows by its columns (d, v)."""
    del batch_axes  # rows need nothing of each other
    columns = _column_ids(kernel, vocab_axes)

    def chunk_nll(h: Array, target: Array) -> tuple[Array, Array]:
        scores = _scores(h, kernel, columns, vocab_size)
        peak = jax.lax.pmax(scores.max(-1), vocab_axes)
        total = jnp.sum(jnp.exp(scores - peak[:, None]), axis=-1)
        chosen = jnp.sum(jnp.where(columns == target[:, None], scores, 0.0), axis=-1)
        total, chosen = jax.lax.psum((total, chosen), vocab_axes)
        normalizer = peak + jnp.log(total)
        return normalizer - chosen, normalizer

    chunks = _split(hidden, chunk), _split(targets, chunk)
    nll, normalizer = jax.lax.map(lambda pair: chunk_nll(*pair), chunks)
    return _join(nll, targets.shape), _join(normalizer, targets.shape)


def _local_backward(
    hidden: Array,
    kernel: Array,
    targets: Array,
    normalizer: Array,
    d_nll: Array,
    vocab_size: int,
    chunk: int,
    batch_axes: tuple[str, ...],
    vocab_axes: tuple[str, ...],
) -> tuple[Array, Array]:
    """Returns the cotangents of hidden (b, N, d) and the device's columns (d, v) of the kernel."""
    columns = _column_ids(kernel, vocab_axes)

    # The gradient of a token's loss to its scores is softmax − one-hot. Scores are computed again
    # from the saved normalizer, a chunk at a time, so that they never exist for all tokens. The
    # kernel's gradient is a sum over all chunks: in float32, rounded once at the end.
    def add_chunk(d_kernel: Array, pieces: tuple[Array, ...]) -> tuple[Array, Array]:
        h, target, log_total, d_loss = pieces
        weights = jnp.exp(_scores(h, kernel, columns, vocab_size) - log_total[:, None])
        weights = weights - (columns == target[:, None])
        d_scores = (weights * d_loss[:, None]).astype(h.dtype)
        d_hidden = jnp.einsum("cv,dv->cd", d_scores, kernel, preferred_element_type=jnp.float32)
        update = jnp.einsum("cd,cv->dv", h, d_scores, preferred_element_type=jnp.float32)
        return d_kernel + update, d_hidden.astype(h.dtype)

    arrays = hidden, targets, normalizer, d_nll
    start = jnp.zeros(kernel.shape, jnp.float32)
    d_kernel, d_hidden = jax.lax.scan(add_chunk, start, tuple(_split(x, chunk) for x in arrays))
    # A hidden state meets all columns, which lie on the vocabulary's axes, and a column all rows:
    # each sum crosses the devices once, after the last chunk.
    d_hidden = jax.lax.psum(_join(d_hidden, hidden.shape), vocab_axes)
    return d_hidden, jax.lax.psum(d_kernel.astype(kernel.dtype), batch_axes)


def _column_ids(kernel: Array, vocab_axes: tuple[str, ...]) -> Array:
    """Returns (v,) vocabulary ids of a device's columns."""
    width = kernel.shape[1]
    first = jax.lax.axis_index(vocab_axes) * width if vocab_axes else 0
    return first + jnp.arange(width, dtype=jnp.int32)


def _scores(h: Array, kernel: Array, columns: Array, vocab_size: int) -> Array:
    """Returns float32 logits (c, v), -inf where a column is padding."""
    scores = jnp.matmul(h, kernel, preferred_element_type=jnp.float32)
    return jnp.where(columns < vocab_size, scores, -jnp.inf)


def _split(x: Array, chunk: int) -> Array:
    """Maps (b, N, …) to (chunks, c, …), c = min(chunk, b * N), zeros after the last token."""
    x = x.reshape(-1, *x.shape[2:])
    chunk = min(chunk, len(x))
    x = jnp.pad(x, ((0, -len(x) % chunk), *((0, 0),) * (x.ndim - 1)))
    return x.reshape(-1, chunk, *x.shape[1:])


def _join(x: Array, shape: tuple[int, ...]) -> Array:
    """Returns the inverse of `_split`."""
    x = x.reshape(-1, *x.shape[2:])
    return x[: shape[0] * shape[1]].reshape(shape)
