"""Interval attention: backends against the dense oracle."""

import contextlib
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.model.attention import (
    BACKENDS,
    attend,
    best_backend,
    blocked,
    blocks,
    lockstep,
    pallas_tpu,
    triton,
)
from lst_jax.model.key_ranges import KeyRange


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


def random_windows(rng, rows, queries, keys):
    """What the model's batches have: documents, k queries a step, a window, padding."""
    k, window = int(rng.integers(1, 4)), int(rng.integers(1, keys + 1))
    start, end = np.full((2, rows, queries), keys, np.int32)
    for row in range(rows):
        steps = np.arange(rng.integers(0, min(queries // k, keys) + 1))
        first = np.maximum.accumulate(np.where(rng.random(len(steps)) < 0.2, steps, 0))
        used = slice(0, k * len(steps))
        start[row, used] = np.repeat(np.maximum(first, steps - window + 1), k)
        end[row, used] = np.repeat(steps + 1, k)
    return start, end


# B, Q, K, H, D and dtype. Drawn from a few, so that compilations are shared by the examples: a
# single uneven block, several of them, heads that fill no tile, queries of k latent vectors.
CASES = {
    "blocked": [
        (1, 5, 9, 1, 2, "float32"),
        (2, 40, 24, 2, 8, "float32"),
        (3, 33, 70, 1, 4, "bfloat16"),
    ],
    "lockstep": [(2, 40, 24, 2, 8, "float32"), (3, 33, 70, 1, 4, "bfloat16")],
    "pallas_tpu": [(2, 21, 25, 3, 64, "float32"), (1, 40, 16, 1, 8, "bfloat16")],
    "triton": [(2, 21, 25, 3, 12, "float32"), (1, 40, 16, 2, 64, "bfloat16")],
}


@contextlib.contextmanager
def small_blocks():
    """Tiny arrays then have several blocks, uneven at the end."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (blocked, lockstep, pallas_tpu, triton):
            patch.setattr(module, "QUERY_BLOCK", 16)
            patch.setattr(module, "KEY_BLOCK", 8)
        yield


@pytest.mark.parametrize("backend", CASES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_backend_equals_dense_in_values_and_gradients(backend, data):
    rows, queries, keys, heads, width, dtype = data.draw(st.sampled_from(CASES[backend]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    draw_ranges = data.draw(st.sampled_from([random_intervals, random_windows]))

    def normal(length):
        return jnp.asarray(rng.normal(size=(rows, length, heads, width)), dtype)

    arrays = normal(queries), normal(keys), normal(keys)
    ranges = draw_ranges(rng, rows, queries, keys)
    cotangent = normal(queries)
    with small_blocks():
        ours = value_and_gradients(*arrays, *ranges, cotangent, backend=backend)
    oracle = value_and_gradients(*arrays, *ranges, cotangent, backend="dense")
    tolerance = 2e-5 if dtype == "float32" else 6e-2
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(oracle), strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(
            a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance, rtol=tolerance
        )


@pytest.mark.parametrize("backend", ["dense", *CASES])
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


@pytest.mark.parametrize("backend", CASES)
def test_keys_outside_a_rows_own_intervals_are_never_touched(backend):
    """Poisoned keys outside a row's intervals leave it finite, whatever the other row reads."""
    block, length = 8, 40
    q = jnp.ones((2, length, 1, 2))
    k = jnp.ones((2, 24, 1, 2)).at[0, block:].set(jnp.nan).at[1, : 2 * block].set(jnp.nan)
    start = jnp.broadcast_to(jnp.array([[0], [2 * block]], jnp.int32), (2, length))
    # The last block of queries reads nothing.
    end = start.at[:, :32].add(block)
    with small_blocks():
        out, gradients = value_and_gradients(q, k, k, start, end, q, backend=backend)
    for array in (out, *gradients):
        assert np.isfinite(array).all()


def test_memory_of_blocked_attention_grows_linearly():
    def temporary_bytes(length):
        q = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
        ranges = [jax.ShapeDtypeStruct((1, length), jnp.int32)] * 2
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


def test_auto_is_the_best_backend_of_the_mesh_and_else_of_the_default_device():
    def lowered(platform):
        device = jax.sharding.AbstractDevice("some device", 1, platform=platform)
        mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            return trace("auto")

    def trace(backend):
        q = jax.ShapeDtypeStruct((1, 16, 1, 64), jnp.float32)
        ranges = KeyRange(*[jax.ShapeDtypeStruct((1, 16), jnp.int32)] * 2)
        function = functools.partial(attend, backend=backend)
        return str(jax.make_jaxpr(function)(q, q, q, ranges))

    assert "triton_forward_kernel" in lowered("gpu")
    assert "forward_kernel" in lowered("tpu") and "triton_forward" not in lowered("tpu")
    assert "pallas" not in lowered("cpu") and trace("blocked") == trace("auto")
    assert best_backend("an unknown platform") == "blocked"
    assert {best_backend(platform) for platform in ("cpu", "gpu", "tpu")} < set(BACKENDS)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_backend_is_imported_when_it_is_first_used():
    code = (
        "import sys, lst_jax.model.attention as a, jax.numpy as n\n"
        "q, r = n.ones((1, 4, 1, 2)), n.zeros((1, 4), int)\n"
        "a.attend(q, q, q, a.KeyRange(r, r + 1), 'auto')\n"
        "print(sorted(m for m in sys.modules if m.startswith('lst_jax.model.attention.')))"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    output = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert output.stdout.strip() == str(
        [
            f"lst_jax.model.attention.{name}"
            for name in ("blocked", "blocks", "lockstep", "platform")
        ]
    )


def test_bad_arguments_are_named():
    q = jnp.zeros((1, 4, 1, 2))
    ranges = KeyRange(jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4), jnp.int32))
    with pytest.raises(ValueError, match="backend is 'fast'"):
        attend(q, q, q, ranges, "fast")
    with pytest.raises(ValueError, match="expected"):
        attend(q, q[..., :1], q, ranges)
    with pytest.raises(ValueError, match="key_range"):
        attend(q, q, q, KeyRange(ranges.start[:, :2], ranges.end[:, :2]))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), query_block=st.integers(1, 5), key_block=st.integers(1, 5))
def test_spans_hold_every_pair_of_blocks_that_meet(seed, query_block, key_block):
    rng = np.random.default_rng(seed)
    queries, keys = 4 * query_block, 6 * key_block
    start, end = (x[0] for x in random_intervals(rng, 1, queries, keys))
    reads = (start[:, None] <= np.arange(keys)) & (np.arange(keys) < end[:, None])
    meets = reads.reshape(4, query_block, 6, key_block).any((1, 3))
    by_query = blocks.key_spans(KeyRange(start, end), query_block, key_block)
    for spans, table in ((by_query, meets), (blocks.query_spans(by_query, 6), meets.T)):
        for first, last, row in zip(*map(np.asarray, spans), table, strict=True):
            met = np.flatnonzero(row)
            if len(met):
                assert (first, last) == (met[0], met[-1] + 1)
            else:
                assert first == last or table is not meets
