"""Given tokens sent through the loop that generates: what cached decoding makes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lst_jax.inference.decoding.decode_loop import decode_batch
from lst_jax.inference.generation import prefill
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.sharding import mesh_context
from tests.lst_jax.batches import VOCABULARY
from tests.lst_jax.inference.models import ROWS, SLOTS, decoder_of, one_device, parameters


def read(case, prompts):
    """The state of rows that have read prompts."""
    decoder = decoder_of(case)
    arguments = parameters(case), one_device(), VOCABULARY, decoder.patching
    trained = TrainedModel(decoder.model, *arguments)
    return prefill(trained, prompts, max_patches=SLOTS, batch_rows=ROWS)


def say(case, state, continuations):
    """Moves on by continuations, one for each of the first rows.

    Returns the state, and per row the log-probability of every token given all before it, (T,), and
    the logits that it was chosen from, (T, V). The state given is used up.
    """
    lengths = np.zeros(ROWS, np.int32)
    lengths[: len(continuations)] = [len(tokens) for tokens in continuations]
    given = np.zeros((ROWS, SLOTS), np.int32)
    for row, tokens in zip(given, continuations, strict=False):
        row[: len(tokens)] = tokens
    logits = np.zeros((ROWS, SLOTS + 1, VOCABULARY.size), np.float32)
    _heard[:] = [logits]
    with mesh_context(one_device()):
        state, log_probs = _run_function(case)(parameters(case), state, given, lengths)
    jax.effects_barrier()
    log_probs = np.asarray(log_probs)
    sizes = list(enumerate(lengths[: len(continuations)].tolist()))
    return state, [log_probs[i, :n] for i, n in sizes], [logits[i, :n] for i, n in sizes]


def repeat_rows(state, rows):
    """The state whose row i is row `rows[i]` of another; rows come after the layers of a stack."""
    rows = jnp.asarray(rows, jnp.int32)
    return jax.tree.map(lambda x: x.take(rows, axis=int(x.ndim == 5)), state)


_heard = []  # the array that logits are written to


def _hear(made, logits):
    # A row that waits hears the same place again when it is decoded.
    _heard[0][np.arange(ROWS), made] = logits


@functools.cache
def _run_function(case):
    decoder = decoder_of(case)

    @functools.partial(jax.jit, donate_argnums=1)
    def run(params, state, given, lengths):
        def choose(logits, now):
            jax.debug.callback(_hear, now.made, logits, ordered=True)
            return jnp.take_along_axis(given, now.made[:, None], axis=1, mode="clip")[:, 0]

        def stop_rule(tokens, now):
            return (now.made >= lengths).astype(jnp.int32)

        stop = (lengths == 0).astype(jnp.int32)
        made = decode_batch(decoder, params, state, stop, SLOTS, choose, stop_rule)
        return made.state, made.log_probs

    return run
