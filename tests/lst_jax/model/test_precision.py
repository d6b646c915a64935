"""Sums are made in float32 and rounded once, whatever the compute dtype."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lst_jax.config import LSTConfig, baseline_of
from lst_jax.model.layers import RMSNorm, rotary
from lst_jax.model.losses import token_nll
from lst_jax.model.models import abstract_params, build_model, logits, output_kernel
from lst_jax.model.pooling import pool_patches
from lst_jax.sharding import abstract_batch
from tests.lst_jax import jaxprs
from tests.lst_jax.jaxprs import trace
from tests.lst_jax.model.test_attention import CASES, small_blocks, value_and_gradients

BFLOAT16 = jnp.dtype("bfloat16")
BACKENDS = ["dense", *CASES]
SUMS = {
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_window_sum"),
    *("cumsum", "cumlogsumexp", "scatter-add", "psum", "reduce"),
}
CONFIG = LSTConfig(
    vocab_size=60,
    dim_local=16,
    dim_global=32,
    num_layers_encoder=2,
    num_layers_global=2,
    num_layers_decoder=2,
    num_heads_local=2,
    num_heads_global=2,
    multiple_of=16,
    dtype="bfloat16",
    attention="dense",
)


def dtypes(variables):
    return [x.aval.dtype for x in variables if hasattr(x.aval, "dtype")]


def is_narrow(dtype):
    return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4


def narrow_sums(operations):
    """Sums whose result is narrow: at once, or since all that reads it makes it so."""
    found = []
    for operation in operations:
        if operation.name not in SUMS:
            continue
        read = [operation.equation.outvars]
        if operation.users and all(
            x.primitive.name == "convert_element_type" for x in operation.users
        ):
            read = [x.outvars for x in operation.users]
        if any(is_narrow(dtype) for variables in read for dtype in dtypes(variables)):
            found.append(operation)
    return found


def count_alike(ones, others):
    pairs = zip(ones, others, strict=True)
    return sum(one.aval.shape == other.aval.shape for one, other in pairs)


def narrow_loops(operations):
    """Loops that carry a narrow array from turn to turn and give it back changed."""
    found = []
    for operation in operations:
        equation, parameters = operation.equation, operation.equation.params
        if operation.name == "scan":
            # What is carried and what is constant have the shapes outside that they have inside.
            body = parameters["jaxpr"].jaxpr
            carried = count_alike(equation.outvars, body.outvars)
            first = count_alike(equation.invars, body.invars) - carried
        elif operation.name == "while":
            body, first = parameters["body_jaxpr"].jaxpr, parameters["body_nconsts"]
            carried = len(body.outvars)
        else:
            continue
        pairs = zip(body.invars[first : first + carried], body.outvars[:carried], strict=True)
        found += [operation for x, y in pairs if x is not y and is_narrow(x.aval.dtype)]
    return found


def narrow_arithmetic(operations):
    """Arithmetic between products and sums that rounds what it makes."""
    arithmetic = ("mul", "add", "add_any", "sub", "div", "exp", "log")
    return [
        x for x in operations if x.name in arithmetic and is_narrow(dtypes(x.equation.outvars)[0])
    ]


def products(operations):
    return [x for x in operations if x.name == "dot_general"]


def test_the_check_sees_a_narrow_sum():
    x = jnp.ones((4, 4), BFLOAT16)
    assert narrow_sums(trace(lambda x: jnp.sum(x, axis=-1), x))
    assert narrow_sums(trace(lambda x: jnp.sum(x, axis=-1, dtype=BFLOAT16), x))
    assert not narrow_sums(trace(lambda x: jnp.exp(jnp.sum(x, axis=-1, dtype=jnp.float32)), x))

    def looped(x):
        return jax.lax.fori_loop(0, 3, lambda _, total: total + x, jnp.zeros_like(x))

    assert narrow_loops(trace(looped, x))
    assert not narrow_loops(trace(looped, x.astype(jnp.float32)))


@pytest.mark.parametrize(
    "config",
    [CONFIG, dataclasses.replace(CONFIG, pooling="mean"), baseline_of(CONFIG)],
    ids=["lst", "mean pooling", "baseline"],
)
def test_no_sum_of_a_training_step_ends_in_bfloat16(config):
    """But one: the gradient of the embedding adds the tokens' rows up where they are looked up."""
    rows, length, slots = 2, 48, 48
    model = build_model(config)
    batch = abstract_batch(slots, length, rows)

    def loss(params, batch):
        hidden = model.apply({"params": params}, batch)["hidden"]
        assert hidden.dtype == BFLOAT16
        nll = token_nll(hidden, output_kernel(params), batch.targets, config.vocab_size, 16)
        assert nll.dtype == jnp.float32
        return nll.sum()

    gradient = jax.make_jaxpr(jax.grad(loss))(nn.unbox(abstract_params(config)), batch)
    operations = list(jaxprs.operations(gradient))
    assert len(products(operations)) > 20
    (embedding,) = narrow_sums(operations)
    assert embedding.name == "scatter-add" and embedding.scope.endswith("embedding/")
    # Gradients of weights leave a layer in float32 and stay so.
    assert {x.dtype for x in gradient.out_avals} == {jnp.dtype("float32")}


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_adds_up_in_float32_forward_and_backward(backend):
    q = jax.ShapeDtypeStruct((1, 300, 2, 64), BFLOAT16)
    ranges = [jax.ShapeDtypeStruct((1, 300), jnp.int32)] * 2
    function = functools.partial(value_and_gradients, backend=backend)
    operations = trace(function, q, q, q, *ranges, q)
    assert not narrow_sums(operations) and not narrow_loops(operations)
    assert not narrow_arithmetic(operations)
    assert len(products(operations)) >= 5
    for product in products(operations):
        (dtype,) = dtypes(product.equation.outvars)
        # The dense backend's backward pass is JAX's: gradients of bfloat16 operands are rounded.
        assert dtype == jnp.float32 or backend == "dense"


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_values_give_scores_no_gradient(backend):
    """Each score's gradient is w (⟨dout, v⟩ − Σ out dout), and here both terms are the same.

    With zero queries all weights are equal and the output is exactly the value; so what is left
    over comes from the sum over features, the row sum of the backward pass.
    """
    rng = np.random.default_rng(0)
    shape = (1, 40, 2, 64)
    value = jnp.asarray(rng.normal(size=(1, 1, 2, 64)), BFLOAT16)
    q, v = jnp.zeros(shape, BFLOAT16), jnp.broadcast_to(value, shape)
    k, cotangent = (jnp.asarray(rng.normal(size=shape), BFLOAT16) for _ in range(2))
    start = np.maximum(np.arange(40) - 9, 0)[None].astype(np.int32)
    end = np.arange(1, 41)[None].astype(np.int32)
    with small_blocks():
        out, (dq, _, _) = value_and_gradients(q, k, v, start, end, cotangent, backend=backend)
    np.testing.assert_array_equal(out, v)
    # A sum of 64 terms in float32 is off by a few 1e-6; one in bfloat16, or of products that were
    # rounded to it, by a few 1e-2.
    assert np.abs(np.asarray(dq, np.float32)).max() < 1e-5


