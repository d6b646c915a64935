r"""Compares the speech encoder with transformers' PyTorch, both of HuBERT base's size.

    pip install transformers
    python -m experiments.benchmarks.speech_encoder \
        --output=experiments/benchmarks/results/speech_encoder.json

Both have the same random weights and hear the same noise, in float32, on all cores of this machine,
and take turns; ratios are of medians. Parts are measured alone. Also: how far their hidden states
are apart, FLOPs of a second of audio, and how many units change in bfloat16, of centroids that were
fit to the encoder's own features.
"""

from __future__ import annotations

import functools
import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from data_pipelines.speech.hugging_face import SAMPLE_RATE, read_model
from experiments.aot.jaxpr_flops import jaxpr_flops
from experiments.common import cli
from experiments.common.machine import command_line, cpu_model, versions
from experiments.common.paths import define_path
from lst_jax.config import ComputeType
from lst_jax.files import write_json
from lst_jax.settings import given, require
from lst_jax.speech.wav2vec2 import (
    EncoderLayer,
    FeatureExtractor,
    PositionalConvolution,
    Wav2Vec2,
    apply_model,
)
from lst_jax.speech.wav2vec2_config import Wav2Vec2Config, frame_count

_LAYER, _UNITS = 6, 100  # of textless-lib's HuBERT
_SECONDS_OF_COUNT = 10

_Run = Callable[[], Any]


def parts_of(config: Wav2Vec2Config) -> dict[str, Callable[..., jax.Array]]:
    """Returns functions of parameters and an input, by the parts' names."""

    def convolutions(params: Any, waveforms: jax.Array) -> jax.Array:
        module = FeatureExtractor(config)
        x = module.apply({"params": params["feature_extractor"]}, waveforms[..., None], None)
        return jnp.asarray(x)

    def positional(params: Any, x: jax.Array) -> jax.Array:
        module = PositionalConvolution(config)
        return jnp.asarray(module.apply({"params": params["positional"]}, x, None))

    def layers(params: Any, x: jax.Array) -> jax.Array:
        for i in range(config.num_hidden_layers):
            x = jnp.asarray(EncoderLayer(config).apply({"params": params[f"layer_{i}"]}, x, None))
        return x

    def everything(params: Any, waveforms: jax.Array) -> jax.Array:
        return apply_model(Wav2Vec2(config), {"params": params}, waveforms).hidden[-1]

    return {
        "convolutions": convolutions,
        "positional convolution": positional,
        "layers": layers,
        "everything": everything,
    }


def count_flops(config: Wav2Vec2Config) -> list[dict[str, Any]]:
    """Returns the FLOPs of each part a second of audio, of its products and as XLA counts them.

    Rows are of ten seconds, on which those of attention depend. XLA counts what is computed element
    by element, too.
    """
    samples = _SECONDS_OF_COUNT * SAMPLE_RATE
    waveform = jax.ShapeDtypeStruct((1, samples), jnp.float32)
    frames = frame_count(config, samples)
    states = jax.ShapeDtypeStruct((1, frames, config.hidden_size), jnp.float32)
    params = jax.eval_shape(Wav2Vec2(config).init, jax.random.key(0), waveform)["params"]
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    counts = []
    for name, part in parts_of(config).items():
        x = waveform if name in ("convolutions", "everything") else states
        traced = jax.jit(part).trace(params, x)
        analysis = given(traced.lower().compile().cost_analysis(), "cost analysis", "XLA's count")
        counts.append(
            {
                "part": name,
                "products": jaxpr_flops(traced.jaxpr).flops / _SECONDS_OF_COUNT,
                "xla": float(analysis["flops"]) / _SECONDS_OF_COUNT,
            }
        )
    return counts


def take_turns(sides: dict[str, _Run], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each side, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(x) for name, x in times.items()}


def fit_centroids(features: np.ndarray, count: int, seed: int, rounds: int = 20) -> np.ndarray:
    """Returns centroids (K, d) of features (n, d) by Lloyd's algorithm."""
    rng = np.random.default_rng(seed)
    centroids = features[rng.choice(len(features), count, replace=False)]
    for _ in range(rounds):
        units = nearest(features, centroids)
        sizes = np.bincount(units, minlength=count)
        sums = np.zeros_like(centroids)
        np.add.at(sums, units, features)
        centroids = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centroids)
    return centroids


