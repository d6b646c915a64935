"""The device mesh and the rules that place arrays on it, as data.

Parameters and activations carry logical axis names ("embed", "hidden", …); `DEFAULT_RULES` says
which mesh axis each of them is split over. Nothing else does: attention, the loss and the placing
of batches ask the rules, too, so other rules, for meshes with other axes, give the same values. The
mesh that `make_mesh` makes has three axes:

| axis   | splits                                                                      |
|--------|-----------------------------------------------------------------------------|
| data   | the rows of a batch; parameters are copied                                  |
| fsdp   | the rows of a batch, and the width of every parameter and optimizer moment  |
| tensor | attention heads, hidden features and the vocabulary                         |
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import jax
import numpy as np
from flax import linen as nn
from flax.linen.spmd import logical_to_mesh, logical_to_mesh_axes
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec

from lst_jax.batch import Batch, SharedBatch, padding_rows
from lst_jax.config import LSTConfig, ModelConfig
from lst_jax.hardware import Device
from lst_jax.settings import Bounds, configuration, require

for _rows in (Batch, SharedBatch):
    jax.tree_util.register_dataclass(_rows)

MESH_AXES = ("data", "fsdp", "tensor")

MeshAxis = Annotated[int, Bounds(least=-1, most=2**20)]

LogicalRules = Sequence[tuple[str, str | tuple[str, ...] | None]]
Axes = tuple[str, ...]
AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh  # an abstract one has no devices

# In order of precedence: where one array has both "batch" and "embed", "batch" takes the fsdp axis.
DEFAULT_RULES: LogicalRules = (
    ("batch", ("data", "fsdp")),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("hidden", "tensor"),
    ("embed", "fsdp"),
    ("embed_activation", None),
    ("latent", None),
    ("length", None),
    ("layers", None),
    ("norm", None),
)


@configuration
class MeshConfig:
    """How many devices each mesh axis has; -1 (at most once) takes the devices that are left."""

    data: MeshAxis = 1
    fsdp: MeshAxis = -1
    tensor: MeshAxis = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            require(size != 0, f"MeshConfig.{name}", size, "a positive number of devices, or -1")
        rest = [name for name, size in sizes.items() if size == -1]
        for name in rest[1:]:
            expected = f"a number of devices where {rest[0]} is -1"
            require(False, f"MeshConfig.{name}", -1, expected)


def make_mesh(
    config: MeshConfig | None = None, devices: Sequence[Device] | None = None
) -> jax.sharding.Mesh:
    """Makes the mesh (data, fsdp, tensor) over `devices` (default: all processes' devices).

    Devices of several slices are a hybrid mesh: slices differ along data, or also along fsdp.

    Raises:
      ValueError: the axis sizes do not fill the devices, or do not part the slices.
    """
    devices = jax.devices() if devices is None else devices
    num_slices = len({getattr(device, "slice_index", None) for device in devices})
    sizes = mesh_sizes(config or MeshConfig(), len(devices), num_slices)
    if num_slices > 1:
        across = _parts_across_slices(sizes, num_slices)
        within = [size // parts for size, parts in zip(sizes, across, strict=True)]
        arranged = mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    else:
        # An axis may take part of a torus' dimension where it fills none, as (2, 128) of 16 × 16.
        arranged = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    axis_types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    return jax.sharding.Mesh(arranged, MESH_AXES, axis_types=axis_types)


def mesh_sizes(config: MeshConfig, num_devices: int, num_slices: int = 1) -> tuple[int, ...]:
    """Returns the sizes of the mesh axes on so many devices, of slices of the same size.

    Raises:
      ValueError: the axis sizes do not fill the devices, or do not part the slices.
    """
    asked = [config.data, config.fsdp, config.tensor]
    given = math.prod(size for size in asked if size != -1)
    sizes = tuple(num_devices // given if size == -1 else size for size in asked)
    if math.prod(sizes) != num_devices:
        shape = dict(zip(MESH_AXES, asked, strict=True))
        raise ValueError(f"mesh axes are {shape}, expected sizes that fill {num_devices} devices")
    _parts_across_slices(sizes, num_slices)
    return sizes


def _parts_across_slices(sizes: Sequence[int], num_slices: int) -> tuple[int, int, int]:
    """Returns how many parts of each mesh axis are in different slices.

    Only messages that a step sends seldom should cross the slow network between slices, so slices
    are told apart along data, and along fsdp where data has too few parts.
    """
    across_data = math.gcd(sizes[0], num_slices)
    across_fsdp = num_slices // across_data
    if sizes[1] % across_fsdp:
        shape = dict(zip(MESH_AXES, sizes, strict=True))
        raise ValueError(
            f"mesh axes are {shape}, expected data or fsdp to be a multiple of the {num_slices} "
            "slices"
        )
    return across_data, across_fsdp, 1


@contextlib.contextmanager
def mesh_context(mesh: jax.sharding.Mesh, rules: LogicalRules = DEFAULT_RULES) -> Iterator[None]:
    """Makes `mesh` and `rules` ambient: every init, step and evaluation runs inside.

    Logical constraints and `jax.shard_map` then find the mesh by themselves. Enter it outside
    of `jax.jit`. A jitted function keeps what it traced under the first rules, since JAX does not
    know of them: other rules need another function.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


@contextlib.contextmanager
def no_mesh() -> Iterator[None]:
    """Makes no mesh ambient: shapes are those of whole arrays inside."""
    with jax.set_mesh(None), nn.logical_axis_rules(()):
        yield


def mesh_axes(rules: LogicalRules, *names: str | None) -> tuple[Axes, ...]:
    """Returns the mesh axes that each axis of one array is split over.

    Args:
      rules: in order of precedence, as no mesh axis can split an array twice.
      names: logical names of the array's axes; None for one without a name, which is not split.

    Returns:
      A tuple for each name, empty where the axis is whole.
    """
    found = logical_to_mesh_axes(names, rules) or ()
    return tuple((axes,) if isinstance(axes, str) else tuple(axes or ()) for axes in found)


def ambient_mesh_axes(*names: str | None) -> tuple[Axes, ...]:
    """Returns `mesh_axes` by the rules in force (`mesh_context`), or else by `DEFAULT_RULES`.

    Axes that the mesh in force does not have split nothing.
    """
    present = jax.sharding.get_abstract_mesh().axis_names
    found = mesh_axes(nn.get_logical_axis_rules() or DEFAULT_RULES, *names)
    return tuple(tuple(axis for axis in axes if axis in present) for axes in found)


def count_parts(mesh: AnyMesh, name: str, rules: LogicalRules = DEFAULT_RULES) -> int:
    """Returns how many parts a logical axis is split into."""
    (axes,) = mesh_axes(rules, name)
    return math.prod(mesh.shape[axis] for axis in axes)


def batch_mesh_size(mesh: AnyMesh, rules: LogicalRules = DEFAULT_RULES) -> int:
    """Returns the number of parts that the rows of a batch are split into."""
    return count_parts(mesh, "batch", rules)


def batch_sharding(mesh: AnyMesh, rules: LogicalRules = DEFAULT_RULES) -> NamedSharding:
    """Returns that of arrays with the rows first, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(*mesh_axes(rules, "batch")))


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Returns a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_rows(
    num_rows: int,
    mesh: AnyMesh,
    accumulation_steps: int = 1,
    rules: LogicalRules = DEFAULT_RULES,
) -> None:
    """Checks that every device gets the same number of rows in every microbatch.

    Args:
      num_rows: rows B of the global batch.
      mesh: the device mesh.
      accumulation_steps: microbatches that the batch is cut into.
      rules: logical axis to mesh axes.

    Raises:
      ValueError: they do not divide.
    """
    parts = batch_mesh_size(mesh, rules)
    if num_rows < 1 or num_rows % (parts * accumulation_steps):
        sizes = " × ".join(f"{mesh.shape[axis]} ({axis})" for axis in mesh_axes(rules, "batch")[0])
        raise ValueError(
            f"the batch has {num_rows} rows, expected a multiple of "
            f"{parts * accumulation_steps} = {sizes or 1} devices × {accumulation_steps} "
            "accumulation steps"
        )


def check_heads(config: ModelConfig, mesh: AnyMesh, rules: LogicalRules = DEFAULT_RULES) -> None:
    """Checks that the mesh splits the attention heads evenly.

    Raises:
      ValueError: it does not.
    """
    names = ["num_heads_global"]
    if isinstance(config, LSTConfig):
        names += ["num_heads_local", "cross_attention_heads"]
    axes = mesh_axes(rules, "batch", None, "heads", None)[2]  # as attention has them
    parts = math.prod(mesh.shape[axis] for axis in axes)
    for name in names:
        if getattr(config, name) % parts:
            raise ValueError(
                f"{name} is {getattr(config, name)}, expected a multiple of the {parts} devices of "
                f"mesh axis {' × '.join(axes)}"
            )


@dataclasses.dataclass(frozen=True)
class RowShare:
    """The part `index` of `count` equal parts of a batch's rows."""

    index: int
    count: int


@functools.lru_cache(maxsize=8)
def row_share(mesh: jax.sharding.Mesh, rules: LogicalRules = DEFAULT_RULES) -> RowShare:
    """Returns the rows that this process reads: those of its devices.

    Processes along an axis that does not split rows have the same ones, so each reads these.

    Raises:
      ValueError: two processes have some rows in common and others not.
    """
    size = batch_mesh_size(mesh, rules)
    places = batch_sharding(mesh, rules).devices_indices_map((size,))
    rows: dict[int, set[int]] = {}
    for device, (part,) in places.items():
        rows.setdefault(device.process_index, set()).add(part.start or 0)
    parts = sorted({tuple(sorted(part)) for part in rows.values()})
    if sum(map(len, parts)) != size or len(set(map(len, parts))) != 1:
        names = " and ".join(mesh_axes(rules, "batch")[0])
        raise ValueError(
            f"mesh axes are {dict(mesh.shape)}, expected {names} to part the rows of a batch "
            f"evenly among the {len(rows)} processes"
        )
    return RowShare(parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts))


