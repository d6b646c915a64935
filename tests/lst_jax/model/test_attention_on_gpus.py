"""The GPU kernels, lowered for GPUs that are not there, and which of them a card is given."""

import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas

from lst_jax.model.attention import attend, dense, gpu, mosaic_gpu, numerics, triton
from lst_jax.model.attention.platform import Target
from lst_jax.model.key_ranges import KeyRange

HOPPER = Target("gpu", "9.0", True)
AMPERE = Target("gpu", "8.0", True)


def lower_step(rows, queries, keys, heads, width, dtype, backend):
    """`attend` forward and backward, as a module for a GPU that is not there."""
    q, k = (jax.ShapeDtypeStruct((rows, n, heads, width), dtype) for n in (queries, keys))
    ranges = KeyRange(*[jax.ShapeDtypeStruct((rows, queries), jnp.int32)] * 2)

    @jax.checkpoint
    def step(q, k, v, key_range, cotangent):
        out, pull = jax.vjp(lambda *arrays: attend(*arrays, key_range, backend), q, k, v)
        return out, pull(cotangent)

    with gpu_mesh():
        trace = jax.jit(step).trace(q, k, k, ranges, q)
        return trace.lower(lowering_platforms=("cuda",)).as_text()


def gpu_mesh():
    device = jax.sharding.AbstractDevice("NVIDIA H100", 1, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(2, 5632, 8192, 16, 64), (2, 4096, 4096, 16, 128)])
def test_triton_kernels_lower_for_cuda(shape, dtype):
    text = lower_step(*shape, dtype, "triton")
    assert text.count("xla.gpu.triton") == 3
    for kernel in ("triton_forward_kernel", "triton_dq_kernel", "triton_dkv_kernel"):
        assert kernel in text


@pytest.mark.parametrize("shape", [(2, 200, 300, 3, 40), (2, 4096, 4096, 16, 128)])
def test_mosaic_kernels_lower_for_cuda(shape):
    text = lower_step(*shape, "bfloat16", "mosaic_gpu")
    for kernel in ("forward", "dq", "dkv"):
        assert f"mosaic_gpu_{kernel}_kernel" in text


def test_auto_takes_the_mosaic_kernels_for_a_hopper_gpu_that_is_not_there():
    assert "mosaic_gpu_forward_kernel" in lower_step(2, 64, 64, 2, 64, "bfloat16", "auto")
    assert "triton_forward_kernel" in lower_step(2, 64, 64, 2, 64, "float32", "auto")


@pytest.fixture
def log(caplog):
    """The log, before anything has been chosen."""
    gpu.best_kernel.cache_clear()
    with caplog.at_level(logging.WARNING, logger=gpu.__name__):
        yield caplog
    gpu.best_kernel.cache_clear()


@pytest.fixture
def verdicts(monkeypatch):
    """What the check of each kernel's numerics says; it is not run."""
    verdicts = {"mosaic_gpu": None, "triton": None}

    def check(attention, dtype, width):
        return verdicts[attention.__name__.removesuffix("_attention")]

    monkeypatch.setattr(gpu, "check_numerics", check)
    return verdicts


def test_a_card_is_given_the_first_kernel_that_passes_and_the_log_says_what_did_not(log, verdicts):
    assert gpu.best_kernel("bfloat16", 64, HOPPER) == "mosaic_gpu"
    assert not log.messages
    verdicts["mosaic_gpu"] = "dq of global attention is off by 0.5"
    assert gpu.best_kernel("bfloat16", 128, HOPPER) == "triton"
    (line,) = log.messages
    assert "triton" in line and "dq of global attention is off by 0.5" in line
    log.clear()
    verdicts["triton"] = "out of token self attention is off by nan"
    assert gpu.best_kernel("bfloat16", 32, HOPPER) is None
    (line,) = log.messages
    assert "takes the blocked backend" in line and "nan" in line and "\n" not in line
    log.clear()
    assert gpu.best_kernel("bfloat16", 32, HOPPER) is None
    assert not log.messages  # once is enough


def test_a_kernel_is_checked_where_there_is_a_card_alone(log, verdicts):
    verdicts["mosaic_gpu"] = verdicts["triton"] = "off by 1"
    assert gpu.best_kernel("bfloat16", 64, HOPPER) is None
    assert gpu.best_kernel("bfloat16", 64, HOPPER._replace(present=False)) == "mosaic_gpu"
    assert gpu.best_kernel("bfloat16", 64, Target("gpu", None, False)) == "triton"


