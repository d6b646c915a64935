"""TPU slices that need not be there: devices to compile for, from the `libtpu` package alone."""

from __future__ import annotations

import os

import jax
from jax.experimental import topologies

from lst_jax.extras import check_extra
from lst_jax.hardware import Device

# Nothing is run, so another process may hold libtpu; there is no cloud machine to ask about itself,
# and what the compiler warns of should come to stderr instead of a directory of logs.
from lst_jax.settings import quote

_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "1",
}


def tpu_devices(topology: str, num_slices: int = 1) -> list[Device]:
    """Returns the devices of TPU slices, for ahead-of-time compilation; works on any machine.

    Args:
      topology: chip and shape of a slice, such as `v5e:16x16` or `v5p:8x8x4`.
      num_slices: slices of that shape, joined by the data center's network.

    Raises:
      ImportError: the package `libtpu` is not installed.
      ValueError: there is no such topology.
    """
    check_extra("tpu", "libtpu")
    if num_slices < 1:
        raise ValueError(f"num_slices is {num_slices}, expected at least 1")
    if not topology or not topology.isascii():  # libtpu would choose a chip, or take no such text
        raise ValueError(
            f"topology is {quote(topology)}, expected a chip and a shape such as 'v5e:16x16'"
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    slices = {"num_slices": num_slices} if num_slices > 1 else {}
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology, **slices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"topology is {quote(topology)}, expected a chip and a shape such as 'v5e:16x16' "
            f"({reason})"
        ) from error
    return list(description.devices)
