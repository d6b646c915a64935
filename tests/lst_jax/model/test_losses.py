"""Chunked cross-entropy against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments.aot.hlo_costs import hlo_costs
from lst_jax.model.losses import token_nll
from lst_jax.sharding import DEFAULT_RULES, MeshConfig, make_mesh, mesh_context

VOCAB, PADDED = 50, 64


def plain(hidden, kernel, targets):
    """Cross-entropy through all logits at once."""
    scores = (hidden @ kernel)[..., :VOCAB]
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), targets[..., None], -1)[..., 0]


@pytest.mark.parametrize("chunk", [1, 7, 16, 30, 64])
def test_chunks_change_neither_loss_nor_gradients(chunk):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 30, 8)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(8, PADDED)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, VOCAB, (2, 30)), jnp.int32)
    weights = jnp.asarray(rng.random((2, 30)), jnp.float32)

    def ours(h, w):
        return (token_nll(h, w, targets, VOCAB, chunk) * weights).sum()

    def oracle(h, w):
        return (plain(h, w, targets) * weights).sum()

    a, b = (jax.value_and_grad(f, (0, 1))(hidden, kernel) for f in (ours, oracle))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4, rtol=1e-5)
    assert np.all(np.asarray(a[1][1])[:, VOCAB:] == 0), "padded columns must not be trained"


def test_logits_of_a_whole_batch_never_exist():
    """The compiled loss and gradient need far less memory than (tokens, vocabulary)."""
    rows, length, width, vocab = 4, 1024, 8, 4096
    hidden = jax.ShapeDtypeStruct((rows, length, width), jnp.float32)
    kernel = jax.ShapeDtypeStruct((width, vocab), jnp.float32)
    targets = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def loss(h, w, y):
        return token_nll(h, w, y, vocab, 64).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, kernel, targets).compile()
    whole = rows * length * vocab * 4
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 4


def example(rows, length, width):
    rng = np.random.default_rng(1)
    hidden = jnp.asarray(rng.normal(size=(rows, length, width)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(width, PADDED)), jnp.float32)
    return hidden, kernel, jnp.asarray(rng.integers(0, VOCAB, (rows, length)), jnp.int32)


# With 8 columns a device, some devices hold padding alone.
@pytest.mark.parametrize("sizes", [(2, 4, 1), (1, 2, 4), (1, 1, 8)])
def test_meshes_change_neither_loss_nor_gradients(sizes):
    hidden, kernel, targets = example(8, 9, 16)
    function = jax.value_and_grad(
        lambda h, w: (token_nll(h, w, targets, VOCAB, 4) ** 2).sum(), (0, 1)
    )
    alone = jax.jit(function)(hidden, kernel)
    with mesh_context(make_mesh(MeshConfig(*sizes))):
        spread = jax.jit(function)(hidden, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4), alone, spread)


def test_messages_do_not_grow_with_the_number_of_chunks():
    """The projection and its gradient cross the interconnect once, not once for every chunk."""
    mesh = make_mesh(MeshConfig(fsdp=8), jax.devices())
    rows, columns = (NamedSharding(mesh, PartitionSpec(x)) for x in (("data", "fsdp"), "fsdp"))
    hidden = jax.ShapeDtypeStruct((8, 64, 16), jnp.float32, sharding=rows)
    kernel = jax.ShapeDtypeStruct((16, PADDED), jnp.float32, sharding=columns)
    targets = jax.ShapeDtypeStruct((8, 64), jnp.int32, sharding=rows)

    def sent(chunk):
        def loss(h, w, y):
            return token_nll(h, w, y, VOCAB, chunk).sum()

        with mesh_context(mesh, DEFAULT_RULES):
            compiled = jax.jit(jax.grad(loss, (0, 1)), out_shardings=(rows, columns)).lower(
                hidden, kernel, targets
            )
            return hlo_costs(compiled.compile().as_text()).collective_bytes

    assert sent(64) == sent(8)
