"""From logits to the next token: which ids may be made, temperature, top-k, top-p, seeds."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lst_jax.settings import Bounds, NaturalFloat, PositiveInt, configuration, require
from lst_jax.shapes import Bool, Float, Float32, Int32, UInt32, check_shapes
from lst_jax.vocabulary import Vocabulary

Modality = Literal["speech", "text"]
Probability = Annotated[float, Bounds(above=0, most=1)]


@configuration
class SamplingConfig:
    """How the next token is drawn.

    Attributes:
      temperature: divides the logits; 0 takes the most probable token, always.
      top_k: draw from the k most probable tokens; None for all.
      top_p: draw from the most probable tokens that together have at least this probability (at
        this temperature, among the top k), and no more of them than needed.
    """

    temperature: NaturalFloat = 0.0
    top_k: PositiveInt | None = None
    top_p: Probability = 1.0


class SamplingArrays(NamedTuple):
    """A `SamplingConfig` and what it applies to, as arrays, so that none of it is compiled in.

    Attributes:
      temperature, top_p: () float32.
      top_k: () int32.
      allowed: (V,) bool, ids that may be made.
      seeds: (B,) uint32, one for each row.
    """

    temperature: Float32[Array | np.ndarray, ""]
    top_k: Int32[Array | np.ndarray, ""]
    top_p: Float32[Array | np.ndarray, ""]
    allowed: Bool[Array | np.ndarray, " V"]
    seeds: UInt32[Array | np.ndarray, " B"]


@check_shapes
def sampling_arrays(
    config: SamplingConfig, allowed: Bool[np.ndarray, " V"], seeds: UInt32[np.ndarray, " B"]
) -> SamplingArrays:
    """Returns the arrays of a configuration; `allowed` (V,) bool, `seeds` (B,) uint32."""
    top_k = len(allowed) if config.top_k is None else min(config.top_k, len(allowed))
    return SamplingArrays(
        np.asarray(config.temperature, np.float32),
        np.asarray(top_k, np.int32),
        np.asarray(config.top_p, np.float32),
        allowed,
        seeds,
    )


@check_shapes
def allowed_ids(vocabulary: Vocabulary, modality: Modality | None) -> Bool[np.ndarray, " V"]:
    """Returns which ids a model may make: bool (vocabulary.size,).

    Args:
      vocabulary: the id space.
      modality: "speech": units and eos; "text": text pieces and eos; None: both, and mode tokens.
        bos and the reserved ids are never made.

    Raises:
      ValueError: unknown modality.
    """
    choices = get_args(Modality)
    require(modality is None or modality in choices, "modality", modality, f"None or {choices}")
    ids = np.arange(vocabulary.size)
    allowed = ids == vocabulary.eos_id
    if modality != "text":
        allowed |= vocabulary.is_unit(ids)
    if modality != "speech":
        allowed |= vocabulary.is_text(ids)
    if modality is None:
        allowed |= (ids == vocabulary.text_mode_id) | (ids == vocabulary.speech_mode_id)
    return allowed


@check_shapes
def sample(
    logits: Float[Array, "B V"], positions: Int32[Array, " B"], sampling: SamplingArrays
) -> Int32[Array, " B"]:
    """Draws a token for every row, from (seed, position, logits) of the row alone.

    Args:
      logits: (B, V) float32.
      positions: (B,) int32, of the tokens to be drawn.
      sampling: how.
    """
    logits = jnp.where(sampling.allowed, logits, -jnp.inf)

    def draw() -> Array:
        # The highest becomes 0, so that no temperature makes it overflow.
        scaled = (logits - logits.max(-1, keepdims=True)) / sampling.temperature
        scaled = jnp.where(sampling.allowed, scaled, -jnp.inf)
        is_limited = (sampling.top_k < logits.shape[-1]) | (sampling.top_p < 1)
        scaled = jax.lax.cond(
            is_limited, lambda: truncate(scaled, sampling.top_k, sampling.top_p), lambda: scaled
        )

        def draw_row(seed: Array, position: Array, row: Array) -> Array:
            return jax.random.categorical(jax.random.fold_in(jax.random.key(seed), position), row)

        return jax.vmap(draw_row)(jnp.asarray(sampling.seeds), positions, scaled)

    greedy = jnp.argmax(logits, axis=-1)
    return jax.lax.cond(sampling.temperature > 0, draw, lambda: greedy).astype(jnp.int32)


@check_shapes
def truncate(
    logits: Float[Array, "B V"],
    top_k: Int32[Array | np.ndarray, ""] | int,
    top_p: Float32[Array | np.ndarray, ""] | float,
) -> Float[Array, "B V"]:
    """Sets all but the most probable tokens to −inf; at least one stays.

    Args:
      logits: (B, V) float32.
      top_k: how many may stay, at least 1; of equal ones the lower ids.
      top_p: of those the smallest number that has this share of their probability.
    """
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    ranks = jnp.arange(logits.shape[-1])
    ranked = jnp.where(ranks < top_k, ranked, -jnp.inf)
    probabilities = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    stays = (ranks == 0) | ((ranks < top_k) & ((before < top_p) | (top_p >= 1)))
    stays = jnp.take_along_axis(stays, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(stays, logits, -jnp.inf)
