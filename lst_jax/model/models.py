"""The Latent Speech-Text Transformer and its unpatched baseline.

Both map a `Batch` to hidden states for the output projection; logits are
made from those a chunk at a time (`losses.token_nll`), never for a whole batch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from lst_jax.batch import Batch, padding_rows
from lst_jax.config import LSTConfig, ModelConfig, TokenTransformerConfig, padded_size
from lst_jax.model.global_transformer import GlobalTransformer
from lst_jax.model.key_ranges import AnyKeyRange, LSTKeyRanges, lst_key_ranges, token_key_range
from lst_jax.model.layers import Embedding, RMSNorm, TransformerLayers, padded_vocabulary_init
from lst_jax.model.patch_decoder import PatchDecoder
from lst_jax.model.patch_encoder import PatchEncoder
from lst_jax.settings import quote
from lst_jax.shapes import Float, Float32, Int32, check_shapes
from lst_jax.sharding import no_mesh


class LatentSpeechTextTransformer(nn.Module):
    """LST: patch encoder, global transformer over patches, patch decoder (paper Figure 2)."""

    config: LSTConfig

    def setup(self) -> None:
        self.encoder = PatchEncoder(self.config)
        self.global_transformer = GlobalTransformer(self.config, name="global")
        self.decoder = PatchDecoder(self.config)
        _declare_output(self, self.config.dim_local)

    def __call__(self, batch: Batch) -> dict[str, Array]:
        """Runs the model.

        Args:
          batch: of B rows; targets and weights play no part.

        Returns:
          `hidden` (B, N, d) for the output projection, `token_states` (B, N, d) and `latents`
          (B, P * k, d) of the encoder, `patches` (B, P, D) of the global transformer, all in the
          compute dtype.
        """
        ranges = lst_key_ranges(batch, self.config)
        return self.run_tokens(batch.tokens, batch.patch_ids, ranges)

    @check_shapes
    def run_tokens(
        self, tokens: Int32[Array, "B N"], patch_ids: Int32[Array, "B N"], ranges: LSTKeyRanges
    ) -> dict[str, Float[Array, "B _ _"]]:
        """Maps tokens and their patches, each (B, N) int32, to what `__call__` returns."""
        states, latents = self.encoder(tokens, patch_ids, ranges)
        patches = self.global_transformer(latents, ranges.global_self)
        hidden = self.decoder(states, patches, ranges)
        return {
            "hidden": hidden,
            "token_states": states,
            "latents": latents,
            "patches": patches,
        }


class TokenTransformer(nn.Module):
    """The baseline: tokens of both modalities straight into one decoder-only transformer."""

    config: TokenTransformerConfig

    def setup(self) -> None:
        config = self.config
        width, dtype = config.dim_global, jnp.dtype(config.dtype)
        self.embedding = Embedding(config.vocab_size, width, dtype)
        self.transformer = TransformerLayers(
            config.num_layers_global, config.num_heads_global, config
        )
        self.norm = RMSNorm(config.norm_eps)
        _declare_output(self, width)

    def __call__(self, batch: Batch) -> dict[str, Array]:
        """Runs the model.

        Args:
          batch: of B rows with N patch slots, since a token is a patch.

        Returns:
          `hidden` (B, N, D) for the output projection, in the compute dtype.

        Raises:
          ValueError: rows have fewer patch slots than tokens, so were made for a patched model.
        """
        tokens = batch.tokens
        if batch.num_patches != tokens.shape[1]:
            raise ValueError(
                f"num_patches is {batch.num_patches}, expected {tokens.shape[1]}, one for every "
                'token, for the unpatched baseline (strategy "none")'
            )
        key_range = token_key_range(batch.document_ids, None)
        return {"hidden": self.run_tokens(tokens, key_range)}

    @check_shapes
    def run_tokens(
        self, tokens: Int32[Array, "B Q"], key_range: AnyKeyRange
    ) -> Float[Array, "B Q D"]:
        """Maps tokens (B, Q) to normalized states (B, Q, D)."""
        return self.norm(self.transformer(self.embedding(tokens), key_range))


def _declare_output(module: nn.Module, width: int) -> None:
    """Declares the output projection (width, padded vocabulary), applied by the loss."""
    vocab_size = module.config.vocab_size
    init = nn.with_logical_partitioning(
        padded_vocabulary_init(width**-0.5, vocab_size, axis=1), ("embed", "vocab")
    )
    shape = (width, padded_size(vocab_size))
    module.param("output_kernel", init, shape, jnp.float32)


def build_model(config: ModelConfig) -> LatentSpeechTextTransformer | TokenTransformer:
    """Returns the module of a configuration.

    Raises:
      ValueError: `config` is of neither kind.
    """
    if isinstance(config, LSTConfig):
        return LatentSpeechTextTransformer(config)
    if isinstance(config, TokenTransformerConfig):
        return TokenTransformer(config)
    raise ValueError(f"config is {quote(config)}, expected LSTConfig or TokenTransformerConfig")


def output_kernel(params: Mapping[str, Any]) -> Float[Array, "d V"]:
    """Returns the output projection (width, padded vocabulary) of either model's parameters."""
    return params["output_kernel"]


@check_shapes
def hidden_states(model: nn.Module, params: Any, batch: Batch) -> Float[Array, "*b N d"]:
    """Runs a model: states (B, N, width) for the output projection."""
    return cast(Mapping[str, Array], model.apply({"params": params}, batch))["hidden"]


@check_shapes
def logits(
    hidden: Float[Array, "*b d"], kernel: Float[Array, "d V"], vocab_size: int
) -> Float32[Array, "*b n"]:
    """Returns next-token logits.

    Args:
      hidden: (…, width) of a model's outputs.
      kernel: (width, padded vocabulary).
      vocab_size: entries that are real.

    Returns:
      (…, vocab_size) float32.
    """
    product = jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return product[..., :vocab_size]


@functools.lru_cache(maxsize=32)  # the trace of a model takes seconds, and many ask for it
def abstract_params(config: ModelConfig) -> Any:
    """Returns shapes and dtypes of the parameters, boxed with logical axes; computes nothing."""
    model = build_model(config)
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    with no_mesh():
        return jax.eval_shape(model.init, key, padding_rows(4, 4, rows=(1,)))["params"]


def count_parameters(config: ModelConfig) -> int:
    """Counts the parameters of a configuration, without the padding of the vocabulary."""
    params = nn.unbox(abstract_params(config))
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    width = output_kernel(params).shape[0]
    return total - 2 * width * (padded_size(config.vocab_size) - config.vocab_size)
