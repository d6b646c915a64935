"""Patch decoder: token states read the visible patches and predict the next token."""

from __future__ import annotations

import flax.linen as nn
from jax import Array

from lst_jax.config import LSTConfig
from lst_jax.key_ranges import LSTKeyRanges
from lst_jax.layers import Linear, RMSNorm, TransformerLayers


class PatchDecoder(nn.Module):
    """Windowed causal transformer over tokens with a cross-attention before every block."""

    config: LSTConfig

    @nn.compact
    def __call__(self, h: Array, patches: Array, ranges: LSTKeyRanges) -> Array:
        """Decodes a batch.

        Args:
          h: (B, N, d) the encoder's token states.
          patches: (B, P, D) outputs of the global transformer.
          ranges: key ranges of the batch.

        Returns:
          (B, N, d) normalised states, ready for the output projection.
        """
        config = self.config
        rows, _, width = h.shape
        if config.dim_global != config.dim_local:
            project = Linear(
                config.latent_vectors_per_patch * config.dim_local,
                ("embed", "latent"),
                config.dim_global**-0.5,
                name="patch_projection",
            )
            patches = project(patches)
        memory = patches.reshape(rows, -1, width)
        layers = TransformerLayers(
            config.num_layers_decoder,
            config.num_heads_local,
            config,
            cross=True,
            name="transformer",
        )
        h = layers(h, ranges.token_self, memory, ranges.decoder_cross)
        return RMSNorm(config.norm_eps, name="norm")(h)