def nearest(features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns the nearest centroids (n,) of features (n, d)."""
    return (np.square(centroids).sum(1) - 2 * features @ centroids.T).argmin(1)


def make_sounds(rows: int, seconds: int, seed: int) -> np.ndarray:
    """Returns waveforms (B, n) of ten sounds a second, each harmonics of a tone and noise."""
    rng = np.random.default_rng(seed)
    length = SAMPLE_RATE // 10
    time_s = np.arange(length) / SAMPLE_RATE
    harmonics = np.arange(1, 20)[:, None]
    pitch = rng.uniform(80, 300, (rows * seconds * 10, 1, 1))
    heights = rng.exponential(1, (rows * seconds * 10, 19, 1)) / harmonics
    tones = (heights * np.sin(2 * np.pi * pitch * harmonics * time_s)).sum(1)
    noise = rng.normal(size=tones.shape) * rng.uniform(0, 1, (len(tones), 1))
    return ((tones + noise) * 0.1).astype(np.float32).reshape(rows, -1)


def compare_bfloat16(config: Wav2Vec2Config, params: Any) -> dict[str, Any]:
    """Returns the share of units that differ in bfloat16, of centroids fit to other sounds."""

    def features(dtype: ComputeType, seed: int) -> np.ndarray:
        model = Wav2Vec2(config, dtype=dtype)
        run = jax.jit(functools.partial(apply_model, model, layer=_LAYER))
        x = run({"params": params}, make_sounds(4, 10, seed)).hidden[-1]
        return np.asarray(x, np.float32).reshape(-1, config.hidden_size)

    centroids = fit_centroids(features("float32", seed=0), _UNITS, seed=0)
    exact, near = features("float32", seed=1), features("bfloat16", seed=1)
    units = [nearest(x, centroids) for x in (exact, near)]
    return {
        "layer": _LAYER,
        "units": _UNITS,
        "frames": len(units[0]),
        "changed": float(np.mean(units[0] != units[1])),
        "units_in_use": len(np.unique(units[0])),
        "relative_error": float(np.linalg.norm(near - exact) / np.linalg.norm(exact)),
    }


def measure(rounds: int, shapes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Returns what is written: times of both sides, their difference, FLOPs and bfloat16."""
    torch, transformers = _import("torch"), _import("transformers")
    torch.manual_seed(0)
    theirs = transformers.HubertModel(transformers.HubertConfig()).eval()
    with tempfile.TemporaryDirectory() as directory:
        theirs.save_pretrained(directory)
        model = read_model(directory)
    config, params = model.config, jax.device_put(model.params["params"])
    rng = np.random.default_rng(0)
    results = []
    for rows, seconds in shapes:
        waveforms = rng.normal(size=(rows, seconds * SAMPLE_RATE)).astype(np.float32)
        frames = frame_count(config, waveforms.shape[1])
        states = rng.normal(size=(rows, frames, config.hidden_size)).astype(np.float32)
        for name, part in parts_of(config).items():
            x = waveforms if name in ("convolutions", "everything") else states
            compiled, ours_x, theirs_x = jax.jit(part), jnp.asarray(x), torch.tensor(x)
            ours = functools.partial(_finish, compiled, params, ours_x)
            other = functools.partial(_without_gradients, torch, _theirs(theirs, name), theirs_x)
            found = take_turns({"ours": ours, "theirs": other}, rounds)
            difference = np.abs(np.asarray(ours()) - other().numpy()).max()
            results.append(
                {
                    "rows": rows,
                    "seconds": seconds,
                    "part": name,
                    "ours_ms": round(1e3 * found["ours"], 1),
                    "theirs_ms": round(1e3 * found["theirs"], 1),
                    "speed": round(found["theirs"] / found["ours"], 3),
                    "largest_difference": float(difference),
                }
            )
            print(_format(results[-1]), flush=True)
    return {
        "versions": versions("jax", "jaxlib", "torch", "transformers"),
        "results": results,
        "flops_per_second": count_flops(config),
        "bfloat16": compare_bfloat16(config, params),
    }


def _finish(compiled: Callable[..., jax.Array], *arguments: Any) -> jax.Array:
    return compiled(*arguments).block_until_ready()


def _without_gradients(torch: Any, run: Callable[[Any], Any], x: Any) -> Any:
    with torch.no_grad():
        return run(x)


def _theirs(model: Any, part: str) -> Callable[[Any], Any]:
    def layers(x: Any) -> Any:
        for layer in model.encoder.layers:
            x = layer(x)
        return x

    return {
        "convolutions": lambda x: model.feature_extractor(x).transpose(1, 2),
        "positional convolution": model.encoder.pos_conv_embed,
        "layers": layers,
        "everything": lambda x: model(x).last_hidden_state,
    }[part]


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"no {error.name}, expected it: pip install {error.name}") from error


def _format(result: dict[str, Any]) -> str:
    return (
        f"{result['rows']} × {result['seconds']} s, {result['part']}: {result['ours_ms']:,.0f} ms, "
        f"{result['speed']:.2f} of transformers' speed ({result['theirs_ms']:,.0f} ms)"
    )


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    flags.DEFINE_integer("rounds", 9, "Turns of each side.", lower_bound=1)
    flags.DEFINE_list("shapes", ["1x10", "4x5"], "Rows and seconds of the batches.")
    define_path("output", "JSON file to write the results to.")


def _read_shape(text: str) -> tuple[int, int]:
    rows, _, seconds = text.partition("x")
    good = rows.isdecimal() and seconds.isdecimal() and 0 < int(rows) < 100 > int(seconds) > 0
    require(good, "shapes", text, "rows and seconds, 1x1 … 99x99")
    return int(rows), int(seconds)


def main(argv: Sequence[str]) -> None:
    """Measures and reports."""
    cli.check_no_arguments(list(argv))
    shapes = [_read_shape(text) for text in flags.FLAGS.shapes]
    report = {
        "command": command_line("speech_encoder"),
        "device": cpu_model(),
        "cores": os.cpu_count(),
        "rounds": flags.FLAGS.rounds,
        "load_average_before": round(os.getloadavg()[0], 2),
        **measure(flags.FLAGS.rounds, shapes),
    }
    if flags.FLAGS.output:
        write_json(flags.FLAGS.output, report)


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
