r"""Measures generation of speech: the LST against its baseline, cached against recomputed.

    python -m experiments.benchmarks.decode --gin_file=experiments/configs/models/420m.gin \
        --gin.DTYPE=float32 --output=experiments/benchmarks/results/decode.json

Both models have random parameters and the same global transformer. Prompts are random units,
continuations are drawn and go on to their full length (eos is not drawn before). For every batch
size and length of the prompt, after a first call that compiles:

* time to the first unit: reading the prompts, and one unit;
* units per second of the whole batch: the units after the first, over the time they take;
* steps of the global transformer per unit;
* bytes of the caches, and of the parameters.

Recomputing is what a model without caches does: the full forward pass over prompt and half of the
continuation for every unit. One pass is timed, at the last batch size and the first prompt length.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
import time
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli, gin_config
from experiments.aot_compile import read_config
from experiments.benchmarks.machine import device_name
from experiments.outputs import write_json
from lst_jax.config import LSTConfig, ModelConfig, baseline_of
from lst_jax.evaluation.choices import format_rows
from lst_jax.inference.generation import (
    Generation,
    GenerationLimits,
    generate,
    make_decoder,
    prefill,
    static_size,
)
from lst_jax.inference.sampling import SamplingConfig
from lst_jax.models import abstract_params, build_model, logits, output_kernel
from lst_jax.patching import PatchingConfig, fill_row
from lst_jax.sharding import make_mesh, mesh_context
from lst_jax.vocabulary import Vocabulary

_FRAME_RATE = 25
_SAMPLING = SamplingConfig(temperature=1.0)
_HEADER = ("model", "rows", "prompt", "first unit", "units/s", "global steps a unit", "cache")


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    gin_config.define_flags()
    flags.DEFINE_list("batch_rows", ["1", "8"], "Batch sizes.")
    flags.DEFINE_list("prompt_seconds", ["30", "7.5", "60"], "Lengths of the prompts.")
    flags.DEFINE_float("seconds", 30.0, "Length of the continuations.", 0.08)
    flags.DEFINE_string("output", None, "JSON file to write the results to.")


@dataclasses.dataclass(frozen=True, eq=False)
class _Subject:
    """A model to measure."""

    name: str
    model: nn.Module
    params: Any
    vocabulary: Vocabulary
    patching: PatchingConfig
    mesh: jax.sharding.Mesh


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    cli.check_no_arguments(list(argv))
    values = flags.FLAGS
    config = read_config(values.gin_file, values.gin_binding)
    if not isinstance(config.model, LSTConfig):
        raise ValueError(f"train.model is {type(config.model).__name__}, expected LSTConfig")
    batches = [int(rows) for rows in values.batch_rows]
    prompts = [float(seconds) for seconds in values.prompt_seconds]
    static = dataclasses.replace(config.patching, strategy="static")
    results: list[dict[str, Any]] = []
    recomputed = {}
    table = [list(_HEADER)]
    for name, model, patching in (
        ("LST", config.model, static),
        ("baseline", baseline_of(config.model), PatchingConfig("none")),
    ):
        subject = _make_subject(name, model, config.vocabulary, patching)
        for rows in batches:
            for seconds in prompts:
                result = _measure(subject, rows, seconds, values.seconds)
                results.append(result)
                table.append(_row(result))
                print("  ".join(table[-1]), file=sys.stderr, flush=True)
        recomputed[name] = _measure_recomputing(subject, batches[-1], prompts[0], values.seconds)
        print(f"{name} recomputed: {recomputed[name]:.1f} s a unit", file=sys.stderr, flush=True)
    ratios = _ratios(results, recomputed, batches[-1], prompts[0])
    print(format_rows(table, 1))
    print("\n".join(f"{name}: {value:.2f}" for name, value in ratios.items()))
    if values.output:
        versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")}
        write_json(
            values.output,
            {
                "command": " ".join(["python -m experiments.benchmarks.decode", *sys.argv[1:]]),
                "device": device_name(),
                "versions": versions,
                "model": dataclasses.asdict(config.model),
                "results": results,
                "recomputed_seconds_per_unit": recomputed,
                "ratios": ratios,
            },
        )


def _make_subject(
    name: str, config: ModelConfig, vocabulary: Vocabulary, patching: PatchingConfig
) -> _Subject:
    """A model with random parameters, on one device."""
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

    return _Subject(name, build_model(config), init(jax.random.key(0)), vocabulary, patching, mesh)


def _prompts(subject: _Subject, rows: int, seconds: float) -> list[np.ndarray]:
    vocabulary = subject.vocabulary
    rng = np.random.default_rng(0)
    units = rng.integers(0, vocabulary.unit_count, (rows, round(seconds * _FRAME_RATE)))
    start = [vocabulary.bos_id, vocabulary.speech_mode_id]
    return [np.array([*start, *vocabulary.units_to_ids(row)], np.int32) for row in units]


def _measure(subject: _Subject, rows: int, prompt_s: float, seconds: float) -> dict[str, Any]:
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
        "parameter_bytes": sum(x.nbytes for x in jax.tree.leaves(subject.params)),
    }


def cache_bytes(subject: _Subject, prompts: Sequence[np.ndarray], units: int) -> int:
    """Bytes of the state that `generate` keeps for continuations of so many units."""
    decoder = make_decoder(subject.model, subject.vocabulary, subject.patching)
    patches = max(decoder.document(prompt).num_patches for prompt in prompts)
    # The room decides, not what is read.
    state = prefill(
        decoder,
        subject.params,
        [prompt[:1] for prompt in prompts],
        mesh=subject.mesh,
        max_patches=patches + decoder.most_patches(units, speech=True),
    )
    return sum(x.nbytes for x in jax.tree.leaves(state))


def timed_generate(
    subject: _Subject, prompts: Sequence[np.ndarray], max_units: int, units: int
) -> tuple[float, list[Generation]]:
    """Seconds, and what was made: `units` of every prompt, with room for `max_units`."""
    start = time.perf_counter()
    generations = generate(
        subject.model,
        subject.params,
        prompts,
        vocabulary=subject.vocabulary,
        patching=subject.patching,
        mesh=subject.mesh,
        sampling=_SAMPLING,
        limits=GenerationLimits(max_units, max_units=units, min_tokens=units),
        modality="speech",
        batch_rows=len(prompts),
    )
    return time.perf_counter() - start, generations


def _measure_recomputing(subject: _Subject, rows: int, prompt_s: float, seconds: float) -> float:
    """Seconds of the full forward pass over prompt and half of the continuation."""
    prompts = _prompts(subject, rows, prompt_s + seconds / 2)
    decoder = make_decoder(subject.model, subject.vocabulary, subject.patching)
    documents = [decoder.document(tokens) for tokens in prompts]
    num_patches = static_size(documents[0].num_patches)
    num_tokens = static_size(documents[0].num_tokens)
    filled = [fill_row([document], num_patches, num_tokens) for document in documents]
    batch = {name: np.stack([row[name] for row in filled]) for name in filled[0]}
    last = documents[0].num_tokens - 1

    @jax.jit
    def scores(params: Any, batch: Any) -> jax.Array:
        variables = {"params": params}
        hidden = subject.model.apply(variables, batch, num_patches=num_patches)["hidden"]
        return logits(hidden[:, last], output_kernel(params), subject.vocabulary.size)

    with mesh_context(subject.mesh):
        compiled = scores.lower(subject.params, batch).compile()
        start = time.perf_counter()
        compiled(subject.params, batch).block_until_ready()
        return time.perf_counter() - start


def _ratios(
    results: Sequence[dict[str, Any]], recomputed: dict[str, float], rows: int, prompt_s: float
) -> dict[str, float]:
    """The figures that the goals are about, at one batch size and prompt."""
    lst, baseline = (
        next(
            result
            for result in results
            if (result["model"], result["rows"], result["prompt_seconds"]) == (name, rows, prompt_s)
        )
        for name in ("LST", "baseline")
    )
    return {
        "units per second, LST / baseline": lst["units_per_second"] / baseline["units_per_second"],
        "global steps, LST / baseline": lst["global_steps_per_unit"]
        / baseline["global_steps_per_unit"],
        "LST, cached / recomputed": lst["units_per_second"] * recomputed["LST"] / rows,
        "baseline, cached / recomputed": baseline["units_per_second"]
        * recomputed["baseline"]
        / rows,
    }


def _row(result: dict[str, Any]) -> list[str]:
    return [
        result["model"],
        str(result["rows"]),
        f"{result['prompt_seconds']:g} s",
        f"{result['first_unit_seconds']:.2f} s",
        f"{result['units_per_second']:.1f}",
        f"{result['global_steps_per_unit']:.2f}",
        f"{result['cache_bytes'] / 2**20:.0f} MiB",
    ]


if __name__ == "__main__":
    define_flags()
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
