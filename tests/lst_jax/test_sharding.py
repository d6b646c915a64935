import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from experiments.aot.topologies import tpu_devices
from lst_jax.checkpoints.train_state import init_state, param_shapes, state_shardings
from lst_jax.config import LSTConfig, baseline_of
from lst_jax.model.models import abstract_params
from lst_jax.sharding import (
    DEFAULT_RULES,
    MeshConfig,
    batch_mesh_size,
    batch_sharding,
    check_rows,
    make_mesh,
    mesh_context,
    row_share,
    shard_batch,
    tree_shardings,
)
from lst_jax.training.optimizers import OptimizerConfig, make_optimizer

TINY = LSTConfig(
    vocab_size=60,
    dim_local=16,
    dim_global=32,
    num_layers_encoder=1,
    num_layers_global=2,
    num_layers_decoder=1,
    num_heads_local=2,
    num_heads_global=2,
    multiple_of=16,
    dtype="float32",
    attention="dense",
)


def test_all_devices_are_on_fsdp_by_default():
    assert dict(make_mesh().shape) == {"data": 1, "fsdp": 8, "tensor": 1}


def test_one_axis_takes_the_devices_that_are_left():
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("sizes", [(3, -1, 1), (2, 2, 1), (16, -1, 1)])
def test_axes_that_do_not_fill_the_devices_are_an_error(sizes):
    with pytest.raises(ValueError, match="expected sizes that fill 8 devices"):
        make_mesh(MeshConfig(*sizes))


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-1, -1, 1), (1, -2, 1)])
def test_sizes_that_are_no_sizes_are_an_error(sizes):
    with pytest.raises(ValueError, match="expected"):
        MeshConfig(*sizes)


def test_rows_lie_on_the_batch_axes_unchanged():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    batch = {"tokens": np.arange(24, dtype=np.int32).reshape(8, 3), "count": np.arange(8)}
    sharded = shard_batch(batch, mesh)
    for name, array in sharded.items():
        np.testing.assert_array_equal(array, batch[name])
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {2}


def shares(mesh, monkeypatch):
    """The share of every process, and the rows that its devices hold."""
    held, found = {}, {}
    sharding = batch_sharding(mesh)
    rows = sharding.devices_indices_map((batch_mesh_size(mesh),))
    for device, (part,) in rows.items():
        held.setdefault(device.process_index, set()).add(part.start or 0)
    for process in held:
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        row_share.cache_clear()
        found[process] = row_share(mesh)
    row_share.cache_clear()
    return found, held


class HostDevice:
    """A device of a process, as far as the rows of processes depend on it."""

    platform = device_kind = "cpu"

    def __init__(self, number, process_index):
        self.id, self.process_index = number, process_index


def host_mesh(sizes, devices_per_process, first=0):
    """A mesh whose devices, from the one `first` on, belong to processes in order."""
    count = math.prod(sizes)
    owners = (np.arange(count) - first) % count // devices_per_process
    devices = [HostDevice(number, int(owner)) for number, owner in enumerate(owners)]
    return jax.sharding.Mesh(np.array(devices).reshape(sizes), ("data", "fsdp", "tensor"))


def check_shares(mesh, monkeypatch):
    """Holds that processes have one share if and only if their devices hold the same rows."""
    found, held = shares(mesh, monkeypatch)
    assert len(found) > 1
    (count,) = {share.count for share in found.values()}
    assert {share.index for share in found.values()} == set(range(count))
    for process, share in found.items():
        assert len(held[process]) * count == batch_mesh_size(mesh)
        for other in found:
            assert (found[other] == share) == (held[other] == held[process])


@pytest.mark.parametrize(
    ("sizes", "devices_per_process"),
    [((1, 16, 1), 4), ((2, 2, 4), 2), ((2, 4, 2), 4), ((1, 2, 8), 4), ((1, 1, 16), 4)],
)
def test_processes_share_rows_evenly(sizes, devices_per_process, monkeypatch):
    check_shares(host_mesh(sizes, devices_per_process), monkeypatch)


@pytest.mark.slow
@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    ("topology", "sizes"),
    [
        ("v5e:8x8", (1, 64, 1)),
        ("v5e:8x8", (4, 2, 8)),
        ("v6e:16x16", (2, 128, 1)),
        ("v5p:4x4x4", (1, 16, 4)),
        ("v5p:4x4x4", (2, 2, 16)),
        ("v5p:4x4x4", (1, 1, 64)),
    ],
)
def test_the_processes_of_a_pod_share_its_rows_evenly(topology, sizes, monkeypatch):
    check_shares(make_mesh(MeshConfig(*sizes), tpu_devices(topology)), monkeypatch)


