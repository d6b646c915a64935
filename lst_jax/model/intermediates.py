"""What the global transformer holds between its layers, for inspection.

The model's own call is run, and Flax captures what its layers return: nothing of this is in the
program of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from lst_jax.batch import Batch
from lst_jax.config import LSTConfig
from lst_jax.model.key_ranges import KeyRange, lst_key_ranges
from lst_jax.model.layers import SOWN, Block
from lst_jax.model.models import LatentSpeechTextTransformer, logits, output_kernel
from lst_jax.settings import quote
from lst_jax.shapes import Float, Float32, check_shapes

_PROJECTION = "patch_projection"


@check_shapes
def global_states(model: nn.Module, params: Any, batch: Batch) -> Float[Array, "n B P D"]:
    """Runs a model and keeps the states of its global transformer.

    Args:
      model: an LST.
      params: its parameters.
      batch: of B rows with P patches.

    Returns:
      (layers + 1, B, P, D): what the transformer is given, then what each layer returns; the last
      is what the patch decoder reads.

    Raises:
      ValueError: the model has no patches.
    """
    config = _lst(model).config
    outputs, captured = model.apply(
        {"params": params}, batch, capture_intermediates=_is_state, mutable=[SOWN]
    )
    inside = cast(Mapping[str, Any], captured[SOWN])["global"]
    layers: Array = inside["transformer"]["layers"]["block"]["__call__"][0]
    if _PROJECTION in inside:
        first = inside[_PROJECTION]["__call__"][0]
    else:
        latents = cast(Mapping[str, Array], outputs)["latents"]
        first = latents.reshape(latents.shape[0], -1, config.dim_global)
    return jnp.concatenate([first[None], layers])


def _is_state(module: nn.Module, method: str) -> bool:
    return method == "__call__" and (isinstance(module, Block) or module.name == _PROJECTION)


@check_shapes
def text_logits_of_states(
    model: nn.Module, params: Any, states: Float[Array, "m D"], opening: Batch
) -> Float32[Array, "m V"]:
    """Reads single states as text: the logit lens of a model whose states no vocabulary has.

    A state of the global transformer is in no space that the output projection knows: tokens read
    it by the patch decoder's cross-attention. So the whole decoder is the lens. It runs on the
    tokens that open a text, `bos <t>`, with the state as the only patch there is, in place of a
    last layer's, and its final norm and the output projection say which piece comes next. What the
    tokens of the utterance know is not there to be read.

    Args:
      model: an LST.
      params: its parameters.
      states: (M, D), of any layers.
      opening: M equal rows with the tokens that open a text, each a patch.

    Returns:
      (M, vocabulary) float32.

    Raises:
      ValueError: the model has no patches.
    """
    config = _lst(model).config
    ranges = lst_key_ranges(opening, config)

    def decode(module: LatentSpeechTextTransformer) -> Array:
        h, _ = module.encoder(opening.tokens, opening.patch_ids, ranges)
        memory = module.decoder.latent_vectors(states[:, None])
        end = jnp.full(opening.tokens.shape, config.latent_vectors_per_patch, jnp.int32)
        cross = KeyRange(jnp.zeros_like(end), end)
        return module.decoder.decode_tokens(h, memory, ranges.token_self, cross)

    hidden = cast(Array, model.apply({"params": params}, method=decode))
    return logits(hidden[:, -1], output_kernel(params), config.vocab_size)


def _lst(model: nn.Module) -> LatentSpeechTextTransformer:
    if not isinstance(model.config, LSTConfig):
        raise ValueError(f"model is {quote(model.config)}, expected one with patches")
    return cast(LatentSpeechTextTransformer, model)
