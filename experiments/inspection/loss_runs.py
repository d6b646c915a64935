"""Short training runs of any commit, for what compares their losses.

A side of a comparison is a commit, the files as they are, or a file of recorded losses. Commits are
unpacked into a temporary directory and trained there by their own `experiments.train`, so each side
is its own code throughout, and no side needs to know of this module. What is relied on is what has
not changed since the first of them: the flags of that binary, the macros of the run files, and the
names in `metrics.jsonl`.

On CPUs XLA's flags are fixed, whatever `XLA_FLAGS` says: one instruction set (AVX2) and no threads
that part a sum, so that machines of one architecture agree, and no expensive passes of LLVM, whose
time is not worth it for a few steps.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from lst_jax.settings import PositiveInt, configuration, quote
from lst_jax.sharding import MESH_AXES, MeshConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]  # a checkout, or where the wheel is
HERE = "."
MEASURES = ("loss_text", "loss_speech", "gradient_norm")

# The tiny model on rows of a few documents: seconds on a CPU. Records of version 1 open in every
# commit.
_DATA = "tests/testdata/version1"
TINY_FILES = (
    "experiments/configs/models/tiny.gin",
    "experiments/configs/data/speech_text.gin",
    "experiments/configs/runs/tiny.gin",
)
TINY_BINDINGS = (
    f"TOKENIZER={_DATA}/tokenizer.model",
    f"SPEECH_RECORDS={_DATA}/speech_records",
    f"TEXT_RECORDS={_DATA}/text_records",
    "UNIT_COUNT=20",
    "BATCH_ROWS=4",
    "NUM_PATCHES=64",
    "NUM_TOKENS=96",
)
INSTRUCTION_SET = "AVX2"

Losses = list[dict[str, float]]


@configuration
class RunSettings:
    """What a side trains; the two sides of a comparison may differ in it.

    Attributes:
      files: Gin files; a relative path is one of the side's own files where it has it.
      bindings: `NAME=VALUE` each, after the files.
      mesh: sizes of the mesh axes; None: the Gin files' on one CPU device.
      steps: to train.
    """

    files: tuple[str, ...] = TINY_FILES
    bindings: tuple[str, ...] = TINY_BINDINGS
    mesh: MeshConfig | None = None
    steps: PositiveInt = 20

    def num_devices(self) -> int:
        """Returns the devices that the mesh takes on a CPU; an axis of -1 takes one."""
        sizes = [getattr(self.mesh, axis) for axis in MESH_AXES] if self.mesh else []
        return math.prod(size for size in sizes if size != -1)


def find_code(side: str, directory: pathlib.Path) -> pathlib.Path:
    """Returns the root of a side's code.

    Args:
      side: a commit in Git's words, or `.` for the files as they are.
      directory: where a commit is unpacked to; not made for `.`.

    Raises:
      ValueError: there is no such commit, or no repository.
    """
    if side == HERE:
        return ROOT
    command = ["git", "archive", "--format=tar", f"{side}^{{commit}}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        expected = f"a commit of {ROOT}, {HERE} or a file of losses"
        raise ValueError(f"side is {quote(side)}, expected {expected}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(directory, filter="data")
    return directory


def train_side(
    code: pathlib.Path,
    settings: RunSettings,
    workdir: pathlib.Path,
    instruction_set: str = INSTRUCTION_SET,
) -> Losses:
    """Trains a side in a process and returns what it measured at each step.

    Args:
      code: root of the side's code.
      settings: what is trained.
      workdir: of the run; must not be there.
      instruction_set: the newest one that XLA may use on an x86 CPU.

    Returns:
      For each step, from 1, `step` and `MEASURES`; None where a batch has no such target.

    Raises:
      ValueError: the run failed; says how.
    """
    done = subprocess.run(
        _command(code, settings, workdir),
        cwd=code,  # where Gin looks for what files include
        env=_environment(code, settings, instruction_set),
        capture_output=True,
        text=True,
        check=False,
    )
    metrics = workdir / "metrics.jsonl"
    if done.returncode or not metrics.exists():
        lines = (done.stderr + done.stdout).strip().splitlines() or ["nothing was said"]
        said = next((line for line in lines if line.startswith("error:")), lines[-1])
        raise ValueError(f"training failed with exit code {done.returncode}: {said[:300]}")
    records = map(json.loads, metrics.read_text().splitlines())
    return [
        {"step": record["step"], **{name: record[name] for name in MEASURES}}
        for record in records
        if "gradient_norm" in record
    ]


def _command(code: pathlib.Path, settings: RunSettings, workdir: pathlib.Path) -> list[str]:
    steps = settings.steps
    length = {
        "NUM_STEPS": steps,
        "WARMUP_STEPS": max(1, steps // 10),
        "LOG_EVERY": 1,
        "CHECKPOINT_EVERY": steps,
    }
    mesh = dataclasses.asdict(settings.mesh) if settings.mesh else {}
    bindings = [f"{name}={value}" for name, value in length.items()]
    bindings += [f"MESH_{axis.upper()}={size}" for axis, size in mesh.items()]
    bindings += [_locate_data(binding) for binding in settings.bindings]
    return [
        *(sys.executable, "-m", "experiments.train"),
        *(f"--gin_file={_locate(code, file)}" for file in settings.files),
        *(f"--gin.{binding}" for binding in bindings),
        f"--workdir={workdir.absolute()}",
    ]


def _locate(code: pathlib.Path, file: str) -> str:
    """Returns a side's own file of that path, else the user's."""
    own = code / file
    return str(own if own.is_file() else pathlib.Path(file).absolute())


def _locate_data(binding: str) -> str:
    """Returns the binding; a path of what is here, or in this checkout, as a whole one."""
    name, _, value = binding.partition("=")
    for place in (pathlib.Path.cwd(), ROOT):
        if (place / value).exists():
            return f"{name}={place / value}"
    return binding


def _environment(
    code: pathlib.Path, settings: RunSettings, instruction_set: str
) -> Mapping[str, str]:
    environment = os.environ | {"PYTHONPATH": str(code)}
    environment.setdefault("JAX_PLATFORMS", "cpu")
    environment["XLA_FLAGS"] = "--xla_gpu_deterministic_ops=true"
    if environment["JAX_PLATFORMS"] == "cpu":
        flags = _cpu_flags(settings.num_devices(), instruction_set)
        environment["XLA_FLAGS"] = " ".join(flags)
    return environment


def _cpu_flags(num_devices: int, instruction_set: str) -> Sequence[str]:
    flags = [
        f"--xla_force_host_platform_device_count={num_devices}",
        "--xla_cpu_multi_thread_eigen=false",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
    x86 = platform.machine() in ("x86_64", "AMD64")
    return [*flags, f"--xla_cpu_max_isa={instruction_set}"] if x86 else flags


def platform_in_use() -> dict[str, Any]:
    """Returns what bits may depend on beside the code.

    XLA's own code keeps to `INSTRUCTION_SET`; kernels of libraries that it calls go by the widest
    instructions that the CPU has.
    """
    names = ("jax", "jaxlib", "flax", "optax")
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    features = cpuinfo.read_text().split() if cpuinfo.exists() else []
    widest = (name for name in ("amx_tile", "avx512f", "avx2") if name in features)
    return {
        "versions": {name: importlib.metadata.version(name) for name in names},
        "machine": platform.machine(),
        "widest_instructions": next(widest, "unknown"),
    }
