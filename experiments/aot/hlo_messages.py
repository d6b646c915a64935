"""What a device sends in the collectives of a compiled program: an estimate from their text.

Bytes are those of a ring, whatever the links: all-gather, reduce-scatter and all-to-all
(g - 1) / g of the whole array, all-reduce twice that, permutes their array. Their time is that of
the chip's links, or of those along the torus axes that the compiler's notes name: an algorithm for
one axis of three has a third of the links.
"""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np

from experiments.aot.hlo_text import Computation, Instruction, operand_shapes
from lst_jax.hardware import Chip

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# How TPU programs exchange arrays with other slices: "{1,2}x{0:3}" are slices and their devices.
_SLICE_TRANSFER = re.compile(
    r'_xla_megascale_target="\{(?P<slices>[^}]*)\}.*_xla_megascale_transfer_type="(?P<kind>\w+)"'
)
# mesh['a'=4,'b'=2] {'a'}, perhaps with an order of devices: , device_ids=([2,4]T(1,0))
_MESH_GROUPS = re.compile(
    r"@?\w*mesh\[([^\]]*)\]"
    r"(?:, ?device_ids=\((?:([\d,]+)|\[([\d,]+)\](?:T\(([\d,]+)\))?)\))? ?\{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Messages of one kind among one set of device groups.

    Attributes:
      kind: all-gather, all-reduce, reduce-scatter, all-to-all or collective-permute.
      crosses_slices: whether it goes over the network between slices.
      torus_axes: along how many axes of the torus it runs; None where the text does not say.
    """

    kind: str
    crosses_slices: bool
    torus_axes: int | None = None


# A collective, and the bytes that the device sends in it.
Message = tuple[Collective, float]


def message_of(x: Instruction, within: Computation) -> Message | None:
    """Returns kind and bytes that the device sends, if the instruction is a collective."""
    kind = x.opcode.removesuffix("-start")
    if kind not in (*COLLECTIVES, "send"):
        return None
    operands = sum(shape.num_bytes for shape in operand_shapes(x, within))
    if kind == "send":
        transfer = _SLICE_TRANSFER.search(x.attributes)
        if not transfer:
            return None
        kind = transfer["kind"].lower().replace("_", "-")
        size = len(re.findall(r"\d+", transfer["slices"]))
        return Collective(kind, True), _bytes_sent(kind, operands, size)
    groups = device_groups(x.attributes)
    size = groups.shape[1] if groups.size else 1
    return Collective(kind, False, torus_axes(x.attributes)), _bytes_sent(kind, operands, size)


def torus_axes(attributes: str) -> int | None:
    """Returns along how many torus axes the compiler's algorithm runs, None without its notes.

    A gather's emitter says it, as `2DAllGather…`; a reduction has a color for every axis, or for
    every direction of an axis.
    """
    if emitter := re.search(r'"emitter":"(\d)DAllGather', attributes):
        return int(emitter[1])
    note = re.search(r'"strategy":"(\w+)","debug":"[^"]*?colors:(\d+)', attributes)
    if not note:
        return None
    return -(-int(note[2]) // 2) if note[1].startswith("UniDirection") else int(note[2])


def fused_message(message: Message, attributes: str) -> Message:
    """Returns a collective by the compiler's notes on the fusion that holds it.

    An all-reduce of which the fusion keeps a part is sent as a reduce-scatter: half the bytes.
    """
    collective, sent = message
    if collective.kind == "all-reduce" and re.search(r'"emitter":"\w*AllReduceScatter', attributes):
        collective, sent = dataclasses.replace(collective, kind="reduce-scatter"), sent / 2
    axes = torus_axes(attributes) or collective.torus_axes
    return dataclasses.replace(collective, torus_axes=axes), sent


def transfer_seconds(message: Message, chip: Chip) -> float:
    """Returns how long a transfer takes; none between slices where the chip has no rate for it."""
    collective, sent = message
    if collective.crosses_slices:
        return sent / chip.network_bandwidth if chip.network_bandwidth else 0.0
    axes = min(collective.torus_axes or chip.torus_axes, chip.torus_axes)
    return sent / (chip.interconnect_bandwidth * axes / chip.torus_axes)


def _bytes_sent(kind: str, size: float, members: int) -> float:
    """Returns what each of a ring's members sends of arrays of `size` bytes."""
    share = (members - 1) / members
    factors = {
        "all-gather": members - 1,
        "all-reduce": 2 * share,
        "reduce-scatter": share,
        "all-to-all": share,
    }
    return float(size * factors.get(kind, 1))


def device_groups(attributes: str) -> np.ndarray:
    """Returns the groups of devices that a collective joins, from its attributes.

    Returns:
      (groups, devices of a group) ids; the pairs of a collective-permute; empty where the text
      gives none (all devices, a program of one).

    Raises:
      ValueError: a form of groups that is not known.
    """
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes)
    if pairs:
        return _listed_groups(pairs[1])
    start = attributes.find("replica_groups=")
    if start < 0:
        return np.zeros((0, 1), int)
    text = attributes[start + len("replica_groups=") :]
    if listed := re.match(r"\{((?:\{[\d,]*\},?)*)\}", text):
        return _listed_groups(listed[1])
    if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        return _iota(iota[2], iota[3]).reshape(_integers(iota[1]))
    if mesh := _MESH_GROUPS.match(text):
        return _mesh_groups(*mesh.groups())
    raise ValueError(f"replica_groups={text[:60]!r}: unknown form of device groups")


def _integers(text: str) -> list[int]:
    return [int(x) for x in text.split(",") if x]


def _listed_groups(text: str) -> np.ndarray:
    groups = [_integers(group) for group in re.findall(r"\{([\d,]*)\}", text)]
    return np.array(groups, int) if groups else np.zeros((0, 1), int)


def _iota(dims: str, permutation: str | None) -> np.ndarray:
    sizes = _integers(dims)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose(_integers(permutation)) if permutation else ids


def _mesh_groups(
    axes: str, listed: str | None, dims: str | None, permutation: str | None, grouped: str
) -> np.ndarray:
    """Returns the axes `'a'=4,'b'=2` grouped along `'a'`: one group for every b."""
    sizes = {name: int(size) for name, size in re.findall(r"'?(\w+)'?=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values()))
    if listed:
        ids = np.array(_integers(listed))
    elif dims:
        ids = _iota(dims, permutation)
    inside = re.findall(r"'?(\w+)'?(?:,|$)", grouped)
    if not set(inside) <= set(sizes):
        raise ValueError(f"replica_groups={{{grouped}}}: unknown form of device groups")
    order = [*(axis for axis in sizes if axis not in inside), *inside]
    ids = ids.reshape([*sizes.values()]).transpose([[*sizes].index(axis) for axis in order])
    return ids.reshape(-1, math.prod(sizes[axis] for axis in inside))
