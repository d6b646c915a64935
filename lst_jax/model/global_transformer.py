"""Global transformer: block-causal attention over patches, most of the model's FLOPs."""

from __future__ import annotations

import flax.linen as nn
from jax import Array

from lst_jax.config import LSTConfig
from lst_jax.model.key_ranges import AnyKeyRange
from lst_jax.model.layers import Linear, TransformerLayers
from lst_jax.shapes import Float, check_shapes


class GlobalTransformer(nn.Module):
    """Decoder-only transformer over the patches of a row; documents do not see each other."""

    config: LSTConfig

    @nn.compact
    @check_shapes
    def __call__(
        self, latents: Float[Array, "B Pk d"], key_range: AnyKeyRange
    ) -> Float[Array, "B Q D"]:
        """Runs the patches.

        Args:
          latents: (B, P * k, d), the k latent vectors of every patch.
          key_range: (B, Q) ranges over patches, Q = P.

        Returns:
          (B, Q, D); no final norm.
        """
        config = self.config
        rows, _, width = latents.shape
        wide = config.latent_vectors_per_patch * width
        g = latents.reshape(rows, -1, wide)
        if wide != config.dim_global:
            project = Linear(
                config.dim_global, ("latent", "embed"), wide**-0.5, name="patch_projection"
            )
            g = project(g)
        layers = TransformerLayers(
            config.num_layers_global, config.num_heads_global, config, name="transformer"
        )
        return layers(g, key_range)
