"""Counts from HLO texts against products and messages whose sizes are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from experiments.aot.hlo_costs import KernelCost, _valid_taps, hlo_costs
from experiments.aot.hlo_messages import Collective, device_groups
from lst_jax.sharding import MeshConfig, make_mesh

P = PartitionSpec


def compiled_text(function, *arguments, **kwargs):
    return jax.jit(function, **kwargs).lower(*arguments).compile().as_text()


def array(*shape, dtype=jnp.float32, sharding=None):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def products(x, count):
    """`count` products (64, 64) @ (64, 64) in a loop."""
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ x), None), x, None, length=count)[0]


def test_a_loop_counts_as_often_as_it_turns():
    counts = [
        hlo_costs(compiled_text(functools.partial(products, count=n), array(64, 64))).matrix_flops
        for n in (3, 12)
    ]
    assert counts == [3 * 2 * 64**3, 12 * 2 * 64**3]


def test_the_backward_pass_of_a_loop_counts_twice_the_forward():
    def loss(x, y):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ y), None), x, None, length=7)[0].sum()

    text = compiled_text(jax.grad(loss, (0, 1)), array(64, 64), array(64, 64))
    assert hlo_costs(text).matrix_flops == 3 * 7 * 2 * 64**3


def test_loops_in_loops_multiply():
    def outer(x):
        return jax.lax.scan(lambda c, _: (products(c, 5), None), x, None, length=4)[0]

    assert hlo_costs(compiled_text(outer, array(64, 64))).matrix_flops == 20 * 2 * 64**3


def data_dependent(x, count):
    return jax.lax.fori_loop(0, count, lambda _, c: jnp.tanh(c @ x), x)


def test_a_loop_that_depends_on_data_is_estimated_by_name_or_told():
    text = compiled_text(data_dependent, array(64, 64), array(dtype=jnp.int32))
    body = 2 * 64**3
    unknown = hlo_costs(text)
    assert unknown.matrix_flops == body
    assert [name.rsplit("/", 1)[1] for name in unknown.unknown] == ["while"]
    estimated = hlo_costs(text, trip_counts=lambda name: 2.5 if "while" in name else None)
    assert estimated.matrix_flops == estimated.estimated_flops == 2.5 * body
    assert not estimated.unknown


def test_trip_counts_come_from_the_condition_where_the_compiler_left_none():
    text = compiled_text(functools.partial(products, count=9), array(64, 64))
    assert '"known_trip_count":{"n":"9"}' in text
    bare = text.replace('"known_trip_count":{"n":"9"}', '"known_trip_count":{}')
    assert hlo_costs(bare).matrix_flops == 9 * 2 * 64**3


UNROLLED = """HloModule m
%body (s: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %s = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%s), index=1
  %one = s32[] constant(1)
  %once = s32[] add(%i, %one)
  %twice = s32[] add(%one, %once)
  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[8,8]{1,0}) tuple(%twice, %y)
}
%condition (s: (s32[], f32[8,8])) -> pred[] {
  %s = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[] constant(9)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}
