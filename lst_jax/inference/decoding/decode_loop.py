"""The loop that decodes a batch: token steps for the rows that can, then one global step for all.

Rows whose newest token has completed a patch wait; the others go on, token by token, until each of
them waits too. Then the global transformer runs once for all that wait. So rows of speech, whatever
the phase of their patches, take one global step together for every full patch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lst_jax.inference.decoding.decoder import Decoder, State
from lst_jax.model.attention import ring
from lst_jax.model.layers import constrain
from lst_jax.model.models import logits, output_kernel
from lst_jax.shapes import Float32, Int32, check_shapes


class DecodedRows(NamedTuple):
    """What the rows of a batch have done.

    Attributes:
      state: what they have read, made tokens included.
      stop: (B,) int32, 0 in rows that go on.
      made: (B,) int32, tokens made.
      tokens: (B, n) int32, those tokens.
      log_probs: (B, n) float32, log-probability of each under the model, given all before it.
      token_steps, global_steps: (B,) int32, how often encoder and decoder, and how often the
        global transformer, have run for the row. A token step of the baseline is both.
      batch_token_steps, batch_global_steps: () int32, how often they have run for any row.
    """

    state: Any
    stop: Int32[Array, " B"]
    made: Int32[Array, " B"]
    tokens: Int32[Array, "B n"]
    log_probs: Float32[Array, "B n"]
    token_steps: Int32[Array, " B"]
    global_steps: Int32[Array, " B"]
    batch_token_steps: Int32[Array, ""]
    batch_global_steps: Int32[Array, ""]


@check_shapes
def decode_batch(
    decoder: Decoder,
    params: Any,
    state: State,
    stop: Int32[Array, " B"],
    max_tokens: int,
    choose: Callable[[Array, DecodedRows], Array],
    stop_rule: Callable[[Array, DecodedRows], Array],
) -> DecodedRows:
    """Makes tokens until every row has stopped.

    Args:
      decoder: the model's.
      params: of the model.
      state: of B rows.
      stop: (B,) int32, 0 in rows that may make at least one token.
      max_tokens: n; rows stop, by `stop_rule`, when they have made so many.
      choose: (logits (B, V) float32, progress) to the next tokens (B,) int32.
      stop_rule: (next tokens (B,), progress with them) to `stop` (B,).
    """
    rows, vocab_size = len(stop), decoder.vocabulary.size
    is_global = int(not decoder.has_global_steps)
    params = compute_params(params, jnp.dtype(decoder.model.config.dtype))
    kernel = output_kernel(params)
    zeros, zero = jnp.zeros(rows, jnp.int32), jnp.zeros((), jnp.int32)
    start = DecodedRows(
        state=state,
        stop=stop,
        made=zeros,
        tokens=jnp.zeros((rows, max_tokens), jnp.int32),
        log_probs=jnp.zeros((rows, max_tokens), jnp.float32),
        token_steps=zeros,
        global_steps=zeros,
        batch_token_steps=zero,
        batch_global_steps=zero,
    )

    def may_decode(now: DecodedRows) -> Array:
        return (now.stop == 0) & ~decoder.is_waiting(now.state)

    def waits(now: DecodedRows) -> Array:
        return (now.stop == 0) & decoder.is_waiting(now.state)

    def token_step(now: DecodedRows) -> DecodedRows:
        active = may_decode(now)
        hidden, state = decoder.decode(params, now.state, active)
        scores = constrain(logits(hidden, kernel, vocab_size), "batch", None)
        tokens = choose(scores, now)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), tokens[:, None], axis=1)

        def record(buffer: Array, values: Array) -> Array:
            return ring.write(buffer, values[:, None], now.made, active)

        after = now._replace(
            state=decoder.read(params, state, tokens, active),
            made=now.made + active,
            tokens=record(now.tokens, tokens),
            log_probs=record(now.log_probs, chosen[:, 0]),
            token_steps=now.token_steps + active,
            global_steps=now.global_steps + active * is_global,
            batch_token_steps=now.batch_token_steps + 1,
            batch_global_steps=now.batch_global_steps + is_global,
        )
        return after._replace(stop=jnp.where(active, stop_rule(tokens, after), now.stop))

    def global_step(now: DecodedRows) -> DecodedRows:
        active = waits(now)
        return now._replace(
            state=decoder.run_patch(params, now.state, active),
            global_steps=now.global_steps + active,
            batch_global_steps=now.batch_global_steps + 1,
        )

    def turn(now: DecodedRows) -> DecodedRows:
        now = jax.lax.while_loop(lambda now: may_decode(now).any(), token_step, now)
        return jax.lax.cond(waits(now).any(), global_step, lambda now: now, now)

    return jax.lax.while_loop(lambda now: (now.stop == 0).any(), turn, start)


def compute_params(params: Any, dtype: jnp.dtype) -> Any:
    """Returns parameters in the type that the modules compute with, so that no step converts them.

    The scales of norms stay float32.
    """

    def convert(path: tuple[Any, ...], leaf: Array) -> Array:
        return leaf if path[-1].key == "scale" else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(convert, params)
