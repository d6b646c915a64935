"""Patch decoder: token states read the visible patches and predict the next token."""

from __future__ import annotations

import flax.linen as nn
from jax import Array

from lst_jax.config import LSTConfig
from lst_jax.model.key_ranges import AnyKeyRange, LSTKeyRanges
from lst_jax.model.layers import Linear, RMSNorm, TransformerLayers
from lst_jax.shapes import Float, check_shapes


class PatchDecoder(nn.Module):
    """Windowed causal transformer over tokens with a cross-attention before every block."""

    config: LSTConfig

    def setup(self) -> None:
        config = self.config
        if config.dim_global != config.dim_local:
            self.patch_projection = Linear(
                config.latent_vectors_per_patch * config.dim_local,
                ("embed", "latent"),
                config.dim_global**-0.5,
            )
        self.transformer = TransformerLayers(
            config.num_layers_decoder, config.num_heads_local, config, cross=True
        )
        self.norm = RMSNorm(config.norm_eps)

    @check_shapes
    def __call__(
        self, h: Float[Array, "B N d"], patches: Float[Array, "B P D"], ranges: LSTKeyRanges
    ) -> Float[Array, "B N d"]:
        """Decodes a batch.

        Args:
          h: (B, N, d) the encoder's token states.
          patches: (B, P, D) outputs of the global transformer.
          ranges: key ranges of the batch.

        Returns:
          (B, N, d) normalized states, ready for the output projection.
        """
        memory = self.latent_vectors(patches)
        return self.decode_tokens(h, memory, ranges.token_self, ranges.decoder_cross)

    @check_shapes
    def latent_vectors(self, patches: Float[Array, "B P D"]) -> Float[Array, "B Pk d"]:
        """Maps patches (B, P, D) to the vectors that tokens read, (B, P * k, d)."""
        config = self.config
        if config.dim_global != config.dim_local:
            patches = self.patch_projection(patches)
        return patches.reshape(patches.shape[0], -1, config.dim_local)

    @check_shapes
    def decode_tokens(
        self,
        h: Float[Array, "B Q d"],
        memory: Float[Array, "B Pk d"] | None,
        token_self: AnyKeyRange,
        decoder_cross: AnyKeyRange,
    ) -> Float[Array, "B Q d"]:
        """Maps token states (B, Q, d) to normalized ones; without a memory, all is in the cache."""
        return self.norm(self.transformer(h, token_self, memory, decoder_cross))
