"""Patch encoder: tokens to token states and latent patch vectors (paper section 3)."""

from __future__ import annotations

from collections.abc import Iterator

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from lst_jax.config import LSTConfig
from lst_jax.model.key_ranges import AnyKeyRange, LSTKeyRanges
from lst_jax.model.layers import (
    Block,
    CrossAttention,
    Embedding,
    Linear,
    constrain,
    remat_layer,
    sow,
)
from lst_jax.model.ngrams import hash_ngram
from lst_jax.model.pooling import pool_patches
from lst_jax.shapes import Float, Int32, check_shapes


class PatchEncoder(nn.Module):
    """Windowed self-attention over tokens; patch queries then read the token states.

    The queries of a patch start as `P_enc pool(h over the patch)`, k vectors of width d, and are
    updated by a cross-attention after every layer, or only the last (`encoder_cross_layers`).
    """

    config: LSTConfig

    def setup(self) -> None:
        config = self.config
        width, depths = config.dim_local, range(config.num_layers_encoder)
        self.embedding = Embedding(config.vocab_size, width, jnp.dtype(config.dtype))
        self.ngram_embeddings = [
            Embedding(config.hash_table_size, width, jnp.dtype(config.dtype), name=f"ngrams_{size}")
            for size in config.hash_ngram_sizes
        ]
        # Layers are few (one in the paper), and patch queries begin after the first: no scan.
        block = remat_layer(Block, config.remat)
        cross = remat_layer(CrossAttention, config.remat)
        self.layers = [
            block(config.num_heads_local, config, depth, name=f"layer_{depth}") for depth in depths
        ]
        first = 0 if config.encoder_cross_layers == "all" else depths[-1]
        self.first_read = first
        self.cross_attentions = [
            cross(config, depth, name=f"cross_attention_{depth}") for depth in depths[first:]
        ]
        self.patch_projection = Linear(
            config.latent_vectors_per_patch * width, ("embed", "latent"), width**-0.5
        )

    @check_shapes
    def __call__(
        self, tokens: Int32[Array, "B N"], patch_ids: Int32[Array, "B N"], ranges: LSTKeyRanges
    ) -> tuple[Float[Array, "B N d"], Float[Array, "B Pk d"]]:
        """Encodes a batch.

        Args:
          tokens: (B, N) int32.
          patch_ids: (B, N) int32, P where padded.
          ranges: key ranges of the batch.

        Returns:
          Token states (B, N, d) and latent vectors (B, P * k, d), both in the compute dtype.
        """
        h = self._pooled_states(tokens, ranges.token_self, ranges.recent)
        pooled = pool_patches(
            h, patch_ids, ranges.patch_start, ranges.patch_end, self.config.pooling
        )
        z = self.cross_attentions[0](self._initial_queries(pooled), h, ranges.encoder_cross)
        for layer, cross in self._later_layers():
            h = layer(h, ranges.token_self)
            z = cross(z, h, ranges.encoder_cross)
        return h, z

    @check_shapes
    def encode_token(
        self,
        tokens: Int32[Array, "B 1"],
        token_self: AnyKeyRange,
        recent: Int32[Array, "B 1 _"] | None,
    ) -> Float[Array, "B 1 d"]:
        """Maps one token (B, 1) to its state (B, 1, d), earlier ones in the cache or `recent`.

        Sows what the patches will read of it.
        """
        h = self._pooled_states(tokens, token_self, recent)
        self.cross_attentions[0].keys_values(h)
        for layer, cross in self._later_layers():
            h = layer(h, token_self)
            cross.keys_values(h)
        return h

    @check_shapes
    def encode_patch(
        self, pooled: Float[Array, "B 1 d"], encoder_cross: AnyKeyRange
    ) -> Float[Array, "B k d"]:
        """Maps one pooled patch (B, 1, d) to latent vectors (B, k, d), its tokens in the cache."""
        z = self._initial_queries(pooled)
        for cross in self.cross_attentions:
            z = cross(z, None, encoder_cross)
        return z

    def _later_layers(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Returns the layers after the pooled one, each with its cross-attention."""
        return zip(self.layers[self.first_read + 1 :], self.cross_attentions[1:], strict=True)

    def _pooled_states(self, tokens: Array, token_self: AnyKeyRange, recent: Array | None) -> Array:
        """Maps tokens (B, N) to the states that queries start from, those that are read first."""
        h = self.embedding(tokens)
        if recent is not None:
            h = self._add_ngrams(h, recent)
        for layer in self.layers[: self.first_read + 1]:
            h = layer(h, token_self)
        sow(self, "pooled_states", h)
        return h

    def _add_ngrams(self, h: Array, recent: Array) -> Array:
        """Returns the mean of embeddings (B, N, d) and of those of the n-grams that end there."""
        sizes, rows = self.config.hash_ngram_sizes, self.config.hash_table_size
        for size, table in zip(sizes, self.ngram_embeddings, strict=True):
            found = hash_ngram(recent, size, rows)
            h = h + jnp.where((found >= 0)[..., None], table(jnp.maximum(found, 0)), 0)
        return h / (len(sizes) + 1)

    def _initial_queries(self, pooled: Array) -> Array:
        """Maps (B, P, d) pooled token states to (B, P * k, d) queries."""
        queries = self.patch_projection(pooled).reshape(pooled.shape[0], -1, pooled.shape[-1])
        return constrain(queries, "batch", "length", "embed_activation")
