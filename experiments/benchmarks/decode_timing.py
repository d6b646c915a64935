"""Times cached decoding of speech, for the benchmarks that report it.

Models have random parameters; prompts are random units, continuations are drawn and go on to their
full length. Nothing here needs Gin or what reads data.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lst_jax.batch import stack_rows
from lst_jax.config import ModelConfig
from lst_jax.inference.decoding.decoder import Decoder
from lst_jax.inference.generation import (
    Generation,
    GenerationLimits,
    generate,
    make_decoder,
    prefill,
    static_size,
)
from lst_jax.inference.sampling import SamplingConfig
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.model.models import abstract_params, build_model, hidden_states, logits, output_kernel
from lst_jax.patching import PatchingConfig, fill_row
from lst_jax.sharding import make_mesh, mesh_context
from lst_jax.vocabulary import Vocabulary

_FRAME_RATE = 25
_SAMPLING = SamplingConfig(temperature=1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model to measure."""

    name: str
    trained: TrainedModel


def make_subject(
    name: str, config: ModelConfig, vocabulary: Vocabulary, patching: PatchingConfig
) -> Subject:
    """Returns a model with random parameters, on one device."""
    mesh = make_mesh(devices=jax.devices()[:1])
    shapes = nn.unbox(abstract_params(config))

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape, leaf.dtype)
        return jax.random.normal(key, leaf.shape, leaf.dtype) * leaf.shape[-2] ** -0.5

    @jax.jit
    def init(key: jax.Array) -> Any:
        leaves, tree = jax.tree.flatten(shapes)
        keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))
        return jax.tree_util.tree_map_with_path(draw, shapes, keys)

    params = init(jax.random.key(0))
    return Subject(name, TrainedModel(build_model(config), params, mesh, vocabulary, patching))


def _decoder(subject: Subject) -> Decoder:
    trained = subject.trained
    return make_decoder(trained.model, trained.vocabulary, trained.patching)


def _prompts(subject: Subject, rows: int, seconds: float) -> list[np.ndarray]:
    vocabulary = subject.trained.vocabulary
    rng = np.random.default_rng(0)
    units = rng.integers(0, vocabulary.unit_count, (rows, round(seconds * _FRAME_RATE)))
    start = [vocabulary.bos_id, vocabulary.speech_mode_id]
    return [np.array([*start, *vocabulary.units_to_ids(row)], np.int32) for row in units]


def measure_decoding(
    subject: Subject, rows: int, prompt_s: float, seconds: float
) -> dict[str, Any]:
    """Measures continuations of so many seconds."""
    prompts = _prompts(subject, rows, prompt_s)
    count = round(seconds * _FRAME_RATE)
    timed_generate(subject, prompts, count, 1)  # compiles
    first_s, _ = timed_generate(subject, prompts, count, 1)
    all_s, generations = timed_generate(subject, prompts, count, count)
    made = sum(len(generation.tokens) for generation in generations)
    steps = generations[0].batch_steps
    return {
        "model": subject.name,
        "rows": rows,
        "prompt_seconds": prompt_s,
        "units": made,
        "first_unit_seconds": first_s,
        "seconds": all_s,
        "units_per_second": (made - rows) / (all_s - first_s),
        "global_steps_per_unit": steps.global_steps * rows / made,
        "cache_bytes": cache_bytes(subject, prompts, count),
        "parameter_bytes": sum(x.nbytes for x in jax.tree.leaves(subject.trained.params)),
    }


def cache_bytes(subject: Subject, prompts: Sequence[np.ndarray], units: int) -> int:
    """Returns the bytes of the state that `generate` keeps for continuations of so many units."""
    decoder = _decoder(subject)
    patches = max(decoder.document(prompt).num_patches for prompt in prompts)
    # The room decides, not what is read.
    state = prefill(
        subject.trained,
        [prompt[:1] for prompt in prompts],
        max_patches=patches + decoder.most_patches(units, speech=True),
    )
    return sum(x.nbytes for x in jax.tree.leaves(state))


def timed_generate(
    subject: Subject, prompts: Sequence[np.ndarray], max_units: int, units: int
) -> tuple[float, list[Generation]]:
    """Makes `units` of every prompt, with room for `max_units`; returns the seconds, too."""
    start = time.perf_counter()
    generations = generate(
        subject.trained,
        prompts,
        sampling=_SAMPLING,
        limits=GenerationLimits(max_units, max_units=units, min_tokens=units),
        modality="speech",
        batch_rows=len(prompts),
    )
    return time.perf_counter() - start, generations


def measure_recomputing(subject: Subject, rows: int, prompt_s: float, seconds: float) -> float:
    """Returns the seconds of the full forward pass over prompt and half of the continuation."""
    prompts = _prompts(subject, rows, prompt_s + seconds / 2)
    decoder = _decoder(subject)
    documents = [decoder.document(tokens) for tokens in prompts]
    num_patches = static_size(documents[0].num_patches)
    num_tokens = static_size(documents[0].num_tokens)
    batch = stack_rows([fill_row([document], num_patches, num_tokens) for document in documents])
    last = documents[0].num_tokens - 1

    @jax.jit
    def scores(params: Any, batch: Any) -> jax.Array:
        hidden = hidden_states(subject.trained.model, params, batch)
        return logits(hidden[:, last], output_kernel(params), subject.trained.vocabulary.size)

    with mesh_context(subject.trained.mesh):
        compiled = scores.lower(subject.trained.params, batch).compile()
        start = time.perf_counter()
        compiled(subject.trained.params, batch).block_until_ready()
        return time.perf_counter() - start
