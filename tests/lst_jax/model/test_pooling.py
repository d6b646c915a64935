"""Pooling over patches against a plain loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.model.pooling import pool_patches

N, P, D = 24, 12, 3


@functools.partial(jax.jit, static_argnames="pooling")
def pool(h, patch_ids, start, end, cotangent, pooling):
    """Pooled values and the gradient."""
    out, pull = jax.vjp(lambda x: pool_patches(x, patch_ids, start, end, pooling), h)
    return out, pull(cotangent)[0]


@pytest.mark.parametrize("pooling", ["max", "mean"])
@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), max_size=P), seed=st.integers(0, 2**31))
def test_pooling_equals_a_loop_over_patches(pooling, lengths, seed):
    lengths = [x for x, total in zip(lengths, np.cumsum(lengths), strict=True) if total <= N]
    rng = np.random.default_rng(seed)
    # Few values, so that maxima tie.
    h = rng.integers(-2, 3, (1, N, D)).astype(np.float32)
    ids = np.full((1, N), P, np.int32)
    ids[0, : sum(lengths)] = np.repeat(np.arange(len(lengths)), lengths)
    end = np.full(P, sum(lengths), np.int32)
    end[: len(lengths)] = np.cumsum(lengths)
    start = np.concatenate([[0], end[:-1]]).astype(np.int32)
    cotangent = rng.normal(size=(1, P, D)).astype(np.float32)
    out, gradient = pool(h, ids, start[None], end[None], cotangent, pooling=pooling)
    expected, expected_gradient = np.zeros((P, D)), np.zeros((N, D))
    for p, (a, b) in enumerate(zip(start, end, strict=True)):
        if a == b:
            continue
        tokens = h[0, a:b]
        expected[p] = tokens.max(0) if pooling == "max" else tokens.mean(0)
        share = (tokens == tokens.max(0)) if pooling == "max" else np.ones_like(tokens)
        expected_gradient[a:b] = share / share.sum(0) * cotangent[0, p]
    np.testing.assert_allclose(out[0], expected, atol=1e-6)
    np.testing.assert_allclose(gradient[0], expected_gradient, atol=1e-6)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_pooling_keeps_the_compute_dtype(pooling):
    h = jnp.ones((1, 4, 2), jnp.bfloat16)
    ids = jnp.array([[0, 0, 1, 2]])
    start, end = jnp.array([[0, 2]]), jnp.array([[2, 3]])
    out, gradient = pool(h, ids, start, end, jnp.ones((1, 2, 2), jnp.bfloat16), pooling=pooling)
    assert out.dtype == gradient.dtype == jnp.bfloat16
    assert np.asarray(gradient, np.float32)[0, 3].max() == 0
