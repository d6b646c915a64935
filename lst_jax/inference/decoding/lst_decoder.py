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
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lst_jax.batch import Batch
from lst_jax.inference.decoding import caches
from lst_jax.inference.decoding.caches import KeysValues
from lst_jax.model.attention import ring
from lst_jax.model.key_ranges import KeyRange, lst_key_ranges
from lst_jax.model.layers import CACHE, SOWN, CrossAttention
from lst_jax.model.models import LatentSpeechTextTransformer
from lst_jax.model.ngrams import push_token
from lst_jax.model.pooling import pool_patches
from lst_jax.patching import Document, PatchingConfig, patch_document
from lst_jax.shapes import Bool, Float, Int, Int32, check_shapes
from lst_jax.vocabulary import Vocabulary


class EncoderCache(NamedTuple):
    """Rings of the encoder.

    Attributes:
      layers: self-attention of each layer.
      cross: cross-attention after each layer that has one: what patches read of tokens.
      pooled_states: states of the newest tokens, which the next patch is pooled from.
    """

    layers: tuple[KeysValues, ...]
    cross: tuple[KeysValues, ...]
    pooled_states: Float[Array, "B C d"]


class LSTCache(NamedTuple):
    """Rings of an LST; those of the global transformer and the decoder are stacks of layers.

    Attributes:
      encoder: of tokens.
      global_self: self-attention of the global transformer, of patches.
      decoder_self: self-attention of the decoder, of tokens.
      decoder_cross: cross-attention of the decoder, of latent vectors.
    """

    encoder: EncoderCache
    global_self: KeysValues
    decoder_self: KeysValues
    decoder_cross: KeysValues

    def variables(self, first_read: int) -> dict[str, Any]:
        """Returns them as the modules find them; the first cross-attention is number first_read."""
        layers = {f"layer_{i}": x.variables for i, x in enumerate(self.encoder.layers)}
        cross = enumerate(self.encoder.cross, first_read)
        reads = {f"cross_attention_{i}": x.variables for i, x in cross}
        decoder = {
            "block": self.decoder_self.variables,
            "cross_attention": self.decoder_cross.variables,
        }
        return {
            "encoder": layers | reads | {"pooled_states": self.encoder.pooled_states},
            "global": {"transformer": {"layers": {"block": self.global_self.variables}}},
            "decoder": {"transformer": {"layers": decoder}},
        }


def _sown_by_encoder(sown: Mapping[str, Any]) -> EncoderCache:
    """Returns what the encoder has sown; its modules are numbered by their depth."""
    encoder = sown["encoder"]

    def numbered(kind: str) -> tuple[KeysValues, ...]:
        names = sorted((name for name in encoder if name.startswith(kind)), key=_depth)
        return tuple(KeysValues.of(encoder[name]) for name in names)

    return EncoderCache(numbered("layer_"), numbered("cross_attention_"), encoder["pooled_states"])


def _depth(name: str) -> int:
    return int(name.rpartition("_")[2])


def _sown_by_layers(sown: Mapping[str, Any], module: str, attention: str = "block") -> KeysValues:
    """Returns what attention in the stacked layers of a transformer sowed."""
    return KeysValues.of(sown[module]["transformer"]["layers"][attention])


class LSTState(NamedTuple):
    """Rows that have read some tokens.

    Attributes:
      cache: the rings.
      patch_starts: (B, W_enc + 1) int32, ring of the patches' first tokens.
      recent: (B, n) int32, the newest tokens, the last one first, −1 where there are no more; n is
        that of the longest n-gram, or 0.
      token_state: (B, 1, d), the encoder's state of the newest token.
      length: (B,) int32, tokens read.
      begun: (B,) int32, patches that these tokens have begun.
      complete: (B,) int32, those of them that the tokens prove complete: all, or all but one.
      run: (B,) int32, those of them that the global transformer has run.
    """

    cache: LSTCache
    patch_starts: Int32[Array, "B C"]
    recent: Int32[Array, "B _"]
    token_state: Float[Array, "B 1 d"]
    length: Int32[Array, " B"]
    begun: Int32[Array, " B"]
    complete: Int32[Array, " B"]
    run: Int32[Array, " B"]


