"""Accelerators as a launch names them: `v5p:4x8x8`, a TPU slice; `h100:2x8`, nodes by GPUs."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import NamedTuple

from lst_jax.settings import list_names, quote


class Tpu(NamedTuple):
    """How Google Cloud names a generation of TPUs.

    Attributes:
      node_label: of GKE's nodes, `cloud.google.com/gke-tpu-accelerator`.
      cloud_type: in accelerator types, before the count.
      counted: how many that count is for each chip; v5p counts cores.
      runtime: software version of TPU VMs.
    """

    node_label: str
    cloud_type: str
    counted: int
    runtime: str


# From docs.cloud.google.com, read in 2026: kubernetes-engine/docs/concepts/plan-tpus, and
# tpu/docs/v5e, v5p, v6e and runtimes.
TPUS = {
    "v5e": Tpu("tpu-v5-lite-podslice", "v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": Tpu("tpu-v5p-slice", "v5p", 2, "v2-alpha-tpuv5"),
    "v6e": Tpu("tpu-v6e-slice", "v6e", 1, "v2-alpha-tpuv6e"),
}
GPUS = ("a100", "h100", "h200", "b200")

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # of v5e and v6e
_SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
_CUBE, _MOST_CUBES = 4, (16, 16, 24)  # chips along an edge; of a v5p slice
_MOST_GPUS = 16  # of a node
_CHIPS_OF_HOST = 4  # of a slice of several hosts; another slice's host has all chips
_SHAPE = re.compile(r"[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}")


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The accelerators of a run, and the machines that they are in.

    Attributes:
      kind: a key of `TPUS`, or one of `GPUS`.
      shape: of a TPU slice, as Google Cloud writes it; nodes by GPUs.
      devices: of a slice, or of all nodes.
      hosts: of a slice, or all nodes.
      slices: of TPUs, joined by the data center's network.
    """

    kind: str
    shape: str
    devices: int
    hosts: int
    slices: int = 1

    @property
    def tpu(self) -> Tpu | None:
        """Returns the names of its TPUs; None: it has GPUs."""
        return TPUS.get(self.kind)

    @property
    def devices_of_host(self) -> int:
        """Returns the devices of each machine."""
        return self.devices // self.hosts

    @property
    def accelerator_type(self) -> str:
        """Returns the accelerator type of a TPU slice, such as v5p-512."""
        tpu = TPUS[self.kind]
        return f"{tpu.cloud_type}-{tpu.counted * self.devices}"


def parse_topology(text: str, slices: int = 1) -> Hosts:
    """Returns the accelerators that `--topology` and `--slices` name.

    Args:
      text: `CHIP:SHAPE`. The edges of a TPU slice may be in any order.
      slices: of that shape.

    Raises:
      ValueError: there is no such chip, or none of its slices or nodes has that shape.
    """
    kind, _, shape = text.partition(":")
    if kind not in (*TPUS, *GPUS):
        known = f"CHIP:SHAPE with a chip of {', '.join((*TPUS, *GPUS))}"
        raise ValueError(f"topology is {quote(text)}, expected {known}")
    edges = [int(edge) for edge in shape.split("x")] if _SHAPE.fullmatch(shape) else []
    if kind in GPUS:
        if len(edges) != 2 or edges[1] > _MOST_GPUS or slices > 1:
            expected = f"{kind}:NODESxGPUS of at most {_MOST_GPUS} GPUs a node, in one slice"
            raise ValueError(f"topology is {quote(text)}, expected {expected}")
        return Hosts(kind, shape, edges[0] * edges[1], edges[0])
    named = _tpu_shape(kind, edges)
    if named is None:
        expected = (
            f"{', '.join(_SMALL_CUBES)}, or multiples of {_CUBE} up to 16x16x24"
            if kind == "v5p"
            else f"one of {list_names(_FLAT)}"
        )
        raise ValueError(f"topology is {quote(text)}, expected a shape of {kind}: {expected}")
    chips = math.prod(edges)
    alone = kind != "v5p" and chips <= 2 * _CHIPS_OF_HOST
    return Hosts(kind, named, chips, 1 if alone else chips // _CHIPS_OF_HOST, slices)


def _tpu_shape(kind: str, edges: list[int]) -> str | None:
    """Returns a slice's shape as Google Cloud writes it; None where there is no such slice."""
    ascending = sorted(edges)
    for name in _SMALL_CUBES if kind == "v5p" else _FLAT:
        if sorted(map(int, name.split("x"))) == ascending:
            return name
    cubes = kind == "v5p" and len(edges) == 3 and all(edge % _CUBE == 0 for edge in edges)
    if not cubes or any(a > b for a, b in zip(ascending, _MOST_CUBES, strict=True)):
        return None
    return "x".join(map(str, ascending))
