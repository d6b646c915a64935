"""The GPU kernels, lowered for GPUs that are not there, and what replaces them where needed."""

import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lst_jax.attention import attend, gpu
from lst_jax.key_ranges import KeyRange


def lower_step(rows, queries, keys, heads, width, dtype):
    """`attend` forward and backward as a module for CUDA."""
    q, k = (jax.ShapeDtypeStruct((rows, n, heads, width), dtype) for n in (queries, keys))
    ranges = KeyRange(*[jax.ShapeDtypeStruct((rows, queries), jnp.int32)] * 2)

    def step(q, k, v, key_range, cotangent):
        out, pull = jax.vjp(lambda *arrays: attend(*arrays, key_range, "gpu"), q, k, v)
        return out, pull(cotangent)

    return jax.jit(step).trace(q, k, k, ranges, q).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(2, 5632, 8192, 16, 64), (2, 4096, 4096, 16, 128)])
def test_kernels_lower_for_cuda(shape, dtype):
    text = lower_step(*shape, dtype)
    assert text.count("xla.gpu.triton") == 3
    for kernel in ("gpu_forward_kernel", "gpu_dq_kernel", "gpu_dkv_kernel"):
        assert kernel in text


@pytest.fixture
def fallbacks(caplog):
    """The log, in which every reason is new."""
    gpu._log_fallback.cache_clear()
    with caplog.at_level(logging.WARNING, logger=gpu.__name__):
        yield caplog
    gpu._log_fallback.cache_clear()


def attend_twice(width):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(1, 8, 1, width)), jnp.float32)
    ends = jnp.arange(1, 9, dtype=jnp.int32)[None]
    ranges = KeyRange(jnp.zeros_like(ends), ends)
    results = [attend(q, q, q, ranges, backend) for backend in ("gpu", "gpu", "blocked")]
    for result in results[:2]:
        np.testing.assert_array_equal(result, results[2])


def test_heads_too_wide_fall_back_with_one_line(fallbacks):
    attend_twice(200)
    (line,) = fallbacks.messages
    assert "heads of 200 features in float32" in line


@pytest.mark.parametrize(
    ("capability", "reason"),
    [("7.5", "the GPU some device of compute capability 7.5"), ("gfx90a", "not one of CUDA's")],
)
def test_gpus_too_old_or_foreign_fall_back_with_one_line(
    fallbacks, monkeypatch, capability, reason
):
    device = types.SimpleNamespace(compute_capability=capability, device_kind="some device")
    monkeypatch.setattr(gpu.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(gpu.jax, "local_devices", lambda: [device])
    attend_twice(8)
    (line,) = fallbacks.messages
    assert reason in line
