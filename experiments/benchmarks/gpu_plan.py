r"""Plans the batches of the training step for GPUs that are not there, by compiling for them.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.gpu_plan \
        --output=experiments/benchmarks/results/gpu_plan.json

The extra `cuda` must be installed; no GPU and no driver are needed. For each model and remat policy
the step is compiled for one and for two rows, for an H100, with the attention kernels that `auto`
takes there and without autotuning. The memory that XLA plans is the same on an H200, which holds
more rows. The same is done at the start of `experiments.benchmarks.accelerator`, on the card that
is there.
"""

from __future__ import annotations

from typing import Any

import jax
from absl import flags

from experiments.aot.gpu_topologies import GPUS, gpu_device, memory_bytes
from experiments.benchmarks.step_timing import largest_batch, planned_bytes
from experiments.common import cli
from experiments.common.machine import command_line, versions
from experiments.common.paths import define_path
from experiments.common.step_config import PRESETS, preset
from lst_jax.files import write_json
from lst_jax.model.layers import REMAT_POLICIES
from lst_jax.sharding import make_mesh

# What JAX may take of a card where XLA_PYTHON_CLIENT_MEM_FRACTION is 0.95.
_USABLE = 0.95


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    flags.DEFINE_list("models", ["1b", "420m"], f"Presets: {', '.join(PRESETS)}.")
    define_path("output", "JSON file to write the results to.")


def main(argv: list[str]) -> None:
    """Plans and reports."""
    cli.check_no_arguments(argv)
    values = flags.FLAGS
    configs = {name: preset(name) for name in values.models}
    mesh = make_mesh(devices=[gpu_device("h100")])
    limits = {gpu: int(_USABLE * memory_bytes(gpu)) for gpu in GPUS}
    report: dict[str, Any] = {
        "command": command_line("gpu_plan"),
        "versions": versions("jax", "jaxlib", "flax", "jax-cuda13-plugin"),
        "limit_bytes": limits,
        "results": [],
    }
    jax.config.update("jax_platforms", "cpu")  # of what is computed beside the compilation
    for model, config in configs.items():
        for policy in REMAT_POLICIES:
            one, two = (planned_bytes(config, mesh, policy, rows) for rows in (1, 2))
            rows = {gpu: largest_batch(one, two, limit) for gpu, limit in limits.items()}
            result = {
                "model": model,
                "remat": policy,
                "one_row_bytes": one,
                "further_row_bytes": two - one,
                "rows": rows,
            }
            report["results"].append(result)
            print(_format(result), flush=True)
            if values.output:
                write_json(values.output, report)


def _format(result: dict[str, Any]) -> str:
    one, further = (result[x] / 2**30 for x in ("one_row_bytes", "further_row_bytes"))
    fit = ", ".join(f"{rows} on an {gpu}" for gpu, rows in result["rows"].items())
    name = f"{result['model']:>5} {result['remat']:>5}"
    return f"{name}: one row {one:.2f} GiB, each further one {further:.2f}; rows that fit: {fit}"


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
