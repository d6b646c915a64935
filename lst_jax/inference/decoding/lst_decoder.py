"""Cached decoding of the LST: encoder and decoder run for every token, the rest for every patch.

A token is first read: the encoder makes its state, and perhaps it completes a patch, by the
visibility rule that training has (`patching.visible_patches`): a full patch of speech and a single
token that is none are complete with their last token; a shorter patch of speech is with the token
after it, which may well be the second patch that this one token completes. A row with complete
patches waits until the global transformer has run for them, in order. Then the token is decoded,
and that gives the next one.

All that is read again is in rings (`attention/ring.py`), of these sizes:

| ring                                                | slots                                  |
|-----------------------------------------------------|----------------------------------------|
| encoder and decoder self-attention, keys and values | `local_window`                         |
| encoder cross-attention, keys and values            | `encoder_cross_window` · patch size    |
| token states that are pooled                        | patch size                             |
| first tokens of the patches                         | `encoder_cross_window` + 1             |
| global self-attention, keys and values              | as many patches as a row may have      |
| decoder cross-attention, keys and values            | `decoder_cross_window` · k             |

A patch runs when at most one token has been read after it, and then it is shorter than a full one:
so the rings of the encoder still hold all of its window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lst_jax.batch import Batch
from lst_jax.inference.decoding import caches
from lst_jax.model.attention import ring
from lst_jax.model.key_ranges import KeyRange, lst_key_ranges
from lst_jax.model.layers import CACHE, SOWN, CrossAttention
from lst_jax.model.models import LatentSpeechTextTransformer
from lst_jax.model.pooling import pool_patches
from lst_jax.patching import Document, PatchingConfig, patch_document
from lst_jax.vocabulary import Vocabulary


class LSTState(NamedTuple):
    """Rows that have read some tokens.

    Attributes:
      cache: the rings of keys, values and token states.
      patch_starts: (B, W_enc + 1) int32, ring of the patches' first tokens.
      token_state: (B, 1, d), the encoder's state of the newest token.
      length: (B,) int32, tokens read.
      begun: (B,) int32, patches that these tokens have begun.
      complete: (B,) int32, those of them that the tokens prove complete: all, or all but one.
      run: (B,) int32, those of them that the global transformer has run.
    """

    cache: caches.Cache
    patch_starts: Array
    token_state: Array
    length: Array
    begun: Array
    complete: Array
    run: Array


@dataclasses.dataclass(frozen=True)
class LSTDecoder:
    """Decodes with a `LatentSpeechTextTransformer`.

    Attributes:
      model: the model.
      vocabulary: its id space.
      patching: how it was trained; patches are static with this `patch_size`, or single tokens
        with the strategy "none".
    """

    model: LatentSpeechTextTransformer
    vocabulary: Vocabulary
    patching: PatchingConfig

    @property
    def patch_size(self) -> int:
        """Tokens of a full patch of speech."""
        return 1 if self.patching.strategy == "none" else self.patching.patch_size

    def document(self, tokens: np.ndarray) -> Document:
        """Tokens (T,) in the patches that decoding them one by one would make."""
        return patch_document(tokens, self.patching, self.vocabulary)

    def most_patches(self, num_tokens: int, speech: bool) -> int:
        """Patches that a number of tokens may begin, all of them speech but for the last or not."""
        return num_tokens if not speech else -(-num_tokens // self.patch_size) + 1

    def most_tokens(self, num_patches: int) -> int:
        """Tokens that a number of patches may hold."""
        return num_patches * self.patch_size

    def prefill(self, params: Any, batch: Batch, capacity: int) -> LSTState:
        """Reads prompts in one pass.

        Args:
          params: of the model.
          batch: B rows of one document each, or none.
          capacity: patches that the rows may have later on.

        Returns:
          The state of B rows that have read, and run all complete patches of, their prompts.
        """
        config = self.model.config
        variables = {"params": params}
        outputs, sown = self.model.apply(variables, batch, mutable=[SOWN])
        length = (batch.document_ids > 0).sum(axis=1, dtype=jnp.int32)
        last = jnp.maximum(length - 1, 0)[:, None]

        def at_last(x: Array) -> Array:
            return jnp.take_along_axis(x, last, axis=1)[:, 0]

        begun = jnp.where(length > 0, at_last(batch.patch_ids) + 1, 0)
        complete = at_last(batch.visible_patch) + 1
        latents = config.latent_vectors_per_patch * complete
        patch_starts = lst_key_ranges(batch, config).patch_start

        def items(path: str) -> Array:
            if path.startswith("global/"):
                return complete
            return latents if _is_decoder_cross(path) else length

        return LSTState(
            cache=caches.of_prompt(caches.flatten(sown), self._ring_size(capacity), items),
            patch_starts=ring.latest(patch_starts, begun, config.encoder_cross_window + 1),
            token_state=jnp.take_along_axis(outputs["token_states"], last[..., None], axis=1),
            length=length,
            begun=begun,
            complete=complete,
            run=complete,
        )

    def decode(self, params: Any, state: LSTState, active: Array) -> tuple[Array, LSTState]:
        """Hidden states (B, d) that predict the token after the newest one.

        Args:
          params: of the model.
          state: of B rows.
          active: (B,) bool; rows that are to be decoded, and do not wait.

        Returns:
          The hidden states, of meaning in the active rows, and the state with their caches.
        """
        k, window = self._latent_vectors, self.model.config.decoder_cross_window
        first = jnp.maximum(state.complete - window, 0)
        decoder_cross = KeyRange((k * first)[:, None], (k * state.complete)[:, None])
        hidden, made = caches.apply(
            self.model,
            params,
            state.cache,
            lambda model, *args: model.decoder.decode_tokens(*args),
            state.token_state,
            None,
            self._token_self(state.length),
            decoder_cross,
        )
        cache = caches.append(state.cache, made, state.length - 1, active)
        return hidden[:, 0], state._replace(cache=cache)

    def read(self, params: Any, state: LSTState, tokens: Array, active: Array) -> LSTState:
        """Encodes the next token (B,) of every active row, and sees which patches it completes."""
        length = state.length + 1
        token_state, made = caches.apply(
            self.model,
            params,
            state.cache,
            lambda model, *args: model.encoder.encode_token(*args),
            tokens[:, None],
            self._token_self(length),
        )
        cache = caches.append(state.cache, made, length - 1, active)

        is_unit = (tokens >= self.vocabulary.first_unit_id) & (tokens < self.vocabulary.size)
        opens = is_unit
        if self.patching.join_speech_mode:
            opens |= tokens == self.vocabulary.speech_mode_id
        # Only a patch of speech that is not full yet is begun and not complete.
        joins = is_unit & (state.begun > state.complete)
        begun = state.begun + ~joins
        patch_starts = ring.write(
            state.patch_starts, (length - 1)[:, None], begun - 1, active & ~joins
        )
        size = length - _take(patch_starts, begun - 1)
        grows = opens & (size < self.patch_size)

        def update(new: Array, old: Array) -> Array:
            return jnp.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return LSTState(
            cache=cache,
            patch_starts=patch_starts,
            token_state=update(token_state, state.token_state),
            length=update(length, state.length),
            begun=update(begun, state.begun),
            complete=update(begun - grows, state.complete),
            run=state.run,
        )

    def is_waiting(self, state: LSTState) -> Array:
        """(B,) bool: rows with complete patches that have not run; they cannot be decoded."""
        return state.run < state.complete

    def run_patch(self, params: Any, state: LSTState, active: Array) -> LSTState:
        """Runs the global transformer on the first patch that every active row waits for."""
        patch = state.run
        oldest = jnp.maximum(patch - self.model.config.encoder_cross_window + 1, 0)
        first, start, after = (
            _take(state.patch_starts, index) for index in (oldest, patch, patch + 1)
        )
        end = jnp.where(patch + 1 < state.begun, after, state.length)
        latents, made = caches.apply(
            self.model,
            params,
            state.cache,
            self._run_patch,
            patch,
            KeyRange(start, end),
            KeyRange(first, end),
        )
        # Keys and values for every layer of the decoder at once.
        cross = CrossAttention(self.model.config, depth=0)
        layers = params["decoder"]["transformer"]["layers"]["cross_attention"]
        keys, values = jax.vmap(
            lambda p: cross.apply({"params": p}, latents, method="keys_values")
        )(layers)
        made |= {_DECODER_CROSS + "keys": keys, _DECODER_CROSS + "values": values}
        cache = caches.append(state.cache, made, patch, active)
        return state._replace(cache=cache, run=state.run + active)

    def patches_begun(self, state: LSTState) -> Array:
        """(B,) int32."""
        return state.begun

    def capacity(self, state: LSTState) -> int:
        """Patches that there is room for in a row."""
        return state.cache["global/transformer/layers/block/attention/keys"].shape[-2]

    @property
    def _latent_vectors(self) -> int:
        return self.model.config.latent_vectors_per_patch

    def _token_self(self, length: Array) -> KeyRange:
        """What the last of `length` (B,) tokens reads, (B, 1)."""
        first = jnp.maximum(length - self.model.config.local_window, 0)
        return KeyRange(first[:, None], length[:, None])

    def _run_patch(
        self,
        model: LatentSpeechTextTransformer,
        patch: Array,
        own: KeyRange,
        window: KeyRange,
    ) -> Array:
        """Latent vectors (B, k, d) that the decoder reads of patch number `patch` (B,).

        Args:
          model: bound.
          patch: number of the patch.
          own: its tokens, (B,).
          window: the tokens that its queries read, (B,).
        """
        size = self.patch_size
        tokens = own.end[:, None] + jnp.arange(-size, 0, dtype=jnp.int32)
        states = ring.take(model.encoder.get_variable(CACHE, "pooled_states"), tokens)
        # The patch is the last of these tokens.
        is_own = (tokens >= own.start[:, None]).astype(jnp.int32)
        start = size - (own.end - own.start)[:, None]
        pooled = pool_patches(
            states, is_own, start, jnp.full_like(start, size), model.config.pooling
        )
        k = self._latent_vectors
        encoder_cross = KeyRange(*(jnp.repeat(x[:, None], k, axis=1) for x in window))
        latents = model.encoder.encode_patch(pooled, encoder_cross)
        global_self = KeyRange(jnp.zeros_like(patch)[:, None], patch[:, None] + 1)
        patches = model.global_transformer(latents, global_self)
        return model.decoder.latent_vectors(patches)

    def _ring_size(self, capacity: int) -> Callable[[str], int]:
        """Slots of the ring at a path; `capacity` is in patches."""
        config = self.model.config

        def slots(path: str) -> int:
            if path.startswith("global/"):
                return capacity
            if path == "encoder/pooled_states":
                return self.patch_size
            if path.startswith("encoder/cross_attention"):
                return config.encoder_cross_window * self.patch_size
            if _is_decoder_cross(path):
                return config.decoder_cross_window * self._latent_vectors
            return config.local_window

        return slots


_DECODER_CROSS = "decoder/transformer/layers/cross_attention/attention/"


def _is_decoder_cross(path: str) -> bool:
    return path.startswith(_DECODER_CROSS)


def _take(ring_of_rows: Array, index: Array) -> Array:
    """One item (B,) of each row's ring (B, C)."""
    return ring.take(ring_of_rows, index[:, None])[:, 0]
