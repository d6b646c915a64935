"""What devices can do: peak matrix-product rates, and the published figures of TPU chips."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:  # JAX declares no type that checkers could take
    Device = Any
else:
    Device = jax.Device

# Dense bfloat16 FLOP/s of one JAX device, from the makers' data sheets (float16 where a device has
# no bfloat16). A device is of the first kind whose name its own contains. A JAX device is one of
# two cores of a chip on TPU v2, v3 and 7x.
from lst_jax.settings import quote

_PEAKS: tuple[tuple[str, float], ...] = (
    ("TPU v2", 22.5e12),
    ("TPU v3", 61.5e12),
    ("TPU v4 lite", 138e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    ("TPU7x", 1153.5e12),
    ("GB200", 2500e12),
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A10G", 70e12),
    ("RTX 4090", 165e12),
    ("V100", 125e12),
    ("T4", 65e12),
)

_GIB = 2.0**30


class Chip(NamedTuple):
    """Published figures of one TPU chip.

    Attributes:
      name: short, as in the names of topologies.
      flops_per_second: dense bfloat16 peak.
      memory_bytes: of HBM that programs can use.
      memory_bandwidth: of HBM, bytes a second.
      interconnect_bandwidth: what a chip can send over all its links within its slice, bytes a
        second; half of the figure for both directions.
      network_bandwidth: of the data center's network, which joins slices, a chip's share, bytes a
        second; None where there is no figure.
      torus_axes: of the torus that the links within a slice make; each axis has as many.
    """

    name: str
    flops_per_second: float
    memory_bytes: float
    memory_bandwidth: float
    interconnect_bandwidth: float
    network_bandwidth: float | None
    torus_axes: int


# From the pages of Google Cloud's documentation on each generation, docs.cloud.google.com/tpu/docs/
# v4, v5e, v5p and v6e, read in 2026: peak, HBM capacity and bandwidth, bidirectional inter-chip
# interconnect bandwidth per chip (v4: 2400 Gb/s one way), data center network bandwidth per chip
# (v5e and v6e: of a pod, over its 256 chips). By `device_kind`.
_CHIPS: dict[str, Chip] = {
    "TPU v4": Chip("v4", 275e12, 32 * _GIB, 1200e9, 300e9, None, 3),
    "TPU v5 lite": Chip("v5e", 197e12, 16 * _GIB, 819e9, 200e9, 6.4e12 / 8 / 256, 2),
    "TPU v5": Chip("v5p", 459e12, 95 * _GIB, 2765e9, 600e9, 50e9 / 8, 3),
    "TPU v6 lite": Chip("v6e", 918e12, 32 * _GIB, 1600e9, 400e9, 25.6e12 / 8 / 256, 2),
}


def tpu_chip(device_kind: str) -> Chip:
    """Returns the chip of a TPU device.

    Raises:
      ValueError: the figures of that kind are not known.
    """
    if device_kind not in _CHIPS:
        raise ValueError(f"device_kind is {quote(device_kind)}, expected one of {sorted(_CHIPS)}")
    return _CHIPS[device_kind]


_MEASURED_SIZE = 1024
_MEASURED_REPEATS = 5


class PeakRate(NamedTuple):
    """Peak FLOP/s of one device, and where the number is from (for the log)."""

    flops_per_second: float
    source: str


def peak_rate(device: Device) -> PeakRate:
    """Returns the peak rate of matrix products on a device.

    Accelerators are looked up by name; a CPU, or a kind that is not in the table, is measured:
    its best rate in a float32 product of two 1024 × 1024 matrices, shared fairly among the
    virtual devices of the host.
    """
    for name, rate in _PEAKS:
        if name in device.device_kind:
            return PeakRate(rate, f"data sheet of {name}, bfloat16")
    rate = _measure(device)
    if device.platform == "cpu":
        rate /= len([d for d in jax.local_devices() if d.platform == "cpu"])
    return PeakRate(rate, "measured with float32 matrix products")


def check_memory(shapes: Any, mesh: jax.sharding.Mesh, what: str) -> None:
    """Checks that arrays can be on the devices at all.

    XLA says so itself, on CPUs after it has hung or the system has killed the process.

    Args:
      shapes: tree of `jax.ShapeDtypeStruct` with shardings.
      mesh: whose devices they are on.
      what: names them in the message.

    Raises:
      ValueError: a device's share of them is larger than its memory.
    """
    needed = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )
    device = mesh.local_devices[0]
    there = (device.memory_stats() or {}).get("bytes_limit")
    if device.platform == "cpu":
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(mesh.local_devices)
    if there and needed > there:
        raise ValueError(
            f"{what}: {needed / 1e9:,.1f} GB on each device, expected at most {there / 1e9:,.1f} "
            "GB, its memory: a smaller model, fewer or shorter rows, or more devices"
        )


def _measure(device: Device) -> float:
    best = float("inf")
    with jax.set_mesh(None):  # on this device, whatever the ambient mesh
        matrix = jax.device_put(np.ones((_MEASURED_SIZE, _MEASURED_SIZE), np.float32), device)
        product = jax.jit(jnp.matmul)
        product(matrix, matrix).block_until_ready()
        for _ in range(_MEASURED_REPEATS):
            start = time.perf_counter()
            product(matrix, matrix).block_until_ready()
            best = min(best, time.perf_counter() - start)
    return 2.0 * _MEASURED_SIZE**3 / best
