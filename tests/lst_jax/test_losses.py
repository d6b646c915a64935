"""Chunked cross-entropy against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lst_jax.losses import token_nll

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
