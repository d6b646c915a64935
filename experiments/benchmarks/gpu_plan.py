r"""Plans the batches of the training step for GPUs that are not there, by compiling for them.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.gpu_plan \
        --output=experiments/benchmarks/results/gpu_plan.json

The extra `cuda` must be installed; no GPU and no driver are needed. For each model, remat policy
and GPU the step is compiled for one and for two rows, with the attention kernels that `auto` takes
for that card and without autotuning; the memory that XLA plans is what a row takes. The same is
done at the start of `experiments.benchmarks.accelerator`, on the card that is there.
"""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
import time
from typing import Any

import jax
from absl import flags

from experiments.aot.gpu_topologies import GPUS, gpu_device, memory_bytes
from experiments.benchmarks.step_timing import largest_batch, planned_bytes
from experiments.common import cli
from experiments.common.outputs import write_json
from experiments.common.step_config import PRESETS, preset
from lst_jax.model.layers import REMAT_POLICIES
from lst_jax.sharding import make_mesh

# What JAX may take of a card where XLA_PYTHON_CLIENT_MEM_FRACTION is 0.95.
_USABLE = 0.95


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    flags.DEFINE_list("models", ["1b", "420m"], f"Presets: {', '.join(PRESETS)}.")
    flags.DEFINE_list("gpus", list(GPUS), "Cards.")
    flags.DEFINE_string("output", None, "JSON file to write the results to.")


def main(argv: list[str]) -> None:
    """Plans and reports."""
    cli.check_no_arguments(argv)
    values = flags.FLAGS
    devices = {name: gpu_device(name) for name in values.gpus}
    configs = {name: preset(name) for name in values.models}
    packages = ("jax", "jaxlib", "flax", "jax-cuda13-plugin")
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "experiments.benchmarks.gpu_plan", *sys.argv[1:]]),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "results": [],
    }
    jax.config.update("jax_platforms", "cpu")  # of what is computed beside the compilation
    for gpu, device in devices.items():
        mesh, limit = make_mesh(devices=[device]), int(_USABLE * memory_bytes(gpu))
        for model, config in configs.items():
            for policy in REMAT_POLICIES:
                start = time.perf_counter()
                one, two = (planned_bytes(config, mesh, policy, rows) for rows in (1, 2))
                result = {
                    "gpu": gpu,
                    "model": model,
                    "remat": policy,
                    "one_row_bytes": one,
                    "further_row_bytes": two - one,
                    "limit_bytes": limit,
                    "rows": largest_batch(one, two, limit),
                    "compile_seconds": round((time.perf_counter() - start) / 2, 1),
                }
                report["results"].append(result)
                print(_format(result), flush=True)
                if values.output:
                    write_json(values.output, report)


def _format(result: dict[str, Any]) -> str:
    one, further = (result[x] / 2**30 for x in ("one_row_bytes", "further_row_bytes"))
    return (
        f"{result['gpu']} {result['model']:>5} {result['remat']:>5}: {one:6.2f} GiB for one row, "
        f"{further:5.2f} for each further one; {result['rows']} rows fit"
    )


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