def test_without_the_triton_module_auto_still_works(log, verdicts, monkeypatch):
    monkeypatch.delitem(sys.modules, "lst_jax.model.attention.triton", raising=False)
    monkeypatch.delattr(pallas, "triton", raising=False)
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    assert gpu.best_kernel("bfloat16", 64, HOPPER) == "mosaic_gpu"
    assert gpu.best_kernel("bfloat16", 64, AMPERE) is None
    (line,) = log.messages
    assert ("takes the blocked backend" in line and "ImportError" in line) or "NotFound" in line
    monkeypatch.setattr(gpu, "target", lambda: AMPERE)
    assert_equals_dense(bfloat16_arrays(64))


def test_a_kernel_that_dies_is_passed_over_with_one_line(log, monkeypatch):
    def die(*_):
        raise RuntimeError("the compiler\nspoke\nat length" + 1000 * "!")

    monkeypatch.setattr(gpu, "check_numerics", die)
    assert gpu.best_kernel("float32", 64, AMPERE) is None
    (line,) = log.messages
    assert "the compiler spoke at length" in line and "\n" not in line and len(line) < 600


@pytest.mark.parametrize(
    ("dtype", "width", "capability", "reason"),
    [
        ("float32", 200, "9.0", "heads of 200 features in float32"),
        ("bfloat16", 64, "7.5", "compute capability 7.5"),
        ("bfloat16", 64, "gfx90a", "not one of CUDA's"),
    ],
)
def test_what_no_kernel_supports_falls_back_with_one_line(
    log, verdicts, dtype, width, capability, reason
):
    assert gpu.best_kernel(dtype, width, Target("gpu", capability, True)) is None
    (line,) = log.messages
    assert reason in line


@pytest.mark.slow
def test_the_check_runs_while_a_caller_is_traced(log, monkeypatch):
    checked = []
    monkeypatch.setattr(gpu, "target", lambda: Target("gpu", "8.0", True))
    monkeypatch.setattr(gpu, "KERNELS", ("triton",))
    check = numerics.check_numerics
    monkeypatch.setattr(
        gpu, "check_numerics", lambda *arguments: checked.append(check(*arguments)) or checked[-1]
    )
    q, ranges = bfloat16_arrays(16)
    ranges = jax.tree.map(lambda x: jnp.concatenate([x] * 8), ranges)
    axis_types = (jax.sharding.AxisType.Auto,)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=axis_types)):
        jax.jit(lambda x: attend(x, x, x, ranges, "gpu")).lower(jnp.concatenate([q] * 8))
    assert checked == [None]


@pytest.mark.slow
def test_the_check_notices_a_backend_that_is_wrong():
    def shifted(q, k, v, key_range):
        return dense.dense_attention(q, k, v, KeyRange(key_range.start, key_range.end - 1))

    def leaky(q, k, v, key_range):
        empty = (key_range.end <= key_range.start)[..., None, None]
        return dense.dense_attention(q, k, v, key_range) + 1e-3 * empty.astype(q.dtype)

    def blunt(q, k, v, key_range):
        return dense.dense_attention(q, k, v, key_range) * 1.02

    assert numerics.check_numerics(dense.dense_attention, "bfloat16", 16) is None
    for wrong in (shifted, leaky, blunt):
        assert "attention is off by" in numerics.check_numerics(wrong, "bfloat16", 16)


def test_interval_cases_have_what_batches_have():
    cases = numerics.interval_cases()
    assert set(cases) == {"token self", "encoder cross", "global", "decoder cross"}
    for start, end in (case.key_range for case in cases.values()):
        assert (np.diff(start) >= 0).all() and (np.diff(end) >= 0).all()
        lengths = end - start
        assert 0.05 < (lengths == 0).mean() < 0.5
        assert (np.diff(start) > 1).any()  # another document, or a window


def bfloat16_arrays(width):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(1, 40, 2, width)), jnp.bfloat16)
    ends = jnp.arange(1, 41, dtype=jnp.int32)[None]
    return q, KeyRange(jnp.maximum(ends - 9, 0), ends)


def assert_equals_dense(arrays):
    q, ranges = arrays
    ours, oracle = (attend(q, q, q, ranges, backend) for backend in ("gpu", "dense"))
    np.testing.assert_allclose(
        ours.astype(jnp.float32), oracle.astype(jnp.float32), atol=2e-2, rtol=2e-2
    )


def test_kernels_say_what_they_do_not_support():
    q, ranges = bfloat16_arrays(200)
    for module, attention in (
        (triton, triton.triton_attention),
        (mosaic_gpu, mosaic_gpu.mosaic_gpu_attention),
    ):
        assert module.unsupported("float32", 200)
        with pytest.raises(ValueError, match="200"):
            attention(*[q.astype(jnp.float32)] * 3, ranges)
