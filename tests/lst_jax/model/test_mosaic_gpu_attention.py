"""Interval attention for Hopper GPUs, interpreted, against the dense oracle (JAX 0.11 or later)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from lst_jax.model.attention import mosaic_gpu
from lst_jax.model.attention.dense import dense_attention
from lst_jax.model.attention.mosaic_gpu import mosaic_gpu_attention
from lst_jax.model.key_ranges import KeyRange, token_key_range

# B, Q, K, H, D: several blocks of queries and keys, uneven at the end.
SHAPE = (2, 150, 300, 1, 64)


@functools.partial(jax.jit, static_argnames="attention")
def value_and_gradients(q, k, v, start, end, cotangent, attention=mosaic_gpu_attention):
    """Output of a backend and its pullback of `cotangent`."""
    out, pull = jax.vjp(lambda *x: attention(*x, KeyRange(start, end)), q, k, v)
    return out, *pull(cotangent)


def arrays(rng, shape, dtype="bfloat16"):
    """Queries, keys, values and a cotangent."""
    rows, queries, keys, heads, width = shape
    lengths = queries, keys, keys, queries
    return [jnp.asarray(rng.normal(size=(rows, x, heads, width)), dtype) for x in lengths]


def random_intervals(rng, rows, queries, keys):
    """Some of them empty."""
    start, end = np.sort(rng.integers(0, keys + 1, (2, rows, queries)), axis=-1)
    return start, np.maximum(start, end)


def long_intervals(rng, rows, queries, keys):
    """Whole blocks of keys are read by whole blocks of queries."""
    start = np.sort(rng.integers(0, 9, (rows, queries)), axis=-1)
    return start, np.sort(rng.integers(keys - 9, keys + 1, (rows, queries)), axis=-1)


def windows(rng, rows, queries, keys):
    """A sliding window of 40 keys, one key further for each query."""
    end = np.broadcast_to(np.minimum(np.arange(queries) + 1, keys), (rows, queries))
    return np.maximum(end - 40, 0), end


def documents(rng, rows, queries, keys):
    """Causal documents of random lengths and padding in the end."""
    ids = np.cumsum(rng.random((rows, queries)) < 0.03, axis=-1) + 1
    ids[:, -int(rng.integers(1, queries)) :] = 0
    return token_key_range(jnp.asarray(ids), None)


def latent_vectors(rng, rows, queries, keys):
    """Three queries in a row read the same few keys."""
    step = np.broadcast_to(np.arange(queries) // 3, (rows, queries))
    start = np.minimum(5 * step, keys)
    return start, np.minimum(start + 7, keys)


def nothing(rng, rows, queries, keys):
    return np.full((2, rows, queries), keys)


def compare(shape, dtype, draw_ranges, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v, cotangent = arrays(rng, shape, dtype)
    ranges = [jnp.asarray(x, jnp.int32) for x in draw_ranges(rng, *shape[:3])]
    ours = value_and_gradients(q, k, v, *ranges, cotangent)
    oracle = value_and_gradients(q, k, v, *ranges, cotangent, attention=dense_attention)
    for a, b in zip(ours, oracle, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype == dtype
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize(
    "draw_ranges", [random_intervals, long_intervals, windows, documents, latent_vectors, nothing]
)
def test_values_and_gradients_are_those_of_dense(draw_ranges):
    compare(SHAPE, "bfloat16", draw_ranges)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 200, 70, 1, 128), "bfloat16"), ((1, 5, 260, 2, 40), "float16")]
)
def test_widths_heads_and_dtypes_are_those_of_dense(shape, dtype):
    compare(shape, dtype, random_intervals)


def test_an_empty_range_gives_zeros_and_zero_gradients():
    rows, queries, keys = SHAPE[:3]
    q, k, v, cotangent = arrays(np.random.default_rng(0), SHAPE)
    start = jnp.broadcast_to(jnp.arange(queries, dtype=jnp.int32), (rows, queries))
    # The first row's last blocks read nothing at all; every other query of the second does.
    end = start + jnp.stack([start[0] < 20, start[0] % 2 == 0])
    out, dq, dk, dv = value_and_gradients(q, k, v, start, end, cotangent)
    empty = np.asarray(end == start)
    assert np.all(np.asarray(out)[empty] == 0) and np.all(np.asarray(dq)[empty] == 0)
    assert np.all(np.any(np.asarray(out)[~empty] != 0, axis=-1))
    unread = np.pad(empty, ((0, 0), (0, keys - queries)), constant_values=True)
    assert np.all(np.asarray(dk)[unread] == 0) and np.all(np.asarray(dv)[unread] == 0)
    assert np.all(np.any(np.asarray(dv)[~unread] != 0, axis=-1))


def test_blocks_outside_a_rows_own_intervals_are_never_touched():
    block = mosaic_gpu._BLOCK
    q, k, _, cotangent = arrays(np.random.default_rng(0), SHAPE)
    k = k.at[0, block:].set(jnp.nan).at[1, :block].set(jnp.nan).at[1, 2 * block :].set(jnp.nan)
    start = jnp.broadcast_to(jnp.array([[0], [block]], jnp.int32), SHAPE[:2])
    for array in value_and_gradients(q, k, k, start, start + block, cotangent):
        assert np.isfinite(array.astype(jnp.float32)).all()


def test_shared_memory_is_free_of_races(monkeypatch, capfd):
    """Blocks outnumber their slots, so that each slot is used several times."""
    shape = (1, 300, 520, 1, 64)
    monkeypatch.setattr(mosaic_gpu, "_STREAM_BYTES", 0)
    monkeypatch.setattr(mosaic_gpu, "_INTERPRETER", plgpu.InterpretGPUParams(detect_races=True))
    compare(shape, "bfloat16", long_intervals)
    assert "RACE" not in "".join(capfd.readouterr())
