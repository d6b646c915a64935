r"""Compiles the encoder of units for TPU chips that are not there, and says what it takes.

    python -m experiments.benchmarks.encoder_aot \
        --output=experiments/benchmarks/results/encoder_aot.json

HuBERT base up to a layer, and the nearest of 500 centroids, for a batch of one static length. The
speed is a bound: the larger of what products take at the chip's peak and what memory takes.
Products of float32 are six of bfloat16 each.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags

from experiments.aot.hlo_costs import hlo_costs
from experiments.aot.topologies import tpu_devices
from experiments.common import cli
from experiments.common.machine import command_line, versions
from experiments.common.paths import define_path
from lst_jax.files import write_json
from lst_jax.hardware import tpu_chip
from lst_jax.settings import given
from lst_jax.sharding import make_mesh, mesh_context, replicated
from lst_jax.speech.quantizers import KMeans
from lst_jax.speech.wav2vec2 import Wav2Vec2
from lst_jax.speech.wav2vec2_config import Wav2Vec2Config

_TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1")
_RATE = 16_000
_UNITS = 500
_PASSES = {"bfloat16": 1, "float32": 6}  # products of bfloat16 that a product is made of


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    flags.DEFINE_integer("rows", 30, "Recordings of a batch.", 1)
    flags.DEFINE_integer("seconds", 8, "Their length.", 1)
    flags.DEFINE_integer("layer", 9, "The layer whose states are quantized.", 0, 12)
    define_path("output", "JSON file to write the results to.")


def main(argv: list[str]) -> None:
    """Compiles and reports."""
    cli.check_no_arguments(argv)
    values = flags.FLAGS
    jax.config.update("jax_platforms", "cpu")  # of what is computed beside the compilation
    report: dict[str, Any] = {
        "command": command_line("encoder_aot"),
        "versions": versions("jax", "libtpu"),
        "rows": values.rows,
        "seconds": values.seconds,
        "layer": values.layer,
        "unit_count": _UNITS,
        "results": [],
    }
    for topology in _TOPOLOGIES:
        for dtype in _PASSES:
            result = _compile(topology, dtype, values.rows, values.seconds, values.layer)
            report["results"].append(result)
            print(result, flush=True)
            if values.output:
                write_json(values.output, report)


def _compile(topology: str, dtype: Any, rows: int, seconds: int, layer: int) -> dict[str, Any]:
    """Returns what one batch takes on one chip."""
    device = tpu_devices(topology)[0]
    chip, mesh = tpu_chip(device.device_kind), make_mesh(devices=[device])
    module = Wav2Vec2(Wav2Vec2Config(), dtype=dtype)
    waveforms = jax.ShapeDtypeStruct((rows, seconds * _RATE), jnp.float32)
    lengths = jax.ShapeDtypeStruct((rows,), jnp.int32)
    centroids = jax.ShapeDtypeStruct((_UNITS, module.config.hidden_size), jnp.float32)
    parameters = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), waveforms))

    def encode(parameters: Any, centroids: Any, waveforms: Any, lengths: Any) -> jax.Array:
        states: Any = module.apply(parameters, waveforms, lengths, layer=layer)
        return KMeans(centroids).classes(states.hidden[layer])

    with mesh_context(mesh):
        program = jax.jit(encode, in_shardings=replicated(mesh))
        compiled = program.lower(parameters, centroids, waveforms, lengths).compile()
    costs = hlo_costs(given(compiled.as_text(), "as_text", "the compiled program"))
    memory: Any = compiled.memory_analysis()
    compute = costs.matrix_flops * _PASSES[dtype] / chip.flops_per_second
    traffic = costs.memory_bytes / chip.memory_bandwidth
    return {
        "chip": chip.name,
        "dtype": dtype,
        "flops": costs.matrix_flops,
        "memory_bytes": costs.memory_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "compute_seconds": compute,
        "memory_seconds": traffic,
        "hours_an_hour": rows * seconds / max(compute, traffic),
        "not_counted": sorted(costs.unknown),
    }


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