def test_processes_that_share_rows_only_in_part_are_an_error():
    with pytest.raises(ValueError, match=r"part the rows .* evenly among the \d+ processes"):
        row_share(host_mesh((1, 8, 2), 4, first=1))


@pytest.mark.parametrize("rows, steps", [(12, 1), (8, 2), (0, 1)])
def test_rows_that_do_not_divide_are_an_error(rows, steps):
    with pytest.raises(ValueError, match=rf"the batch has {rows} rows, expected a multiple of"):
        check_rows(rows, make_mesh(), steps)


@pytest.mark.parametrize("config", [TINY, baseline_of(TINY)])
def test_every_axis_of_every_parameter_has_a_rule(config):
    known = {name for name, _ in DEFAULT_RULES}
    for spec in jax.tree.leaves(
        nn.get_partition_spec(abstract_params(config)),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    ):
        assert {axis for axis in spec if axis is not None} <= known


def test_parameters_and_moments_are_split_and_norms_are_not():
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    _, shardings = state_shardings(TINY, make_optimizer(OptimizerConfig(), 3000), mesh)
    moments = shardings.opt_state[1][0]
    for tree in (shardings.params, moments.mu, moments.nu):
        assert tree["output_kernel"].spec == PartitionSpec("fsdp", "tensor")
        block = tree["global"]["transformer"]["layers"]["block"]
        assert block["feed_forward"]["gate"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
        assert block["attention_norm"]["scale"].is_fully_replicated
    assert shardings.step.is_fully_replicated


# Mesh axes of every parameter; "-" is a whole axis. Layers that are scanned have one more in front.
_BLOCK = {
    "attention_norm/scale": "-",
    "attention/query/kernel": "fsdp tensor",
    "attention/key/kernel": "fsdp tensor",
    "attention/value/kernel": "fsdp tensor",
    "attention/out/kernel": "tensor fsdp",
    "feed_forward_norm/scale": "-",
    "feed_forward/gate/kernel": "fsdp tensor",
    "feed_forward/up/kernel": "fsdp tensor",
    "feed_forward/down/kernel": "tensor fsdp",
}
_CROSS = {
    "query_norm/scale": "-",
    "memory_norm/scale": "-",
    **{name: axes for name, axes in _BLOCK.items() if name.startswith("attention/")},
}


def _under(prefix, table, axes=""):
    return {f"{prefix}/{name}": f"{axes} {rest}".strip() for name, rest in table.items()}


BASELINE_TABLE = {
    "embedding/table": "tensor fsdp",
    **_under("transformer/layers/block", _BLOCK, "-"),
    "norm/scale": "-",
    "output_kernel": "fsdp tensor",
}
LST_TABLE = {
    "encoder/embedding/table": "tensor fsdp",
    **_under("encoder/layer_0", _BLOCK),
    **_under("encoder/layer_1", _BLOCK),
    **_under("encoder/cross_attention_0", _CROSS),
    **_under("encoder/cross_attention_1", _CROSS),
    "encoder/patch_projection/kernel": "fsdp -",
    "global/patch_projection/kernel": "- fsdp",
    **_under("global/transformer/layers/block", _BLOCK, "-"),
    "decoder/patch_projection/kernel": "fsdp -",
    **_under("decoder/transformer/layers/block", _BLOCK, "-"),
    **_under("decoder/transformer/layers/cross_attention", _CROSS, "-"),
    "decoder/norm/scale": "-",
    "output_kernel": "fsdp tensor",
}
_SMALL = dataclasses.replace(TINY, num_layers_encoder=2, latent_vectors_per_patch=1)


@pytest.mark.parametrize(
    ("config", "table"), [(_SMALL, LST_TABLE), (baseline_of(_SMALL), BASELINE_TABLE)]
)
def test_every_array_of_a_run_lies_as_the_table_says(config, table):
    """Parameters and their moments alike; counts are whole, rows are over both batch axes."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shapes, shardings = state_shardings(config, make_optimizer(OptimizerConfig(), 3000), mesh)
    found = jax.tree_util.tree_leaves_with_path(shardings)
    seen = {"params": set(), "mu": set(), "nu": set()}
    for (path, sharding), leaf in zip(found, jax.tree.leaves(shapes), strict=True):
        keys = [str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path]
        kind = next((key for key in keys if key in seen), None)
        assert leaf.sharding == sharding and sharding.mesh == mesh
        if kind is None:
            assert keys[-1] in ("step", "count") and sharding.spec == PartitionSpec()
            continue
        name = "/".join(keys[keys.index(kind) + 1 :])
        axes = [None if axis == "-" else axis for axis in table[name].split()]
        assert list(sharding.spec) == axes and len(axes) == len(leaf.shape), f"{kind} {name}"
        assert leaf.dtype == jnp.float32, f"{kind} {name}"
        seen[kind].add(name)
    assert all(names == table.keys() for names in seen.values())
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))


class SliceDevice:
    """A device of a slice, as far as arranging devices looks at it."""

    platform = device_kind = "cpu"
    process_index = 0

    def __init__(self, number, slice_index):
        self.id, self.slice_index = number, slice_index


@pytest.mark.parametrize(
    ("slices", "sizes", "across"),
    [
        # Devices 32; how many parts of data and of fsdp tell slices apart.
        (2, (2, 16, 1), (2, 1)),
        (4, (2, 16, 1), (2, 2)),
        (4, (4, 4, 2), (4, 1)),
        (4, (1, 16, 2), (1, 4)),
        (8, (4, 8, 1), (4, 2)),
        (8, (4, 4, 2), (4, 2)),
        (2, (6, 4, 1), (2, 1)),
        (4, (6, 4, 1), (2, 2)),
        (6, (4, 6, 1), (2, 3)),
        (6, (3, 8, 1), (3, 2)),
    ],
)
def test_slices_differ_along_data_and_only_what_is_left_along_fsdp(slices, sizes, across):
    count = sizes[0] * sizes[1] * sizes[2]
    devices = [SliceDevice(i, i * slices // count) for i in range(count)]
    mesh = make_mesh(MeshConfig(*sizes), devices)
    assert mesh.devices.shape == sizes
    assert {device.id for device in mesh.devices.flat} == set(range(count))
    number = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    data, fsdp = (sizes[axis] // across[axis] for axis in (0, 1))
    blocks = number.reshape(across[0], data, across[1], fsdp, sizes[2])
    # A block is within one slice, and each slice is one block.
    first = blocks[:, :1, :, :1, :1]
    assert np.all(blocks == first) and sorted(first.ravel()) == list(range(slices))


@pytest.mark.parametrize(
    ("slices", "sizes"), [(4, (2, 5, 1)), (4, (1, 2, 4)), (3, (2, 4, 3)), (2, (1, 1, 8))]
)
def test_slices_that_neither_data_nor_fsdp_parts_are_an_error(slices, sizes):
    count = sizes[0] * sizes[1] * sizes[2]
    devices = [SliceDevice(i, i * slices // count) for i in range(count)]
    message = f"expected data or fsdp to be a multiple of the {slices} slices"
    with pytest.raises(ValueError, match=message):
        make_mesh(MeshConfig(*sizes), devices)


def test_a_parameter_that_does_not_divide_is_named():
    boxed = {
        "kernel": nn.LogicallyPartitioned(
            jax.ShapeDtypeStruct((12, 4), jnp.float32), names=("embed", "hidden")
        )
    }
    with pytest.raises(ValueError, match=r"kernel.*axis of 12, expected a multiple of the 8"):
        tree_shardings(boxed, make_mesh())


def test_heads_that_do_not_divide_are_an_error():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    with pytest.raises(ValueError, match="num_heads_global is 2, expected a multiple of the 4"):
        init_state(TINY, make_optimizer(OptimizerConfig(), 3000), 0, mesh)


@pytest.mark.slow
def test_a_seed_gives_the_same_parameters_on_every_mesh():
    optimizer = make_optimizer(OptimizerConfig(), 3000)
    whole = init_state(TINY, optimizer, 7, make_mesh(devices=jax.devices()[:1]))
    split = init_state(TINY, optimizer, 7, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    jax.tree.map(np.testing.assert_array_equal, whole, split)
    other = init_state(TINY, optimizer, 8, make_mesh(devices=jax.devices()[:1]))
    assert not np.array_equal(other.params["output_kernel"], whole.params["output_kernel"])


def test_shapes_are_of_whole_arrays_inside_a_mesh_too():
    mesh = make_mesh()
    outside = param_shapes(TINY, mesh)
    with mesh_context(mesh):
        inside = param_shapes(TINY, mesh)
    assert jax.tree.leaves(inside) == jax.tree.leaves(outside)
