"""Cached decoding of the unpatched baseline: one run of the transformer for every token."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from lst_jax.batch import Batch
from lst_jax.inference.decoding import caches
from lst_jax.inference.decoding.caches import KeysValues
from lst_jax.model.key_ranges import KeyRange
from lst_jax.model.layers import SOWN
from lst_jax.model.models import TokenTransformer
from lst_jax.patching import Document, PatchingConfig, patch_document
from lst_jax.shapes import Bool, Float, Int, Int32, check_shapes
from lst_jax.vocabulary import Vocabulary


class TokenCache(NamedTuple):
    """Rings of the baseline: keys and values of the stack of layers."""

    layers: KeysValues

    @property
    def variables(self) -> dict[str, Any]:
        """Returns them as the modules find them."""
        return {"transformer": {"layers": {"block": self.layers.variables}}}

    @classmethod
    def of(cls, sown: Mapping[str, Any]) -> TokenCache:
        """Returns what the modules have sown."""
        return cls(KeysValues.of(sown["transformer"]["layers"]["block"]))


class TokenState(NamedTuple):
    """Rows that have read some tokens.

    Attributes:
      cache: keys and values of the tokens.
      length: (B,) int32, tokens read.
      newest: (B,) int32, the last of them.
    """

    cache: TokenCache
    length: Int32[Array, " B"]
    newest: Int32[Array, " B"]


@dataclasses.dataclass(frozen=True)
class TokenDecoder:
    """Decodes with a `TokenTransformer`; methods are those of `decoder.Decoder`."""

    model: TokenTransformer
    vocabulary: Vocabulary
    patching: PatchingConfig
    has_global_steps: ClassVar[bool] = False  # it is nothing but the global transformer

    @check_shapes
    def document(self, tokens: Int[np.ndarray, " T"]) -> Document:
        """See `Decoder`."""
        return patch_document(tokens, self.patching, self.vocabulary)

    def most_patches(self, num_tokens: int, speech: bool) -> int:
        """See `Decoder`: every token is one."""
        return num_tokens

    def most_tokens(self, num_patches: int) -> int:
        """See `Decoder`: every token is one."""
        return num_patches

    @check_shapes
    def prefill(self, params: Any, batch: Batch, capacity: int) -> TokenState:
        """See `Decoder`."""
        variables = {"params": params}
        _, sown = self.model.apply(variables, batch, mutable=[SOWN])
        length = (batch.document_ids > 0).sum(axis=1, dtype=jnp.int32)
        newest = jnp.take_along_axis(batch.tokens, jnp.maximum(length - 1, 0)[:, None], 1)
        cache = caches.fill(TokenCache.of(sown[SOWN]), capacity, length)
        return TokenState(cache, length, newest[:, 0])

    @check_shapes
    def decode(
        self, params: Any, state: TokenState, active: Bool[Array, " B"]
    ) -> tuple[Float[Array, "B d"], TokenState]:
        """See `Decoder`."""
        position = state.length - 1
        key_range = KeyRange(jnp.zeros_like(position)[:, None], state.length[:, None])
        hidden, sown = caches.apply(
            self.model,
            params,
            state.cache.variables,
            TokenTransformer.run_tokens,
            state.newest[:, None],
            key_range,
        )
        cache = caches.append(state.cache, TokenCache.of(sown), position, active)
        return hidden[:, 0], state._replace(cache=cache)

    @check_shapes
    def read(
        self, params: Any, state: TokenState, tokens: Int32[Array, " B"], active: Bool[Array, " B"]
    ) -> TokenState:
        """See `Decoder`."""
        return state._replace(
            length=state.length + active, newest=jnp.where(active, tokens, state.newest)
        )

    @check_shapes
    def is_waiting(self, state: TokenState) -> Bool[Array, " B"]:
        """See `Decoder`: no row ever waits, the transformer runs with the token."""
        return jnp.zeros(state.length.shape, bool)

    @check_shapes
    def run_patch(self, params: Any, state: TokenState, active: Bool[Array, " B"]) -> TokenState:
        """See `Decoder`: nothing is left to run."""
        return state

    @check_shapes
    def patches_begun(self, state: TokenState) -> Int32[Array, " B"]:
        """See `Decoder`: a token is a patch."""
        return state.length
