r"""Compiles the Mosaic attention kernels for a Hopper GPU that is not there; says what they take.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.gpu_kernels \
        --output=experiments/benchmarks/results/gpu_kernels.json

The extra `cuda` must be installed; no GPU and no driver are needed. Registers and spills are those
of ptxas for sm_90a; spilled registers would go through memory at every turn of a kernel's loop.
"""

from __future__ import annotations

import os
import pathlib
import re
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from experiments.aot.gpu_topologies import gpu_device
from experiments.common import cli
from experiments.common.machine import command_line, versions
from experiments.common.paths import define_path
from lst_jax.files import write_json
from lst_jax.model.attention.mosaic_gpu import mosaic_gpu_attention
from lst_jax.model.key_ranges import KeyRange
from lst_jax.sharding import make_mesh

# Positions and heads of the arrays; a kernel takes the same for any number.
_SHAPE = (2, 4096, 16)
_FIGURES = {
    "registers": r"Used (\d+) registers",
    "spilled_bytes": r"(\d+) bytes spill stores",
    "stack_bytes": r"(\d+) bytes stack frame",
}


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    flags.DEFINE_multi_integer("width", [64, 128], "Features of a head.")
    define_path("output", "JSON file to write the results to.")


def main(argv: list[str]) -> None:
    """Compiles each kernel for each width and reports."""
    cli.check_no_arguments(argv)
    mesh = make_mesh(devices=[gpu_device("h100")])
    jax.config.update("jax_platforms", "cpu")  # of what is computed beside the compilation
    results = []
    for width in flags.FLAGS.width:
        with tempfile.TemporaryDirectory() as directory:
            os.environ |= {
                "MOSAIC_GPU_DUMP_TO": directory,
                "MOSAIC_GPU_DUMP_PTXAS": "1",
                "MOSAIC_GPU_DUMP_RESOURCES": "1",
            }
            _compile(width, mesh)
            found = [_read(path, width) for path in sorted(pathlib.Path(directory).glob("*.ptxas"))]
        if not found:
            raise ValueError(f"width is {width}: the compilation left no reports of ptxas")
        for result in found:
            print(" ".join(f"{key}={value}" for key, value in result.items()), flush=True)
        results += found
    if flags.FLAGS.output:
        report = {
            "command": command_line("gpu_kernels"),
            "versions": versions("jax", "jaxlib", "jax-cuda13-plugin"),
            "results": results,
        }
        write_json(flags.FLAGS.output, report)


def _compile(width: int, mesh: jax.sharding.Mesh) -> None:
    """Compiles attention over heads of `width` features, forward and backward."""

    def loss(q: Array, k: Array, v: Array, start: Array, end: Array) -> Array:
        return mosaic_gpu_attention(q, k, v, KeyRange(start, end)).astype(jnp.float32).sum()

    sharding = NamedSharding(mesh, PartitionSpec())
    q = jax.ShapeDtypeStruct((*_SHAPE, width), jnp.bfloat16, sharding=sharding)
    ends = jax.ShapeDtypeStruct(_SHAPE[:2], jnp.int32, sharding=sharding)
    with jax.set_mesh(mesh):
        jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, q, q, ends, ends).compile()


def _read(path: pathlib.Path, width: int) -> dict[str, Any]:
    """Returns what ptxas and Mosaic reported of a kernel."""
    text = path.read_text(encoding="utf-8")
    resources = path.with_suffix(".resources.txt").read_text(encoding="utf-8")
    name = re.match(r"mosaic_gpu_(\w+?)_kernel", path.name)
    shared = re.search(r"smem_scratch_bytes=(\d+)", resources)
    figures = {key: re.search(pattern, text) for key, pattern in _FIGURES.items()}
    found = {key: int(match[1]) for key, match in figures.items() if match}
    if not (name and shared and len(found) == len(figures)):
        raise ValueError(f"{path.name} is not a report of ptxas as it was")
    return {
        "kernel": name[1],
        "width": width,
        **found,
        "shared_memory_bytes": int(shared[1]),
    }


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
