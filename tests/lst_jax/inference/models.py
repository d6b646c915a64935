"""Tiny models with random parameters, and streams of tokens, for the tests of cached decoding."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np

from lst_jax.config import LSTConfig, baseline_of
from lst_jax.inference.generation import make_decoder
from lst_jax.model.models import abstract_params, build_model, logits, output_kernel
from lst_jax.patching import PatchingConfig
from lst_jax.sharding import make_mesh
from tests.lst_jax.batches import VOCABULARY, random_tokens, stack_rows

# What `static_size` rounds all these short streams to, so that everything is compiled once.
SLOTS = 64
ROWS = 4

# Windows are so small that every ring wraps around several times.
LST = LSTConfig(
    vocab_size=VOCABULARY.size,
    dim_local=16,
    dim_global=32,
    num_layers_encoder=1,
    num_layers_global=2,
    num_layers_decoder=2,
    num_heads_local=2,
    num_heads_global=2,
    multiple_of=16,
    local_window=7,
    encoder_cross_window=3,
    decoder_cross_window=4,
    dtype="float32",
    attention="dense",
)
STATIC = PatchingConfig("static", patch_size=3)
CASES = {
    "lst": (LST, STATIC),
    "deep": (
        dataclasses.replace(
            LST,
            num_layers_encoder=2,
            latent_vectors_per_patch=3,
            cross_residual="double",
            document_cross_masking=False,
            num_heads_cross=4,
            hash_ngram_sizes=(2, 4),
            hash_table_size=128,
        ),
        PatchingConfig("curriculum", patch_size=4, join_speech_mode=True),
    ),
    "last": (
        dataclasses.replace(
            LST,
            dim_global=16,
            num_layers_encoder=2,
            encoder_cross_layers="last",
            encoder_cross_window=1,
            pooling="mean",
            latent_vectors_per_patch=1,
        ),
        PatchingConfig("mixed", patch_size=2, join_speech_mode=True),
    ),
    "baseline": (baseline_of(LST), PatchingConfig("none")),
}


@functools.cache
def one_device():
    """The mesh of most tests."""
    return make_mesh(devices=jax.devices()[:1])


@functools.cache
def decoder_of(case):
    """The cached decoder of a case, and with it its model."""
    config, patching = CASES[case]
    return make_decoder(build_model(config), VOCABULARY, patching)


@functools.cache
def parameters(case):
    """Random parameters, norm scales among them, larger than the initial ones."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "scale":
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        values = rng.standard_normal(leaf.shape) * 1.5 * leaf.shape[-2] ** -0.5
        return values.astype(np.float32)

    shapes = nn.unbox(abstract_params(CASES[case][0]))
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    # eos is never the most probable one, so that greedy rows go on to their limit.
    params["output_kernel"][:, VOCABULARY.eos_id] = 0
    return jax.tree.map(jax.numpy.asarray, params)


@functools.cache
def _full_function(case):
    model = decoder_of(case).model

    @jax.jit
    def run(params, batch):
        hidden = model.apply({"params": params}, batch)["hidden"]
        return logits(hidden, output_kernel(params), VOCABULARY.size)

    return run


def full_logits(case, streams):
    """Logits of the full forward pass, (T, vocabulary) for every stream of T tokens."""
    documents = [[decoder_of(case).document(tokens)] for tokens in streams]
    batch = stack_rows(documents + [[]] * (ROWS - len(documents)), SLOTS, SLOTS)
    rows = np.asarray(_full_function(case)(parameters(case), batch))
    return [row[: len(tokens)] for row, tokens in zip(rows, streams, strict=False)]


def random_stream(rng):
    """A document, or any tokens in any order: modes without segments, units without a mode."""
    if rng.random() < 0.5:
        return random_tokens(rng, segments=int(rng.integers(1, 6)), longest=11)[: SLOTS - 1]
    v = VOCABULARY
    some = [3, v.text_mode_id, v.speech_mode_id, v.eos_id]
    tokens = rng.choice([*some, *range(v.first_unit_id, v.size)], int(rng.integers(2, SLOTS)))
    return tokens.astype(np.int32)