@pytest.mark.parametrize("width", [8, 4096])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_rms_norm_is_the_float32_norm_rounded_once(width, scale):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(1.0, 1.0, (7, width)) * scale, BFLOAT16)
    cotangent = jnp.asarray(rng.normal(size=x.shape), BFLOAT16)
    params = {"scale": jnp.asarray(rng.normal(size=width), jnp.float32)}
    norm = RMSNorm(1e-5)

    @jax.jit
    def values_and_gradients(x, cotangent):
        out, pull = jax.vjp(lambda p, x: norm.apply({"params": p}, x), params, x)
        return out, *pull(cotangent)

    out, d_params, dx = values_and_gradients(x, cotangent)
    wide = values_and_gradients(x.astype(jnp.float32), cotangent.astype(jnp.float32))
    assert out.dtype == dx.dtype == BFLOAT16 and d_params["scale"].dtype == jnp.float32
    np.testing.assert_array_equal(out, wide[0].astype(BFLOAT16))
    np.testing.assert_array_equal(dx, wide[2].astype(BFLOAT16))
    np.testing.assert_array_equal(d_params["scale"], wide[1]["scale"])
    x = np.asarray(x, np.float64)
    oracle = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * np.float64(params["scale"])
    np.testing.assert_allclose(wide[0], oracle, rtol=2e-6)