@dataclasses.dataclass(frozen=True)
class LSTDecoder:
    """Decodes with a `LatentSpeechTextTransformer`; methods are those of `decoder.Decoder`."""

    model: LatentSpeechTextTransformer
    vocabulary: Vocabulary
    patching: PatchingConfig
    has_global_steps: ClassVar[bool] = True

    @property
    def patch_size(self) -> int:
        """Returns the tokens of a full patch of speech."""
        return 1 if self.patching.strategy == "none" else self.patching.patch_size

    @check_shapes
    def document(self, tokens: Int[np.ndarray, " T"]) -> Document:
        """See `Decoder`."""
        return patch_document(tokens, self.patching, self.vocabulary)

    def most_patches(self, num_tokens: int, speech: bool) -> int:
        """See `Decoder`."""
        return num_tokens if not speech else -(-num_tokens // self.patch_size) + 1

    def most_tokens(self, num_patches: int) -> int:
        """See `Decoder`."""
        return num_patches * self.patch_size

    @check_shapes
    def prefill(self, params: Any, batch: Batch, capacity: int) -> LSTState:
        """See `Decoder`: the forward pass of training, whose keys and values become rings."""
        config = self.model.config
        variables = {"params": params}
        outputs, sown = self.model.apply(variables, batch, mutable=[SOWN])
        length = (batch.document_ids > 0).sum(axis=1, dtype=jnp.int32)
        last = jnp.maximum(length - 1, 0)[:, None]

        def at_last(x: Array) -> Array:
            return jnp.take_along_axis(x, last, axis=1)[:, 0]

        begun = jnp.where(length > 0, at_last(batch.patch_ids) + 1, 0)
        complete = at_last(batch.visible_patch) + 1
        patch_starts = lst_key_ranges(batch, config).patch_start
        distance = jnp.arange(config.recent_tokens, dtype=jnp.int32)
        places = length[:, None] - 1 - distance
        recent = jnp.take_along_axis(batch.tokens, jnp.maximum(places, 0), axis=1)

        return LSTState(
            cache=self._fill(sown[SOWN], capacity, length, complete),
            patch_starts=ring.latest(patch_starts, begun, config.encoder_cross_window + 1),
            recent=jnp.where(places >= 0, recent, -1),
            token_state=jnp.take_along_axis(outputs["token_states"], last[..., None], axis=1),
            length=length,
            begun=begun,
            complete=complete,
            run=complete,
        )

    @check_shapes
    def decode(
        self, params: Any, state: LSTState, active: Bool[Array, " B"]
    ) -> tuple[Float[Array, "B d"], LSTState]:
        """See `Decoder`."""
        k, window = self._latent_vectors, self.model.config.decoder_cross_window
        first = jnp.maximum(state.complete - window, 0)
        decoder_cross = KeyRange((k * first)[:, None], (k * state.complete)[:, None])
        hidden, sown = self._apply(
            params,
            state,
            lambda model, *args: model.decoder.decode_tokens(*args),
            state.token_state,
            None,
            self._token_self(state.length),
            decoder_cross,
        )
        # The latent vectors stand in the ring since their patch ran; only self-attention adds.
        made = _sown_by_layers(sown, "decoder")
        rings = caches.append(state.cache.decoder_self, made, state.length - 1, active)
        return hidden[:, 0], state._replace(cache=state.cache._replace(decoder_self=rings))

    @check_shapes
    def read(
        self, params: Any, state: LSTState, tokens: Int32[Array, " B"], active: Bool[Array, " B"]
    ) -> LSTState:
        """See `Decoder`: encodes the token."""
        length = state.length + 1
        recent = push_token(state.recent, tokens)
        token_state, sown = self._apply(
            params,
            state,
            lambda model, *args: model.encoder.encode_token(*args),
            tokens[:, None],
            self._token_self(length),
            recent[:, None] if recent.shape[1] else None,
        )
        made = _sown_by_encoder(sown)
        encoder = caches.append(state.cache.encoder, made, length - 1, active)

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
            cache=state.cache._replace(encoder=encoder),
            patch_starts=patch_starts,
            recent=update(recent, state.recent),
            token_state=update(token_state, state.token_state),
            length=update(length, state.length),
            begun=update(begun, state.begun),
            complete=update(begun - grows, state.complete),
            run=state.run,
        )

    @check_shapes
    def is_waiting(self, state: LSTState) -> Bool[Array, " B"]:
        """See `Decoder`."""
        return state.run < state.complete

    @check_shapes
    def run_patch(self, params: Any, state: LSTState, active: Bool[Array, " B"]) -> LSTState:
        """See `Decoder`."""
        patch = state.run
        oldest = jnp.maximum(patch - self.model.config.encoder_cross_window + 1, 0)
        first, start, after = (
            _take(state.patch_starts, index) for index in (oldest, patch, patch + 1)
        )
        end = jnp.where(patch + 1 < state.begun, after, state.length)
        latents, sown = self._apply(
            params,
            state,
            self._run_patch,
            patch,
            KeyRange(start, end),
            KeyRange(first, end),
        )
        # Keys and values for every layer of the decoder at once: its tokens, up to a patch's worth
        # of them, read them without a run of these projections each.
        cross = CrossAttention(self.model.config, depth=0)
        layers = params["decoder"]["transformer"]["layers"]["cross_attention"]
        read = jax.vmap(lambda p: cross.apply({"params": p}, latents, method="keys_values"))(layers)
        keys_values = KeysValues(*cast(tuple[Array, Array], read))
        cache = state.cache
        own = caches.append(cache.global_self, _sown_by_layers(sown, "global"), patch, active)
        vectors = caches.append(cache.decoder_cross, keys_values, patch, active)
        cache = cache._replace(global_self=own, decoder_cross=vectors)
        return state._replace(cache=cache, run=state.run + active)

    @check_shapes
    def patches_begun(self, state: LSTState) -> Int32[Array, " B"]:
        """See `Decoder`."""
        return state.begun

    def _apply(
        self, params: Any, state: LSTState, function: Callable[..., Any], *args: Any
    ) -> tuple[Any, Mapping[str, Any]]:
        config = self.model.config
        first_read = 0 if config.encoder_cross_layers == "all" else config.num_layers_encoder - 1
        variables = state.cache.variables(first_read)
        return caches.apply(self.model, params, variables, function, *args)

    def _fill(
        self, sown: Mapping[str, Any], capacity: int, length: Array, complete: Array
    ) -> LSTCache:
        """Returns the rings after prompts of `length` (B,) tokens and `complete` (B,) patches.

        A patch that is begun and not complete is in no ring of patches: it runs, from the rings of
        tokens, when it is known where it ends.
        """
        config, k = self.model.config, self._latent_vectors
        encoder = _sown_by_encoder(sown)
        global_self = _sown_by_layers(sown, "global")
        decoder_self = _sown_by_layers(sown, "decoder")
        decoder_cross = _sown_by_layers(sown, "decoder", "cross_attention")
        # Patches of the window are full ones at most. A shorter one ends before more tokens come
        # than a full one would have.
        window = config.encoder_cross_window * self.patch_size
        vectors = config.decoder_cross_window * k
        return LSTCache(
            encoder=EncoderCache(
                layers=caches.fill(encoder.layers, config.local_window, length),
                cross=caches.fill(encoder.cross, window, length),
                pooled_states=caches.fill(encoder.pooled_states, self.patch_size, length),
            ),
            global_self=caches.fill(global_self, capacity, complete),
            decoder_self=caches.fill(decoder_self, config.local_window, length),
            decoder_cross=caches.fill(decoder_cross, vectors, k * complete),
        )

    @property
    def _latent_vectors(self) -> int:
        return self.model.config.latent_vectors_per_patch

    def _token_self(self, length: Array) -> KeyRange:
        """Returns what the last of `length` (B,) tokens reads, (B, 1)."""
        first = jnp.maximum(length - self.model.config.local_window, 0)
        return KeyRange(first[:, None], length[:, None])

    def _run_patch(
        self,
        model: LatentSpeechTextTransformer,
        patch: Array,
        own: KeyRange,
        window: KeyRange,
    ) -> Array:
        """Returns the latent vectors (B, k, d) that the decoder reads of patch number `patch` (B,).

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


def _take(ring_of_rows: Array, index: Array) -> Array:
    """Returns one item (B,) of each row's ring (B, C)."""
    return ring.take(ring_of_rows, index[:, None])[:, 0]
