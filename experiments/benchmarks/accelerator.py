r"""Measures an accelerator in one call and in a given time: is it right, and how fast is it?

    python -m experiments.benchmarks.accelerator --minutes=9 --output=runs/accelerator

For a machine that can be had for minutes, with JAX, Flax, Optax, NumPy and absl alone. The most
valuable comes first, and every result is appended to `accelerator.jsonl` in the output directory
the moment it exists (`experiments/benchmarks/job_runner.py`):

| stage       | what is measured                                                                 |
|-------------|----------------------------------------------------------------------------------|
| device      | card, driver, versions; rate of a large matrix product, bandwidth of a copy      |
| numerics    | every attention backend against the dense one: values and gradients, bfloat16     |
|             | and float32, the four interval shapes, empty ranges, documents                   |
| step        | the training step with the largest batches that fit under each remat policy      |
| trace       | a profiler trace of three steps, and where their time went                       |
| attention   | the four attentions at the model's shapes against what else a user could call    |
| parts       | the step's parts: encoder, global transformer, decoder, loss, optimizer          |
| decoding    | cached generation of speech, LST and baseline                                    |
| convergence | 200 steps in bfloat16 against float32                                            |

Which batches fit is found by compiling: the step is compiled without autotuning for one and for two
rows, the memory that XLA plans grows by as much for every further row, and the largest number that
should fit is compiled and looked at once more before it runs.

Batches are made up: rows of the mixture's typical documents
(`experiments/aot/attention_estimates.py`). Models are presets in Python
(`experiments/common/step_config.py`). The first of `--models` goes through all stages, every other
one through `step`; decoding and convergence take the last. On a CPU the default model is `tiny`.

A kernel that hangs or breaks the device's context costs its own job: the jobs run in a worker
process, and another one goes on after it. The exit status is 0 if every job that began ended well,
else 1. Jobs that no time was left for do not count as failures.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import flags

from experiments.benchmarks.accelerator_stages import STAGES, Bench
from experiments.benchmarks.job_runner import (
    JobRunner,
    Record,
    last_run,
    read_records,
    supervise,
)
from experiments.common import cli
from experiments.common.machine import command_line, device_name, process_age
from experiments.common.paths import define_path
from experiments.common.step_config import PRESETS
from lst_jax.model.attention import BACKENDS

_MOST_MINUTES = 24 * 60
_MODULE = "experiments.benchmarks.accelerator"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "tokamax", "jax-cuda13-plugin")
_PACKAGES += ("jax-cuda12-plugin", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "libtpu")


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    flags.DEFINE_float("minutes", 9.0, "Minutes that all of it may take.")
    define_path("output", "Directory for the results.", required=True)
    flags.DEFINE_list("stages", list(STAGES), "Which stages to run, in this order.")
    flags.DEFINE_list("models", None, f"Presets ({', '.join(PRESETS)}); 1b,420m by default.")
    flags.DEFINE_integer("most_rows", 16, "Rows of a batch at most.", lower_bound=1)
    flags.DEFINE_enum("attention", "auto", BACKENDS, "Attention backend of the models.")
    flags.DEFINE_float("worker_deadline", None, "Of a worker process; set by the supervisor.")


def main(argv: Sequence[str]) -> None:
    """Runs the stages and exits with 1 if a job failed."""
    cli.check_no_arguments(list(argv))
    # Importing JAX took seconds of the budget.
    begin = time.monotonic() - process_age()
    values = flags.FLAGS
    stages = _chosen("stages", values.stages, STAGES)
    models = _chosen("models", values.models, PRESETS) if values.models else None
    if not 0 < values.minutes <= _MOST_MINUTES:
        raise ValueError(f"minutes is {values.minutes}, expected 0 … {_MOST_MINUTES}")
    output = pathlib.Path(values.output)
    output.mkdir(parents=True, exist_ok=True)
    if values.worker_deadline:
        _work(output, values.worker_deadline, stages, models)
        return
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    deadline = begin + 60 * values.minutes
    path = output / "accelerator.jsonl"
    known = len(read_records(path))
    worker = [sys.executable, "-m", _MODULE, *sys.argv[1:], f"--worker_deadline={deadline}"]
    code = supervise(worker, deadline)
    found = read_records(path)[known:]
    if code or any(record.get("status") in ("failed", "cut off") for record in found):
        sys.exit(1)


def _work(
    output: pathlib.Path, deadline: float, stages: Sequence[str], models: Sequence[str] | None
) -> None:
    """Runs the jobs that no worker of this run has begun."""
    values, path = flags.FLAGS, output / "accelerator.jsonl"
    if models is None:
        models = ["tiny"] if jax.default_backend() == "cpu" else ["1b", "420m"]
    # The run's name is its deadline, which all its workers have in common.
    run = [x for x in last_run(read_records(path)) if x.get("run", deadline) == deadline]
    earlier = run if run and run[0].get("run") == deadline else []
    begun = [(x["stage"], x["job"]) for x in earlier if x.get("status") in ("begun", "skipped")]
    runner = JobRunner(path, deadline, _check_device, begun)
    if not earlier:
        runner.append(_describe(models, values.minutes) | {"run": deadline})
    bench = Bench(models, output, values.most_rows, values.attention)
    bench.recall(earlier)
    runner.run(bench.jobs(stages))


def _check_device() -> None:
    """Raises an error if the device computes no more."""
    jax.block_until_ready(jnp.ones(8) + 1)


def _chosen(name: str, texts: Sequence[str], known: Sequence[str]) -> list[str]:
    """Returns the values of a flag, each once and known.

    Raises:
      ValueError: one is unknown, or there are none.
    """
    unknown = [text for text in texts if text not in known]
    if unknown or not texts:
        given = ",".join(texts)[:80]
        raise ValueError(f"{name} is {given!r}, expected some of {','.join(known)}")
    return list(dict.fromkeys(texts))


def _describe(models: Sequence[str], minutes: float) -> Record:
    """Returns what is run, on what, and with what: the first record of a run."""
    device = jax.local_devices()[0]
    versions = {}
    for name in _PACKAGES:
        if importlib.util.find_spec(name.replace("-", "_")) or "nvidia" in name or "jax" in name:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
    return {
        "stage": "run",
        "format": 1,
        "command": command_line("accelerator"),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "minutes": minutes,
        "models": list(models),
        "device": device_name(),
        "platform": device.platform,
        "capability": getattr(device, "compute_capability", None),
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "driver": _driver_version(),
        "python": platform.python_version(),
        "versions": versions,
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("XLA_")},
    }


def _driver_version() -> str | None:
    command = shutil.which("nvidia-smi")
    if not command:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    return result.stdout.strip().splitlines()[0] if result.stdout.strip() else None


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
