"""Interval attention: backends against the dense oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.attention import attend, blocked
from lst_jax.key_ranges import KeyRange, token_key_range


@functools.partial(jax.jit, static_argnames="backend")
def value_and_gradients(q, k, v, start, end, cotangent, backend):
    """Output of a backend and its pullback of `cotangent`."""
    out, pull = jax.vjp(lambda *x: attend(*x, KeyRange(start, end), backend), q, k, v)
    return out, pull(cotangent)


def random_intervals(rng, rows, queries, keys):
    """Non-decreasing starts and ends, some of them empty."""
    start = np.sort(rng.integers(0, keys + 1, (rows, queries)), axis=1)
    end = np.sort(rng.integers(0, keys + 1, (rows, queries)), axis=1)
    return start.astype(np.int32), np.maximum(start, end).astype(np.int32)


# Shapes are drawn from a few, so that compilations are shared by the examples.
SHAPES = [(1, 5, 9, 1, 2), (2, 40, 24, 2, 8), (3, 33, 70, 1, 4)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_blocked_equals_dense_in_values_and_gradients(seed, shape, dtype):
    rows, queries, keys, heads, width = shape
    rng = np.random.default_rng(seed)

    def normal(length):
        return jnp.asarray(rng.normal(size=(rows, length, heads, width)), dtype)

    arrays = normal(queries), normal(keys), normal(keys)
    start, end = random_intervals(rng, rows, queries, keys)
    cotangent = normal(queries)
    with pytest.MonkeyPatch.context() as patch:
        # Small blocks, so that tiny arrays have several, uneven at the end.
        patch.setattr(blocked, "QUERY_BLOCK", 16)
        patch.setattr(blocked, "KEY_BLOCK", 8)
        ours = value_and_gradients(*arrays, start, end, cotangent, backend="blocked")
    oracle = value_and_gradients(*arrays, start, end, cotangent, backend="dense")
    tolerance = 2e-5 if dtype == "float32" else 6e-2
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(
            a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance, rtol=tolerance
        )


@pytest.mark.parametrize("backend", ["dense", "blocked"])
def test_an_empty_range_gives_zeros_and_zero_gradients(backend):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 6, 1, 4)), jnp.float32) for _ in range(3))
    start = jnp.array([[0, 1, 3, 3, 6, 6]], jnp.int32)
    end = jnp.array([[0, 3, 3, 5, 6, 6]], jnp.int32)
    out, (dq, dk, dv) = value_and_gradients(q, k, v, start, end, jnp.ones_like(q), backend=backend)
    empty = np.asarray(end == start)[0]
    assert np.all(np.asarray(out)[0, empty] == 0) and np.all(np.asarray(dq)[0, empty] == 0)
    assert np.all(np.asarray(out)[0, ~empty] != 0)
    unread = np.array([True, False, False, False, False, True])
    assert np.all(np.asarray(dk)[0, unread] == 0) and np.all(np.asarray(dv)[0, unread] == 0)


def test_keys_outside_a_rows_own_intervals_are_never_touched():
    """Poisoned keys outside a row's intervals leave it finite, whatever the other row reads."""
    length, block = 3 * blocked.KEY_BLOCK, blocked.KEY_BLOCK
    q = jnp.ones((2, length, 1, 2))
    k = jnp.ones((2, length, 1, 2)).at[0, block:].set(jnp.nan).at[1, : 2 * block].set(jnp.nan)
    start = jnp.broadcast_to(jnp.array([[0], [2 * block]], jnp.int32), (2, length))
    out, (dq, dk, dv) = value_and_gradients(q, k, k, start, start + block, q, backend="blocked")
    for array in (out, dq, dk, dv):
        assert np.isfinite(array).all()


@pytest.mark.parametrize("window", [32, None])
def test_memory_of_blocked_attention_grows_linearly(window):
    def temporary_bytes(length):
        q = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        ids = jnp.ones((1, length), jnp.int32)
        ranges = token_key_range(ids, window)
        compiled = value_and_gradients.lower(q, q, q, *ranges, q, backend="blocked").compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(4096) < 2.2 * temporary_bytes(2048)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_a_mesh_changes_nothing(shape):
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.normal(size=(8, 16, 2, 4)), jnp.float32) for _ in range(3))
    start, end = random_intervals(rng, 8, 16, 16)
    alone = value_and_gradients(q, k, v, start, end, q, backend="blocked")
    axis_types = (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=axis_types)
    with jax.set_mesh(mesh):
        meshed = value_and_gradients(q, k, v, start, end, q, backend="blocked")
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(meshed), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_bad_arguments_are_named():
    q = jnp.zeros((1, 4, 1, 2))
    ranges = KeyRange(jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4), jnp.int32))
    with pytest.raises(ValueError, match="backend='fast'"):
        attend(q, q, q, ranges, "fast")
    with pytest.raises(ValueError, match="expected"):
        attend(q, q[..., :1], q, ranges)
    with pytest.raises(ValueError, match="key_range"):
        attend(q, q, q, KeyRange(ranges.start[:, :2], ranges.end[:, :2]))