ENTRY %main (x: f32[8,8]) -> (s32[], f32[8,8]) {
  %x = f32[8,8]{1,0} parameter(0)
  %start = s32[] constant(START)
  %copied = s32[] copy(%start)
  %state = (s32[], f32[8,8]{1,0}) tuple(%copied, %x)
  ROOT %loop = (s32[], f32[8,8]{1,0}) while(%state), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize("start, turns", [(0, 5), (1, 4), (-1, 5), (9, 0), (20, 0)])
def test_unrolled_loops_turn_less_often(start, turns):
    text = UNROLLED.replace("START", str(start))
    assert hlo_costs(text).matrix_flops == turns * 2 * 8**3


def test_loops_whose_counter_is_no_sum_are_unknown():
    text = UNROLLED.replace("START", "0").replace("add(%one, %once)", "multiply(%one, %once)")
    assert hlo_costs(text).unknown == {"loop"}


@pytest.mark.parametrize("equation", ["bij,bjk->bik", "ij,kj->ik", "bhqd,bhkd->bhqk", "ij,ij->"])
def test_products_count_two_for_a_multiply_add(equation):
    sizes = dict(zip("bhijkqd", (2, 3, 8, 16, 24, 32, 40), strict=True))
    left, right = equation.split("->")[0].split(",")
    shapes = [array(*(sizes[x] for x in axes)) for axes in (left, right)]
    text = compiled_text(functools.partial(jnp.einsum, equation), *shapes)
    expected = 2 * np.prod([sizes[x] for x in set(left + right)])
    # Most versions of XLA make an elementwise product and a sum of an inner product of matrices.
    choices = (0, expected) if equation == "ij,ij->" else (expected,)
    assert hlo_costs(text).matrix_flops in choices


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
def test_convolutions_count_as_xla_counts_them(padding, dilation):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 1),
            padding,
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    compiled = jax.jit(convolve).lower(array(2, 16, 17, 8), array(3, 4, 8, 6)).compile()
    counted = hlo_costs(compiled.as_text()).matrix_flops
    assert counted == compiled.cost_analysis()["flops"]


def test_a_batched_product_written_as_a_convolution_counts_its_diagonal():
    """As TPUs write one: a batch axis of 16 is walked by a window that meets one element a time."""
    text = """HloModule m
ENTRY %main (a: bf16[16,128,64], b: bf16[16,32,64]) -> f32[16,128,32] {
  %a = bf16[16,128,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[16,32,64]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c = f32[16,128,32]{2,1,0:T(8,128)} convolution(%a, %b), \
window={size=16 stride=15 lhs_dilate=16}, dim_labels=0bf_0oi->0bf
}
"""
    costs = hlo_costs(text)
    assert costs.matrix_flops == 2 * 16 * 128 * 32 * 64
    assert costs.memory_bytes == 2 * 16 * 128 * 64 + 4 * 16 * 128 * 32  # b is on the chip


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(1, 9),
    taps=st.integers(1, 5),
    stride=st.integers(1, 4),
    low=st.integers(0, 4),
    base=st.integers(1, 3),
    dilation=st.integers(1, 3),
)
def test_taps_in_padding_and_holes_do_not_count(size, taps, stride, low, base, dilation):
    positions = 4
    window = {
        "stride": str(stride),
        "pad": f"{low}_0",
        "lhs_dilate": str(base),
        "rhs_dilate": str(dilation),
    }
    holes = np.zeros(64 + low, int)
    holes[low + np.arange(size) * base] = 1
    met = sum(holes[stride * p + dilation * t] for p in range(positions) for t in range(taps))
    assert _valid_taps(size, taps, positions, window) == met


COLLECTIVES = {
    "all-gather": (lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), 3 * 4 * 128 * 4),
    "all-reduce": (lambda x: jax.lax.psum(x, "fsdp"), 2 * 3 / 4 * 4 * 128 * 4),
    "reduce-scatter": (
        lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True),
        3 / 4 * 4 * 128 * 4,
    ),
    "all-to-all": (lambda x: jax.lax.all_to_all(x, "fsdp", 0, 1, tiled=True), 3 / 4 * 4 * 128 * 4),
    "collective-permute": (
        lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]),
        4 * 128 * 4,
    ),
}


