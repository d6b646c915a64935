"""Cached decoding of the unpatched baseline: one run of the transformer for every token."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from lst_jax.batch import Batch
from lst_jax.inference.decoding import caches
from lst_jax.model.key_ranges import KeyRange
from lst_jax.model.layers import SOWN
from lst_jax.model.models import TokenTransformer
from lst_jax.patching import Document, PatchingConfig, patch_document
from lst_jax.vocabulary import Vocabulary


class TokenState(NamedTuple):
    """Rows that have read some tokens.

    Attributes:
      cache: keys and values of the tokens.
      length: (B,) int32, tokens read.
      newest: (B,) int32, the last of them.
    """

    cache: caches.Cache
    length: Array
    newest: Array


@dataclasses.dataclass(frozen=True)
class TokenDecoder:
    """Decodes with a `TokenTransformer`; the interface is that of `LSTDecoder`."""

    model: TokenTransformer
    vocabulary: Vocabulary
    patching: PatchingConfig

    def document(self, tokens: np.ndarray) -> Document:
        """Tokens as the model reads them."""
        return patch_document(tokens, self.patching, self.vocabulary)

    def most_patches(self, num_tokens: int, speech: bool) -> int:
        """Patches that a number of tokens begins: every token is one."""
        return num_tokens

    def most_tokens(self, num_patches: int) -> int:
        """Tokens that a number of patches holds: every token is one."""
        return num_patches

    def prefill(self, params: Any, batch: Batch, capacity: int) -> TokenState:
        """See `LSTDecoder.prefill`."""
        variables = {"params": params}
        _, sown = self.model.apply(variables, batch, mutable=[SOWN])
        length = (batch.document_ids > 0).sum(axis=1, dtype=jnp.int32)
        newest = jnp.take_along_axis(batch.tokens, jnp.maximum(length - 1, 0)[:, None], 1)
        sown = caches.flatten(sown)
        cache = caches.of_prompt(sown, lambda path: capacity, lambda path: length)
        return TokenState(cache, length, newest[:, 0])

    def decode(self, params: Any, state: TokenState, active: Array) -> tuple[Array, TokenState]:
        """Hidden states (B, D) that predict the token after the newest one."""
        position = state.length - 1
        key_range = KeyRange(jnp.zeros_like(position)[:, None], state.length[:, None])
        hidden, made = caches.apply(
            self.model,
            params,
            state.cache,
            TokenTransformer.run_tokens,
            state.newest[:, None],
            key_range,
        )
        cache = caches.append(state.cache, made, position, active)
        return hidden[:, 0], state._replace(cache=cache)

    def read(self, params: Any, state: TokenState, tokens: Array, active: Array) -> TokenState:
        """Takes the next token of every active row."""
        return state._replace(
            length=state.length + active, newest=jnp.where(active, tokens, state.newest)
        )

    def is_waiting(self, state: TokenState) -> Array:
        """(B,) bool: no row ever waits, the transformer runs with the token."""
        return jnp.zeros(state.length.shape, bool)

    def run_patch(self, params: Any, state: TokenState, active: Array) -> TokenState:
        """Nothing is left to run."""
        return state

    def patches_begun(self, state: TokenState) -> Array:
        """(B,) int32: a token is a patch."""
        return state.length

    def capacity(self, state: TokenState) -> int:
        """Tokens that there is room for in a row."""
        return state.cache["transformer/layers/block/attention/keys"].shape[-2]