def shard_batch(batch: Any, mesh: jax.sharding.Mesh, rules: LogicalRules = DEFAULT_RULES) -> Any:
    """Puts the rows that this process has read on its devices.

    Args:
      batch: tree of arrays (B / count, …), this process's share of the rows (`row_share`).
      mesh: the device mesh.
      rules: logical axis to mesh axes.

    Returns:
      The tree of global arrays (B, …), their rows over the mesh.

    Raises:
      ValueError: B is not a multiple of the devices on the batch axes.
    """
    rules = tuple(rules)
    sharding = batch_sharding(mesh, rules)
    num_rows = len(jax.tree.leaves(batch)[0]) * row_share(mesh, rules).count
    check_rows(num_rows, mesh, rules=rules)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(
            sharding, np.asarray(array), (num_rows, *array.shape[1:])
        ),
        batch,
    )


def abstract_batch(
    num_patches: int, num_tokens: int, rows: int, sharding: jax.sharding.Sharding | None = None
) -> Batch:
    """Returns the shapes of a batch, `jax.ShapeDtypeStruct`s, with their sharding."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype, sharding=sharding),
        padding_rows(num_patches, num_tokens),
    )


def tree_shardings(boxed: Any, mesh: AnyMesh, rules: LogicalRules = DEFAULT_RULES) -> Any:
    """Returns the shardings of a tree of abstract arrays with logical axis names.

    Args:
      boxed: tree of `jax.ShapeDtypeStruct`s in Flax's metadata boxes; leaves without a box are
        copied to every device.
      mesh: the device mesh.
      rules: pairs (logical axis, mesh axes).

    Returns:
      A tree of `NamedSharding` without boxes.

    Raises:
      ValueError: a mesh axis does not divide the array's axis that it should split.
    """
    specs = logical_to_mesh(nn.get_partition_spec(boxed), rules)

    def place(path: Any, spec: PartitionSpec, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        for axes, length in zip(spec, leaf.shape, strict=False):
            _check_divides(jax.tree_util.keystr(path), axes, length, mesh)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(
        place, specs, nn.meta.unbox(boxed), is_leaf=lambda x: isinstance(x, PartitionSpec)
    )


def _check_divides(
    name: str, axes: str | tuple[str, ...] | None, length: int, mesh: AnyMesh
) -> None:
    names = (axes,) if isinstance(axes, str) else axes or ()
    parts = math.prod(mesh.shape[axis] for axis in names)
    if length % parts:
        raise ValueError(
            f"{name} has an axis of {length}, expected a multiple of the {parts} devices of mesh "
            f"axes {names}"
        )
