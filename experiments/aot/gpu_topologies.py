"""NVIDIA GPUs that are not there, to compile for (extra `cuda`; no driver is needed)."""

from __future__ import annotations

from jax.experimental import topologies

from lst_jax.hardware import Device
from lst_jax.settings import quote

_GIB = 2**30

# What XLA must know of a card, from CUDA's device properties. XLA plans by most of these numbers;
# memory it takes from here too.
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  clock_rate_ghz: 1.98
  device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 minor: 0 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""

# Bytes of memory, of the L2 cache, and bytes a second of memory.
GPUS = {
    "h100": ("NVIDIA H100 80GB HBM3", 79.6 * _GIB, 50 * 2**20, 3_352_320_000_000),
    "h200": ("NVIDIA H200", 139.8 * _GIB, 60 * 2**20, 4_800_000_000_000),
}


def gpu_device(name: str) -> Device:
    """Returns a device that programs can be compiled for and not run on.

    Args:
      name: one of `GPUS`.

    Raises:
      ValueError: the name is unknown.
      ImportError: JAX has no CUDA plugin here.
    """
    if name not in GPUS:
        raise ValueError(f"gpu is {quote(name)}, expected one of {', '.join(GPUS)}")
    kind, memory, l2, bandwidth = GPUS[name]
    target = _TARGET.format(name=kind, memory=int(memory), l2=l2, bandwidth=bandwidth)
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology="1x1x1", target_config=target
        )
    except (RuntimeError, NotImplementedError) as error:
        raise ImportError(f"no CUDA plugin of JAX, expected the extra cuda: {error}") from error
    (device,) = topology.devices
    return device


def memory_bytes(name: str) -> int:
    """Returns the bytes of memory of a GPU."""
    return int(GPUS[name][1])