@pytest.mark.parametrize("kind", COLLECTIVES)
@pytest.mark.parametrize("turns", [1, 3])
def test_messages_are_counted_by_kind_and_by_turn(kind, turns):
    function, expected = COLLECTIVES[kind]
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))

    def once(x):
        y = function(x)
        return jnp.tanh(x + (y if y.shape == x.shape else y.sum()))

    def repeated(x):
        return jax.lax.scan(lambda c, _: (once(c), None), x, None, length=turns)[0]

    rows = P(("data", "fsdp"))
    spread = jax.shard_map(repeated, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    x = array(32, 128, sharding=NamedSharding(mesh, rows))
    costs = hlo_costs(compiled_text(spread, x))
    assert costs.collective_bytes == {Collective(kind, False): pytest.approx(turns * expected)}


def test_messages_to_other_slices_are_apart():
    text = """HloModule m
ENTRY %main (x: f32[8,128]) -> token[] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %first = token[] after-all()
  %send = (f32[8,128]{1,0:T(8,128)}, u32[], token[]) send(%x, %first), channel_id=2, \
frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:3}",_xla_megascale_transfer_type="KIND"}
  ROOT %done = token[] send-done(%send), channel_id=2
}
"""
    for name, kind, factor in (
        ("ALL_REDUCE", "all-reduce", 1.5),
        ("ALL_GATHER", "all-gather", 3),
        ("ONE_TO_ONE", "one-to-one", 1),
    ):
        costs = hlo_costs(text.replace("KIND", name))
        assert costs.collective_bytes == {Collective(kind, True): factor * 8 * 128 * 4}


def test_a_message_that_several_fusions_send_in_parts_counts_once():
    """As TPUs overlap one with products: each fusion that sends a part has all of it inside."""
    fused = """%NAME (p: f32[8,128]) -> f32[32,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %g = f32[32,128]{1,0:T(8,128)} all-gather(%p), channel_id=CHANNEL, \
replica_groups={{0,1,2,3}}, dimensions={0}
}
"""
    text = "HloModule m\n"
    for name, channel in (("start", "7"), ("done", "7"), ("other", "8")):
        text += fused.replace("NAME", name).replace("CHANNEL", channel)
    text += """ENTRY %main (x: f32[8,128]) -> f32[32,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %a = f32[32,128]{1,0:T(8,128)} fusion(%x), kind=kCustom, calls=%start
  %b = f32[32,128]{1,0:T(8,128)} fusion(%x), kind=kCustom, calls=%done
  ROOT %c = f32[32,128]{1,0:T(8,128)} fusion(%x), kind=kCustom, calls=%other
}
"""
    sent = hlo_costs(text).collective_bytes
    assert sent == {Collective("all-gather", False): 2 * 3 * 8 * 128 * 4}


PLAIN_TWICE = "\n".join(
    f"  %{name} = f32[8,128]{{1,0}} all-reduce(%x), channel_id=1, replica_groups={{{{0,1}}}}"
    for name in "de"
)


def test_combined_reductions_that_share_a_channel_count_each():
    text = "HloModule m\n"
    for name, rows in (("first", 8), ("second", 16)):
        text += f"""%{name} (p: f32[{rows},128]) -> f32[{rows},128] {{
  %p = f32[{rows},128]{{1,0}} parameter(0)
  ROOT %g = f32[{rows},128]{{1,0}} all-reduce(%p), channel_id=1, replica_groups={{{{0,1}}}}, \
to_apply=%add
}}
"""
    text += """ENTRY %main (x: f32[8,128], y: f32[16,128]) -> f32[16,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %y = f32[16,128]{1,0} parameter(1)
  %a = f32[8,128]{1,0} fusion(%x), kind=kCustom, calls=%first
  ROOT %b = f32[16,128]{1,0} fusion(%y), kind=kCustom, calls=%second
}
"""
    sent = hlo_costs(text).collective_bytes
    assert sent == {Collective("all-reduce", False): (8 + 16) * 128 * 4}
    twice = text.replace("%a = f32[8,128]{1,0} fusion(%x), kind=kCustom, calls=%first", PLAIN_TWICE)
    sent = hlo_costs(twice).collective_bytes
    assert sent == {Collective("all-reduce", False): (8 + 8 + 16) * 128 * 4}


def test_a_reduction_of_which_a_fusion_keeps_a_part_is_a_scatter():
    text = """HloModule m
%kept (p: f32[8,128]) -> f32[2,128] {
  %p = f32[8,128]{1,0} parameter(0)
  %i = s32[] constant(0)
  %g = f32[8,128]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %s = f32[2,128]{1,0} dynamic-slice(%g, %i, %i), dynamic_slice_sizes={2,128}
}
ENTRY %main (x: f32[8,128]) -> f32[2,128] {
  %x = f32[8,128]{1,0} parameter(0)
  ROOT %a = f32[2,128]{1,0} fusion(%x), kind=kCustom, calls=%kept, backend_config=\
{"collective_algorithm_config":{"emitter":"SingleInputAllReduceScatterFusion",\
"strategy":"StrategyRing","debug":"\\nStrategyRing{colors:1 phases:1 cores:{4}}"}}
}
"""
    sent = hlo_costs(text).collective_bytes
    assert sent == {Collective("reduce-scatter", False, 1): 3 / 4 * 8 * 128 * 4}
    plain = hlo_costs(text.replace("AllReduceScatter", "Other")).collective_bytes
    assert plain == {Collective("all-reduce", False, 1): 2 * 3 / 4 * 8 * 128 * 4}


@pytest.mark.parametrize(
    "text, groups",
    [
        ("replica_groups={{0,2},{1,3}}, x=1", [[0, 2], [1, 3]]),
        ("replica_groups=[2,4]<=[8], x=1", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=3] {'a'}, x", [[0, 3], [1, 4], [2, 5]]),
        ("replica_groups=mesh['a'=2,'b'=3] {'a','b'}, x", [[0, 1, 2, 3, 4, 5]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}, x", [[3, 2], [1, 0]]),
        ("source_target_pairs={{0,1},{1,0}}, x", [[0, 1], [1, 0]]),
    ],
)
def test_device_groups_are_read_in_every_form(text, groups):
    np.testing.assert_array_equal(device_groups("channel_id=1, " + text), groups)


@pytest.mark.parametrize("text", ["replica_groups=?", "replica_groups=mesh['a'=2] {'a':(1)2}"])
def test_unknown_forms_of_device_groups_are_an_error(text):
    with pytest.raises(ValueError, match="unknown form of device groups"):
        device_groups(text)


KERNEL = """HloModule m
ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %k = f32[8,128]{1,0:T(8,128)} custom-call(%a), \
custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/kernel"}, backend_config={ESTIMATE}
}
"""


def test_kernels_cost_what_the_caller_or_else_their_author_estimates():
    own = KERNEL.replace("ESTIMATE", '"cost_estimate":{"flops":"300","bytes_accessed":"40"}')
    assert hlo_costs(own).kernel_flops == hlo_costs(own).matrix_flops == 300
    assert hlo_costs(own).memory_bytes == 40
    given_ = hlo_costs(own, kernel_costs=lambda name: KernelCost(7.0, 5.0))
    assert (given_.matrix_flops, given_.memory_bytes) == (7, 5)
    unknown = hlo_costs(KERNEL.replace("ESTIMATE", ""))
    assert unknown.unknown == {"jit(f)/kernel"}
    assert unknown.memory_bytes == 2 * 8 * 128 * 4


def test_slices_and_updates_in_place_count_what_they_touch():
    def write_rows(buffer, rows):
        def step(carry, i):
            row = jax.lax.dynamic_slice_in_dim(rows, i, 1)
            return jax.lax.dynamic_update_slice_in_dim(carry, row * 2, i, 0), None

        return jax.lax.scan(step, buffer, jnp.arange(1000))[0]

    text = compiled_text(write_rows, array(1000, 128), array(1000, 128), donate_argnums=0)
    touched = 2 * 1000 * 128 * 4
    assert touched <= hlo_costs(text).memory_bytes < 3 * touched


@pytest.mark.parametrize("text", ["", "HloModule empty", "not HLO at all\n"])
def test_a_text_that_is_no_module_is_an_error(text):
    with pytest.raises(ValueError, match="expected an HLO module"):
        hlo_costs(text)
