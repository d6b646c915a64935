"""Patch encoder: tokens to token states and latent patch vectors (paper section 3)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from lst_jax.config import LSTConfig
from lst_jax.key_ranges import LSTKeyRanges
from lst_jax.layers import Block, CrossAttention, Embedding, Linear, constrain, remat_layer
from lst_jax.pooling import pool_patches


class PatchEncoder(nn.Module):
    """Windowed self-attention over tokens; patch queries then read the token states.

    The queries of a patch start as `P_enc pool(h over the patch)`, k vectors of width d, and are
    updated by a cross-attention after every layer, or only the last (`encoder_cross_layers`).
    """

    config: LSTConfig

    @nn.compact
    def __call__(
        self, tokens: Array, patch_ids: Array, ranges: LSTKeyRanges
    ) -> tuple[Array, Array]:
        """Encodes a batch.

        Args:
          tokens: (B, N) int32.
          patch_ids: (B, N) int32, P where padded.
          ranges: key ranges of the batch.

        Returns:
          Token states (B, N, d) and latent vectors (B, P * k, d), both in the compute dtype.
        """
        config = self.config
        # Layers are few (one in the paper), and patch queries begin after the first: no scan.
        block = remat_layer(Block, config.remat)
        cross = remat_layer(CrossAttention, config.remat)
        dtype = jnp.dtype(config.dtype)
        embed = Embedding(config.vocab_size, config.dim_local, dtype, name="embedding")
        h, z = embed(tokens), None
        last = config.num_layers_encoder - 1
        for depth in range(config.num_layers_encoder):
            layer = block(config.num_heads_local, config, depth, name=f"layer_{depth}")
            h = layer(h, ranges.token_self)
            if config.encoder_cross_layers == "last" and depth != last:
                continue
            if z is None:
                z = self._initial_queries(h, patch_ids, ranges)
            read = cross(config, depth, name=f"cross_attention_{depth}")
            z = read(z, h, ranges.encoder_cross)
        return h, z

    def _initial_queries(self, h: Array, patch_ids: Array, ranges: LSTKeyRanges) -> Array:
        """(B, N, d) token states to (B, P * k, d) queries."""
        config = self.config
        width = config.dim_local
        pooled = pool_patches(h, patch_ids, ranges.patch_start, ranges.patch_end, config.pooling)
        project = Linear(
            config.latent_vectors_per_patch * width,
            ("embed", "latent"),
            width**-0.5,
            name="patch_projection",
        )
        queries = project(pooled).reshape(h.shape[0], -1, width)
        return constrain(queries, "batch", "length", "embed_activation")
