"""Compiles the training step for TPU pods that are not there, and tabulates what it takes.

    python -m experiments.benchmarks.aot_tables \\
        --output=experiments/benchmarks/results/aot.json

The paper's 420m, 1b and 7b on 256 chips of v5e, v6e and v5p; 1b on 16, 64 and 256 chips at the
same rows a chip (weak scaling), under each remat policy, and on every kind of mesh. Each
configuration is compiled once (`experiments/aot_compile.py` says what the figures are), two to
twelve minutes on two cores, two hours in all; results are added to the file one by one, and those
that are there already, of the same model by the same versions, are not made again.
`--only="1b v5p"` compiles those with that in their names.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

from experiments.aot.compile import StepConfig, compile_step, library_versions
from experiments.aot.report_lines import totals_by_kind
from experiments.common import cli
from experiments.common.gin_steps import read_config
from experiments.common.machine import command_line
from experiments.common.mesh_text import parse_mesh
from experiments.common.paths import define_path
from lst_jax.files import write_json
from lst_jax.settings import quote

_MODELS = "experiments/configs/models"
_ROWS_PER_DEVICE = 1


# Sets of XLA's options by name. "overlap" makes gathers asynchronous, in parts that are fused with
# products, also where the compiler would take a synchronous reduction over more links.
XLA_OPTIONS = {
    "": {},
    "overlap": {
        "xla_tpu_prefer_async_allgather_to_allreduce": "true",
        "xla_enable_async_all_gather": "true",
        "xla_tpu_enable_async_collective_fusion": "true",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
        "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
        "xla_tpu_overlap_compute_collective_tc": "true",
    },
}


@dataclasses.dataclass(frozen=True)
class Pod:
    """One configuration: a model on slices of a topology, mesh, remat policy, XLA's options."""

    model: str
    topology: str
    mesh: str
    remat: str
    slices: int = 1
    options: str = ""

    @property
    def place(self) -> str:
        """Returns the slices."""
        return f"{self.slices} × {self.topology}" if self.slices > 1 else self.topology

    @property
    def name(self) -> str:
        """Returns what tells it from the others."""
        return f"{self.model} {self.place} {self.mesh} {self.remat} {self.options}".rstrip()


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
REMAT = tuple(Pod("1b", "v5p:2x2x4", "data=1,fsdp=16", x) for x in ("none", "dots", "full"))
MESHES = (
    Pod("1b", "v5p:4x4x4", "data=1,fsdp=64", "dots"),
    Pod("1b", "v5p:4x4x4", "data=4,fsdp=16", "dots"),
    Pod("1b", "v5p:4x4x4", "data=1,fsdp=16,tensor=4", "dots"),
    Pod("1b", "v5p:4x4x4", "data=4,fsdp=4,tensor=4", "dots"),
    Pod("1b", "v5p:4x4x4", "data=2,fsdp=64", "dots", slices=2),
)
TUNING = (
    Pod("1b", "v5p:8x8x4", "data=1,fsdp=256", "dots"),
    Pod("1b", "v5p:8x8x4", "data=1,fsdp=256", "dots", options="overlap"),
    Pod("1b", "v5p:8x8x4", "data=16,fsdp=16", "dots"),
    Pod("1b", "v6e:16x16", "data=1,fsdp=256", "dots"),
    Pod("1b", "v6e:16x16", "data=16,fsdp=16", "dots"),
)
CONFIGURATIONS = tuple(dict.fromkeys((*WEAK_SCALING, *REMAT, *PODS, *MESHES, *TUNING)))


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    define_path("output", "JSON file of the results.", required=True)
    flags.DEFINE_string("only", "", "Part of the names of the configurations to compile; all.")


def main(argv: Sequence[str]) -> None:
    """Compiles what the file does not hold yet, and prints the tables."""
    cli.check_no_arguments(list(argv))
    jax.config.update("jax_platforms", "cpu")
    path = pathlib.Path(flags.FLAGS.output)
    reports = json.loads(path.read_text()).get("reports", {}) if path.exists() else {}
    for pod in selected(flags.FLAGS.only):
        config = read_config([f"{_MODELS}/{pod.model}.gin"], [f"REMAT={pod.remat}"])
        options = XLA_OPTIONS[pod.options]
        if not _is_current(reports.get(pod.name, {}), config, options):
            print(f"compiling {pod.name}", file=sys.stderr, flush=True)
            mesh = parse_mesh(pod.mesh)
            reports[pod.name] = compile_step(
                config, pod.topology, mesh, pod.slices, _ROWS_PER_DEVICE, options
            )
            write_json(path, {"command": command_line("aot_tables"), "reports": reports})
    print(format_tables(reports))


