"""The TPU kernels, compiled ahead of time for chips that are not there."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from lst_jax.model.attention import attend, pallas_tpu
from lst_jax.model.key_ranges import KeyRange

pytestmark = pytest.mark.tpu_compile

# B, Q, K, H, D: decoder cross-attention over two latent vectors a patch, and the global one.
DECODER_CROSS = (2, 5632, 8192, 16, 64)
GLOBAL = (2, 4096, 4096, 16, 128)


def compile_step(topology, shape, dtype, mesh_shape):
    """`attend` forward and backward for the first devices of a TPU topology."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    axis_types = (jax.sharding.AxisType.Auto,) * 3
    size = mesh_shape[0] * mesh_shape[1] * mesh_shape[2]
    axes = ("data", "fsdp", "tensor")
    mesh = jax.make_mesh(mesh_shape, axes, axis_types, devices=devices[:size])
    rows, queries, keys, heads, width = shape

    def argument(dims, dtype, heads_axis=()):
        sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, *heads_axis))
        return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)

    q, k = (
        argument((rows, length, heads, width), dtype, ("tensor",)) for length in (queries, keys)
    )
    ranges = KeyRange(*[argument((rows, queries), jnp.int32)] * 2)

    def step(q, k, v, key_range, cotangent):
        out, pull = jax.vjp(lambda *arrays: attend(*arrays, key_range, "pallas_tpu"), q, k, v)
        return out, pull(cotangent)

    with jax.set_mesh(mesh):
        return jax.jit(step).lower(q, k, k, ranges, q).compile()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "shape", "dtype", "mesh_shape"),
    [
        ("v5e:2x2", DECODER_CROSS, "bfloat16", (1, 1, 1)),
        ("v5e:2x2", GLOBAL, "float32", (1, 1, 1)),
        ("v5p:2x2x1", DECODER_CROSS, "bfloat16", (1, 2, 2)),
        ("v5p:2x2x1", GLOBAL, "bfloat16", (1, 1, 1)),
        ("v6e:2x2", DECODER_CROSS, "bfloat16", (1, 1, 1)),
        ("v6e:2x2", GLOBAL, "bfloat16", (1, 2, 2)),
    ],
)
def test_kernels_compile_for_every_chip(topology, shape, dtype, mesh_shape):
    compiled = compile_step(topology, shape, dtype, mesh_shape)
    text = compiled.as_text()
    for kernel in ("forward_kernel", "dq_kernel", "dkv_kernel"):
        assert f"%{kernel}" in text
    # The bound protects from arrays that attention must never make: scores (queries × keys, here at
    # least 5 times all that is allowed) and further copies of whole inputs. Besides arguments and
    # results a compiler may hold q, k and v three times (the newest does in float32, in the layouts
    # of the kernels; older ones half of it) and some percent of its choice: less than half of the
    # smallest input, which a further copy would exceed.
    devices = mesh_shape[0] * mesh_shape[1] * mesh_shape[2]
    rows, queries, keys, heads, width = shape
    of_position = rows * heads * max(width, 128) * jnp.dtype(dtype).itemsize / devices
    bound = 3 * (queries + keys) * of_position + min(queries, keys) * of_position / 2
    assert compiled.memory_analysis().temp_size_in_bytes < bound


def test_more_visits_than_a_tpu_can_list_are_refused():
    q = jax.ShapeDtypeStruct((2000, 2560, 1, 64), jnp.bfloat16)
    ranges = KeyRange(*[jax.ShapeDtypeStruct((2000, 2560), jnp.int32)] * 2)
    with pytest.raises(ValueError, match=r"at most 100000 pairs .* these are 200000"):
        jax.eval_shape(pallas_tpu.pallas_tpu_attention, q, q, q, ranges)
