"""Compiles the training step for TPU pods that are not there, and tabulates what it takes.

    python -m experiments.benchmarks.aot_tables \\
        --output=experiments/benchmarks/results/aot.json

The paper's 420m, 1b and 7b on 256 chips of v5e, v6e and v5p, then 1b on 16, 64 and 256 chips at
the same rows a chip (weak scaling). Each configuration is compiled once
(`experiments/aot_compile.py` says what the figures are), some minutes on two cores; results are
added to the file one by one, and those that are there already are not made again.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from experiments import cli
from experiments.aot import compile_step
from experiments.aot_compile import parse_mesh, read_config
from experiments.outputs import write_json

_MODELS = "experiments/configs/models"


@dataclasses.dataclass(frozen=True)
class Pod:
    """One configuration: a model on a topology, its mesh and its remat policy."""

    model: str
    topology: str
    mesh: str
    remat: str

    @property
    def name(self) -> str:
        return f"{self.model} {self.topology} {self.mesh} {self.remat}"


# 420m has widths that 256 devices do not divide, so parameters are split 128 ways, twice.
PODS = (
    Pod("420m", "v5e:16x16", "data=2,fsdp=128", "dots"),
    Pod("420m", "v6e:16x16", "data=2,fsdp=128", "dots"),
    Pod("420m", "v5p:8x8x4", "data=2,fsdp=128", "dots"),
    Pod("1b", "v5e:16x16", "data=1,fsdp=256", "dots"),
    Pod("1b", "v6e:16x16", "data=1,fsdp=256", "dots"),
    Pod("1b", "v5p:8x8x4", "data=1,fsdp=256", "dots"),
    Pod("7b", "v5e:16x16", "data=1,fsdp=256", "full"),
    Pod("7b", "v6e:16x16", "data=1,fsdp=256", "full"),
    Pod("7b", "v5p:8x8x4", "data=1,fsdp=256", "dots"),
)
WEAK_SCALING = (
    Pod("1b", "v5p:2x2x4", "data=1,fsdp=16", "dots"),
    Pod("1b", "v5p:4x4x4", "data=1,fsdp=64", "dots"),
    Pod("1b", "v5p:8x8x4", "data=1,fsdp=256", "dots"),
)


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    flags.DEFINE_string("output", None, "JSON file of the results.", required=True)
    flags.DEFINE_integer("rows_per_device", 1, "Rows of each device.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Compiles what the file does not hold yet, and prints the tables."""
    cli.check_no_arguments(list(argv))
    jax.config.update("jax_platforms", "cpu")
    path, rows = pathlib.Path(flags.FLAGS.output), flags.FLAGS.rows_per_device
    reports = json.loads(path.read_text())["reports"] if path.exists() else {}
    for pod in dict.fromkeys((*PODS, *WEAK_SCALING)):
        if pod.name not in reports:
            print(f"compiling {pod.name}", file=sys.stderr, flush=True)
            config = read_config([f"{_MODELS}/{pod.model}.gin"], [f"REMAT={pod.remat}"])
            mesh = parse_mesh(pod.mesh)
            reports[pod.name] = compile_step(config, pod.topology, mesh, 1, rows)
            command = " ".join(["python -m experiments.benchmarks.aot_tables", *sys.argv[1:]])
            write_json(path, {"command": command, "reports": reports})
    print(format_tables(reports))


def format_tables(reports: dict[str, Any]) -> str:
    """Markdown: the pods, then the weak scaling."""
    scaling = [_scaling_row(pod, reports[pod.name]) for pod in WEAK_SCALING]
    return "\n".join(
        [
            *_markdown(_POD_COLUMNS, [_pod_row(pod, reports[pod.name]) for pod in PODS]),
            "",
            *_markdown(_SCALING_COLUMNS, scaling),
        ]
    )


_POD_COLUMNS = (
    *("model", "pod", "mesh", "remat", "peak GiB", "of", "TFLOP a chip", "of the model's"),
    *("HBM ms", "FLOPs ms", "links ms", "step ms", "MFU", "without overlap", "warnings"),
)
_SCALING_COLUMNS = (
    *("chips", "mesh", "rows", "peak GiB", "TFLOP a chip", "HBM GB", "links GB", "MFU"),
)


def _pod_row(pod: Pod, report: dict[str, Any]) -> list[str]:
    memory = report["memory"]
    size = [f"{memory['peak'] / 2**30:.1f}", f"{memory['hbm'] / 2**30:.0f}"]
    setup = [pod.model, pod.topology, pod.mesh, pod.remat, *size]
    if not report["fits"]:
        remedy = report["remedy"] or "none"
        return [*setup, f"does not fit; remat {remedy} does", *("",) * 8]
    work, roofline = report["work"], report["roofline"]
    seconds = roofline["seconds"]
    times = (seconds["memory"], seconds["compute"], seconds["interconnect"])
    return [
        *setup,
        f"{work['flops'] / 1e12:.1f}",
        f"{work['flops'] / work['model_flops']:.2f}",
        *(f"{1e3 * x:.0f}" for x in (*times, roofline["step_seconds"])),
        f"{roofline['mfu']:.0%}",
        f"{roofline['mfu_without_overlap']:.0%}",
        str(len(report["partitioner_warnings"])),
    ]


def _scaling_row(pod: Pod, report: dict[str, Any]) -> list[str]:
    work, setup = report["work"], report["setup"]
    chips = str(setup["mesh"]["data"] * setup["mesh"]["fsdp"] * setup["mesh"]["tensor"])
    return [
        chips,
        pod.mesh,
        str(setup["rows"]),
        f"{report['memory']['peak'] / 2**30:.1f}",
        f"{work['flops'] / 1e12:.2f}",
        f"{work['memory_bytes'] / 1e9:.0f}",
        f"{sum(work['collective_bytes'].values()) / 1e9:.1f}",
        f"{report['roofline']['mfu']:.0%}",
    ]


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
