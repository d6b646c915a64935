"""Analytic FLOPs of a batch: matrix products only, exact for its documents.

A multiply-add counts as two. Products with weights count real tokens and patches; attention counts
the lengths of the key ranges (intervals, not padded squares), 4 d for every query-key pair: scores
and weighted sum. The backward pass does twice the forward's products; recomputation by
rematerialization is not counted (model FLOPs, not hardware FLOPs).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from lst_jax.batch import Batch
from lst_jax.config import LSTConfig, ModelConfig, TokenTransformerConfig, hidden_width
from lst_jax.model.key_ranges import KeyRange, lst_key_ranges, token_key_range

BACKWARD_FACTOR = 2.0


def forward_flops(config: ModelConfig, batch: Batch) -> dict[str, Array]:
    """Returns the FLOPs of the forward pass over a batch, by module.

    Args:
      config: of the model.
      batch: of B rows.

    Returns:
      float32 scalars: `encoder`, `global`, `decoder` (LST) or `global` (baseline), and `output`.
    """
    if isinstance(config, TokenTransformerConfig):
        return _token_transformer_flops(config, batch)
    return _lst_flops(config, batch)


def training_flops(config: ModelConfig, batch: Batch) -> Array:
    """Returns the FLOPs of one forward and backward pass over a batch, a float32 scalar."""
    forward = forward_flops(config, batch)
    return (1.0 + BACKWARD_FACTOR) * sum(forward.values(), start=jnp.zeros((), jnp.float32))


def _pairs(key_range: KeyRange) -> Array:
    """Returns query-key pairs that attention computes."""
    return jnp.sum((key_range.end - key_range.start).astype(jnp.float32))


def _block(width: int, multiple_of: int, rows: Array, pairs: Array) -> Array:
    """Counts one transformer block over `rows` positions."""
    weights = 4 * width * width + 3 * width * hidden_width(width, multiple_of)
    return 2.0 * weights * rows + 4.0 * width * pairs


def _cross(width: int, queries: Array, keys: Array, pairs: Array) -> Array:
    """Counts one cross-attention: query and out projections on queries, key and value on keys."""
    return 4.0 * width * width * (queries + keys) + 4.0 * width * pairs


def _lst_flops(config: LSTConfig, batch: Batch) -> dict[str, Array]:
    ranges = lst_key_ranges(batch, config)
    d, big, k = config.dim_local, config.dim_global, config.latent_vectors_per_patch
    tokens = jnp.sum((batch.document_ids > 0).astype(jnp.float32))
    patches = jnp.sum((ranges.patch_end > ranges.patch_start).astype(jnp.float32))
    local = _block(d, config.multiple_of, tokens, _pairs(ranges.token_self))

    reads = config.num_layers_encoder if config.encoder_cross_layers == "all" else 1
    encoder = config.num_layers_encoder * local
    encoder += reads * _cross(d, k * patches, tokens, _pairs(ranges.encoder_cross))
    encoder += 2.0 * d * k * d * patches

    wide = _block(big, config.multiple_of, patches, _pairs(ranges.global_self))
    global_ = config.num_layers_global * wide
    if k * d != big:
        global_ += 2.0 * k * d * big * patches

    cross = _cross(d, tokens, k * patches, _pairs(ranges.decoder_cross))
    decoder = config.num_layers_decoder * (local + cross)
    if d != big:
        decoder += 2.0 * big * k * d * patches
    output = 2.0 * d * config.vocab_size * tokens
    return {"encoder": encoder, "global": global_, "decoder": decoder, "output": output}


def _token_transformer_flops(config: TokenTransformerConfig, batch: Batch) -> dict[str, Array]:
    width = config.dim_global
    tokens = jnp.sum((batch.document_ids > 0).astype(jnp.float32))
    pairs = _pairs(token_key_range(batch.document_ids, None))
    block = _block(width, config.multiple_of, tokens, pairs)
    output = 2.0 * width * config.vocab_size * tokens
    return {"global": config.num_layers_global * block, "output": output}
