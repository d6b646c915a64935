"""What attention is compiled for: devices that need not be there."""

from __future__ import annotations

from typing import NamedTuple

import jax


class Target(NamedTuple):
    """The device that a computation is traced for.

    Attributes:
      platform: such as "cpu", "gpu" or "tpu".
      capability: of a GPU, such as "9.0" (CUDA) or "gfx90a" (ROCm), where it is known.
      present: whether this process has such a device to run things on.
    """

    platform: str
    capability: str | None
    present: bool


# Compute capabilities by names of devices, for those that are compiled for and not there.
_HOPPER = ("H100", "H200", "H800", "H20", "GH200")


def target() -> Target:
    """Returns the platform of the mesh in force, else of the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.default_device.value
    if device is None:
        platform = jax.default_backend()
    else:
        platform = device if isinstance(device, str) else device.platform
    if platform != "gpu":
        return Target(platform, None, False)
    if jax.default_backend() == "gpu":
        return Target(platform, getattr(jax.local_devices()[0], "compute_capability", ""), True)
    kind = getattr(device, "device_kind", "")
    return Target(platform, "9.0" if any(name in kind for name in _HOPPER) else None, False)