def test_rotation_logits_and_mean_pooling_are_those_of_float32_rounded_once():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(1, 5, 2, 8)), BFLOAT16)
    positions = jnp.array([0, 1, 1000, 4097, 30001], jnp.int32)
    rotated = jax.jit(rotary, static_argnums=1)
    wide = rotated(x.astype(jnp.float32), 1e4, positions)
    np.testing.assert_array_equal(rotated(x, 1e4, positions), wide.astype(BFLOAT16))
    angles = np.arange(0, 8, 2) / -8
    angles = np.float64(positions)[:, None] * 1e4**angles
    even = np.float64(x)[0, :, :, 0::2] * np.cos(angles)[:, None]
    odd = np.float64(x)[0, :, :, 1::2] * np.sin(angles)[:, None]
    # The angle itself has float32's 24 bits, at position 30001 an error of 0.002.
    np.testing.assert_allclose(wide[0, :, :, 0::2], even - odd, atol=2e-2)

    hidden = jnp.asarray(rng.normal(size=(3, 256)), BFLOAT16)
    kernel = jnp.asarray(rng.normal(size=(256, 128)), jnp.float32)
    scores = logits(hidden, kernel, 100)
    assert scores.dtype == jnp.float32 and scores.shape == (3, 100)
    oracle = np.float64(hidden) @ np.float64(kernel.astype(BFLOAT16))[:, :100]
    np.testing.assert_allclose(scores, oracle, atol=1e-4)

    # One patch of 300 ones and a half: a sum in bfloat16 stops at 256.
    states = jnp.ones((1, 301, 1), BFLOAT16).at[0, -1].set(0.5)
    ids, ends = jnp.zeros((1, 301), jnp.int32), jnp.array([[301]], jnp.int32)
    (pooled,) = np.float32(pool_patches(states, ids, jnp.zeros_like(ends), ends, "mean"))[0]
    assert pooled == np.float32(jnp.asarray(300.5 / 301, BFLOAT16))


def test_the_gradient_of_the_projection_does_not_depend_on_the_chunks():
    """A sum over 512 chunks in bfloat16 would be off by tens of percent."""
    rng = np.random.default_rng(3)
    hidden = jnp.asarray(rng.normal(size=(2, 512, 16)) + 1, BFLOAT16)
    kernel = jnp.asarray(rng.normal(size=(16, 128)) * 0.1, jnp.float32)
    targets = jnp.asarray(rng.integers(0, 100, (2, 512)), jnp.int32)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(hidden, chunk):
        return jax.grad(lambda w: token_nll(hidden, w, targets, 100, chunk).sum())(kernel)

    whole, chunked = np.asarray(gradient(hidden, 1024)), np.asarray(gradient(hidden, 2))
    wide = np.asarray(gradient(hidden.astype(jnp.float32), 1024))
    # float32's order of summation moves a few values over the edge between two of bfloat16.
    assert np.mean(whole != chunked) < 0.01
    np.testing.assert_allclose(chunked, whole, rtol=2**-7)
    np.testing.assert_allclose(whole, wide, rtol=2e-2, atol=0.02 * np.abs(wide).max())

    def loss(h, w):
        return token_nll(h, w, targets, 100, 2).sum()

    operations = trace(jax.grad(loss, (0, 1)), hidden, kernel)
    assert not narrow_sums(operations) and not narrow_loops(operations)
    assert {x for p in products(operations) for x in dtypes(p.equation.outvars)} == {
        jnp.dtype("float32")
    }