def selected(part: str) -> list[Pod]:
    """Returns the configurations whose names have a part.

    Raises:
      ValueError: there are none.
    """
    pods = [pod for pod in CONFIGURATIONS if part in pod.name]
    if not pods:
        name = quote(CONFIGURATIONS[0].name)
        raise ValueError(f"only is {quote(part)}, expected a part of a name such as {name}")
    return pods


def _is_current(report: dict[str, Any], config: StepConfig, options: Mapping[str, str]) -> bool:
    """Returns whether a report of earlier is complete, of this model and by these versions."""
    setup = report.get("setup", {})
    return (
        setup.get("model") == json.loads(json.dumps(dataclasses.asdict(config.model)))
        and setup.get("compiler_options", {}) == options
        and setup["versions"] == library_versions()
        and ("schedule" in report or not report["fits"])
    )


def format_tables(reports: dict[str, Any]) -> str:
    """Returns Markdown: pods, weak scaling, remat policies, meshes, meshes and options of XLA."""
    tables = [
        _markdown(_COLUMNS, [_row(pod, reports[pod.name]) for pod in pods if pod.name in reports])
        for pods in (PODS, WEAK_SCALING, REMAT, MESHES, TUNING)
    ]
    return "\n\n".join(map("\n".join, tables))


_COLUMNS = (
    *("model", "chips", "mesh", "remat", "peak GiB", "TFLOP a chip (× the model's)"),
    *("ms of FLOPs / HBM / links", "MFU", "as scheduled", "without overlap", "warnings"),
)
# Of a report without a schedule, made by an earlier version.
_NO_SCHEDULE = "–"


def _remat(pod: Pod) -> str:
    return f"{pod.remat}, {pod.options}" if pod.options else pod.remat


def _row(pod: Pod, report: dict[str, Any]) -> list[str]:
    memory = report["memory"]
    size = f"{memory['peak'] / 2**30:.1f} of {memory['hbm'] / 2**30:.0f}"
    setup = [pod.model, pod.place, pod.mesh, _remat(pod), size]
    if not report["fits"]:
        remedy = f"remat {report['remedy']} does" if report["remedy"] else "under no policy"
        return [*setup, f"does not fit; {remedy}", *("",) * (len(_COLUMNS) - len(setup) - 1)]
    work, roofline = report["work"], report["roofline"]
    seconds = roofline["seconds"]
    links = seconds["interconnect"] + seconds.get("network", 0.0)
    times = (seconds["compute"], seconds["memory"], links)
    return [
        *setup,
        f"{work['flops'] / 1e12:.2f} ({work['flops'] / work['model_flops']:.2f})",
        " / ".join(f"{1e3 * x:.0f}" for x in times),
        f"{roofline['mfu']:.0%}",
        f"{report['schedule']['mfu']:.0%}" if "schedule" in report else _NO_SCHEDULE,
        f"{roofline['mfu_without_overlap']:.0%}",
        str(len(report["partitioner_warnings"])),
    ]


_SCHEDULE_COLUMNS = (
    *("model", "chips", "mesh", "collectives", "transfers", "beside products", "GB sent"),
    *("ms", "hidden ms", "exposed ms", "ms of operations", "ms of the step"),
)


def format_schedules(reports: dict[str, Any]) -> str:
    """Returns Markdown: collectives by kind of every configuration whose schedule is known."""
    rows = []
    for pod in CONFIGURATIONS:
        schedule = reports.get(pod.name, {}).get("schedule")
        for kind, total in totals_by_kind(schedule["collectives"] if schedule else ()).items():
            times = (total.seconds, total.seconds - total.exposed_seconds, total.exposed_seconds)
            step = (schedule["operation_seconds"], schedule["step_seconds"])
            rows.append(
                [
                    *(pod.model, pod.place, f"{pod.mesh} {_remat(pod)}", kind),
                    *(f"{x:,.0f}" for x in (total.transfers, total.beside_products)),
                    f"{total.sent_bytes / 1e9:.2f}",
                    *(f"{1e3 * x:.1f}" for x in (*times, *step)),
                ]
            )
    return "\n".join(_markdown(_SCHEDULE_COLUMNS, rows))


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
