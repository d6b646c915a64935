"""FLOPs of the trace, against products of known size and against the compiled program's."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from experiments.aot.attention_estimates import typical_batch
from experiments.aot.hlo_costs import hlo_costs
from experiments.aot.jaxpr_flops import jaxpr_flops
from experiments.common.step_config import baseline, preset
from lst_jax.checkpoints.train_state import param_shapes
from lst_jax.model.models import build_model
from lst_jax.sharding import MeshConfig, make_mesh


def trace(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).trace(*arrays)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 3))
def test_products_count_two_for_a_multiply_add_and_scans_their_turns(data, outer, inner):
    b, i, j, k = data.draw(st.tuples(*[st.integers(1, 9)] * 4))

    def once(x, y):
        return jnp.einsum("bij,bkj->bik", x, y)

    def function(x, y):
        def turn(carry, _):
            for _ in range(inner):
                carry = carry + once(x, y)
            return carry, None

        return jax.lax.scan(turn, jnp.zeros((b, i, k)), None, length=outer)[0]

    found = jaxpr_flops(trace(function, (b, i, j), (b, k, j)).jaxpr)
    assert found == (2 * b * i * j * k * outer * inner, frozenset())


def test_rematerialized_products_count_again():
    def loss(x, w):
        return jnp.sum(jax.checkpoint(lambda x: jnp.sin(x @ w) @ w)(x))

    product = 2 * 8 * 8 * 8
    assert jaxpr_flops(trace(loss, (8, 8), (8, 8)).jaxpr).flops == 2 * product
    # Two forward, the first of them again, two for each of x and w.
    assert jaxpr_flops(trace(jax.grad(loss, (0, 1)), (8, 8), (8, 8)).jaxpr).flops == 7 * product


def test_the_larger_branch_counts():
    def function(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)

    assert jaxpr_flops(trace(function, (4, 4)).jaxpr).flops == 2 * 2 * 4**3


def test_loops_of_unknown_length_are_named_if_they_have_products():
    def with_product(x):
        return jax.lax.while_loop(lambda y: y[0, 0] > 0, lambda y: y @ x, x)

    def without(x):
        return jax.lax.while_loop(lambda y: y[0, 0] > 0, lambda y: y - x, x)

    assert jaxpr_flops(trace(with_product, (4, 4)).jaxpr) == (2 * 4**3, frozenset(["while"]))
    assert jaxpr_flops(trace(without, (4, 4)).jaxpr) == (0, frozenset())


def test_work_of_every_device_counts():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    rows = P(("data", "fsdp"))
    function = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(rows, P()), out_specs=rows, check_vma=False
    )
    assert jaxpr_flops(trace(function, (16, 4), (4, 4)).jaxpr).flops == 2 * 16 * 4 * 4


def test_convolutions_count_every_tap():
    def function(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )

    assert jaxpr_flops(trace(function, (2, 10, 3), (4, 3, 5)).jaxpr).flops == (
        2 * 2 * 7 * 4 * 3 * 5
    )


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("name", ["lst", "baseline"])
def test_the_compiled_gradient_has_the_products_of_its_trace(name, remat):
    """On one device and with dense attention, whose loops have known lengths."""
    step = preset("tiny", text_size=240)
    step = baseline(step) if name == "baseline" else step
    config = dataclasses.replace(step.model, attention="dense", remat=remat, vocab_size=768)
    patches, tokens = 32, 48 if name == "lst" else 32
    batch = typical_batch(step.vocabulary, step.patching, patches, tokens, rows=1)
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        param_shapes(config, make_mesh(MeshConfig())),
    )
    model = build_model(config)

    def loss(p, b):
        return jnp.square(model.apply({"params": p}, b)["hidden"].astype(jnp.float32)).sum()

    traced = jax.jit(jax.value_and_grad(loss)).trace(params, batch)
    found = jaxpr_flops(traced.jaxpr)
    assert not found.unknown
    compiled = hlo_costs(traced.lower().compile().as_text())
    assert compiled.matrix_flops == pytest.approx(found.flops, rel=1e-3)
