"""Cross-entropy over the vocabulary, a chunk of tokens at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

# Tokens of a row whose logits exist at once.
CHUNK = 256


def token_nll(
    hidden: Array, kernel: Array, targets: Array, vocab_size: int, chunk_size: int = CHUNK
) -> Array:
    """Negative log-likelihood of each target; logits exist for `chunk_size` tokens a row at most.

    Args:
      hidden: (B, N, d) final states in the compute dtype.
      kernel: (d, V) float32 output projection, V >= vocab_size padded columns.
      targets: (B, N) int32 in 0 … vocab_size - 1.
      vocab_size: columns that are real.
      chunk_size: tokens of a row at a time, forward and backward.

    Returns:
      (B, N) float32, natural logarithm.
    """
    rows, length, width = hidden.shape
    chunk = min(chunk_size, length)
    padding = -length % chunk
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, padding)))
    kernel = kernel.astype(hidden.dtype)
    real = jnp.arange(kernel.shape[1]) < vocab_size

    # Logits are computed again in the backward pass instead of being kept.
    @jax.checkpoint
    def chunk_nll(h: Array, target: Array) -> Array:
        scores = jnp.matmul(h, kernel, preferred_element_type=jnp.float32)
        scores = jnp.where(real, scores, -jnp.inf)
        chosen = jnp.take_along_axis(scores, target[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(scores, axis=-1) - chosen

    chunks = (
        jnp.swapaxes(hidden.reshape(rows, -1, chunk, width), 0, 1),
        jnp.swapaxes(targets.reshape(rows, -1, chunk), 0, 1),
    )
    nll = jax.lax.map(lambda pair: chunk_nll(*pair), chunks)
    return jnp.swapaxes(nll, 0, 1).reshape(rows, -1)[:, :length]
