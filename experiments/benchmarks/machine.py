"""What the benchmarks ran on."""

from __future__ import annotations

import pathlib
import platform

import jax


def cpu_model() -> str:
    """The name of this machine's processor."""
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def device_name() -> str:
    """The kind of the default device: the processor's name where it is a CPU."""
    device = jax.devices()[0]
    return cpu_model() if device.platform == "cpu" else device.device_kind
