"""What this process runs on, for results."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import shlex
import sys
import time

import jax


def command_line(benchmark: str) -> str:
    """Returns the command that runs a benchmark with the flags of this one."""
    return shlex.join(["python", "-m", f"experiments.benchmarks.{benchmark}", *sys.argv[1:]])


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of packages that are installed."""
    return {name: importlib.metadata.version(name) for name in packages}


def cpu_model() -> str:
    """Returns the name of this machine's processor."""
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def device_name() -> str:
    """Returns the kind of the default device: the processor's name where it is a CPU."""
    device = jax.devices()[0]
    return cpu_model() if device.platform == "cpu" else device.device_kind


def process_age() -> float:
    """Returns the seconds since this process started; 0 where the system does not tell."""
    path = pathlib.Path("/proc/self/stat")
    if not path.exists():
        return 0.0
    # The second field is the program's name in parentheses, which may hold spaces.
    fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0)
