"""Schedules of hand-written programs whose times are known, and their bounds for any program."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.aot.hlo_costs import ProgramCosts
from experiments.aot.hlo_messages import transfer_seconds
from experiments.aot.hlo_schedule import schedule_of
from lst_jax.hardware import Chip

X = "f32[8,8]{1,0}"
ON_CHIP = "f32[8,8]{1,0:S(1)}"
ALL = "f32[32,8]{1,0}"
GROUPS = "replica_groups={{0,1,2,3}}, dimensions={0}"
ARRAY = 8 * 8 * 4
# A product takes a second, a gather among four devices two, a slice's message four, HBM nothing.
CHIP = Chip("round", 2.0 * 8**3, 1.0, 1e30, 3 * ARRAY / 2, 3 * ARRAY / 4, 3)


def product(name):
    return (
        f"  %{name} = {ON_CHIP} dot(%c, %c), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}"
    )


def start(name, channel=1):
    return f"  %{name} = ({X}, {ALL}) all-gather-start(%x), channel_id={channel}, {GROUPS}"


def done(name, of):
    return f"  %{name} = {ALL} all-gather-done(%{of})"


def gather(name, channel=1):
    return f"  %{name} = {ALL} all-gather(%x), channel_id={channel}, {GROUPS}"


def send(name, channel=9):
    target = '_xla_megascale_target="{1,2,3,4}x{0:3}",_xla_megascale_transfer_type="ALL_GATHER"'
    return (
        f"  %{name} = ({X}, u32[], token[]) send(%x, %after), channel_id={channel}, "
        f"frontend_attributes={{{target}}}"
    )


def computation(name, *lines, entry=False):
    """A computation of the lines over an array in HBM, %x, and one on the chip, %c."""
    header = f"{'ENTRY ' if entry else ''}%{name} (x: f32[8,8], c: f32[8,8]) -> f32[8,8] {{"
    first = (
        f"  %x = {X} parameter(0)",
        f"  %c = {ON_CHIP} parameter(1)",
        "  %after = token[] after-all()",
    )
    return "\n".join([header, *first, *lines, f"  ROOT %r = {X} bitcast(%x)", "}\n"])


def loop(name, body, turns):
    known = f'backend_config={{"known_trip_count":{{"n":"{turns}"}}}}'
    return f"  %{name} = {X} while(%x), condition=%{body}, body=%{body}, {known}"


def schedule(*lines, others="", chip=CHIP):
    text = "HloModule m, is_scheduled=true\n" + others + computation("main", *lines, entry=True)
    return schedule_of(ProgramCosts(text), chip)


def seconds(found):
    """(step, exposed of each collective)."""
    return round(found.step_seconds, 6), [round(x.exposed_seconds, 6) for x in found.collectives]


def test_a_collective_without_start_and_done_is_exposed():
    found = schedule(product("a"), gather("g"), product("b"))
    assert seconds(found) == (4, [2])
    (collective,) = found.collectives
    assert (collective.kind, collective.turns, collective.sent_bytes) == (
        "all-gather",
        1,
        3 * ARRAY,
    )
    assert not collective.beside_products


@pytest.mark.parametrize("between, exposed", [(0, 2), (1, 1), (2, 0), (3, 0)])
def test_products_between_start_and_done_hide_as_long_as_they_take(between, exposed):
    products = [product(f"p{i}") for i in range(between)]
    found = schedule(product("a"), start("s"), *products, done("d", "s"), product("b"))
    assert seconds(found) == (2 + between + exposed, [exposed])
    assert found.collectives[0].beside_products == (between > 0)


def test_a_link_does_one_transfer_at_a_time_in_the_order_of_starts():
    between = [product(f"p{i}") for i in range(3)]
    both = (start("s", 1), start("t", 2))
    found = schedule(*both, *between, done("d", "s"), done("e", "t"))
    assert seconds(found) == (4, [0, 1])
    # Whoever waits for the second waits for what is left of the first.
    found = schedule(*both, product("p"), done("e", "t"), product("q"), done("d", "s"))
    assert seconds(found) == (5, [1, 2])


def test_a_synchronous_collective_waits_for_those_under_way():
    found = schedule(start("s", 1), product("p"), gather("g", 2), done("d", "s"))
    assert seconds(found) == (4, [1, 2])


def test_links_within_and_between_slices_work_side_by_side():
    sent = (send("w"), start("s"))
    waits = ("  %e = token[] send-done(%w)", done("d", "s"))
    found = schedule(*sent, product("p"), *waits)
    assert seconds(found) == (4, [3, 0])
    assert [x.crosses_slices for x in found.collectives] == [True, False]
    without = CHIP._replace(network_bandwidth=None)
    assert seconds(schedule(*sent, product("p"), *waits, chip=without)) == (2, [0, 1])


def test_a_loop_is_its_turn_as_often_as_it_turns():
    body = computation("body", start("s"), product("p"), done("d", "s"))
    found = schedule(product("a"), loop("l", "body", 5), others=body)
    assert seconds(found) == (1 + 5 * 2, [5])
    (collective,) = found.collectives
    assert (collective.turns, collective.seconds, collective.sent_bytes) == (5, 10, 15 * ARRAY)


@pytest.mark.parametrize("turns, exposed", [(1, 1), (2, 0)])
def test_a_loop_hides_transfers_while_it_does_not_use_the_links(turns, exposed):
    body = computation("body", product("p"), gather("h"))
    lines = (start("s", 7), loop("l", "body", turns), done("d", "s"))
    found = schedule(*lines, others=body)
    assert seconds(found) == (3 * turns + exposed, [exposed, 2 * turns])
    assert found.collectives[0].beside_products


@pytest.mark.parametrize("after, exposed", [(0, 2), (1, 1), (5, 0)])
def test_a_start_without_a_done_is_waited_for_at_the_end(after, exposed):
    found = schedule(start("s"), *(product(f"p{i}") for i in range(after)))
    assert seconds(found) == (after + exposed, [exposed])


def test_a_done_without_a_start_waits_for_nothing():
    for lost in (done("d", "x"), done("d", "nowhere")):
        assert seconds(schedule(product("a"), lost)) == (1, [])


def test_a_second_done_waits_for_nothing_more():
    lines = (start("s"), done("d", "s"), product("p"), done("e", "s"))
    assert seconds(schedule(*lines)) == (3, [2])


@pytest.mark.parametrize(
    "notes, seconds_",
    [
        ('"emitter":"1DAllGatherNonMajorDim"', 6),
        ('"emitter":"2DAllGather"', 3),
        ('"strategy":"StrategyND","debug":"\\nStrategyND{colors:3 phases:3}"', 2),
        ('"strategy":"StrategyRing","debug":"\\nStrategyRing{colors:1 phases:1}"', 6),
        ('"strategy":"UniDirectionNDRingStrategy","debug":"x{colors:6 phases:3}"', 2),
        ('"strategy":"UniDirection1DRingStrategy","debug":"x{colors:2 phases:1}"', 6),
        ('"emitter":"9DAllGather"', 2),
        ('"strategy":"Unknown"', 2),
    ],
)
def test_an_algorithm_has_the_links_of_the_axes_that_it_runs_along(notes, seconds_):
    config = f', backend_config={{"collective_algorithm_config":{{{notes}}}}}'
    assert seconds(schedule(gather("g") + config)) == (seconds_, [seconds_])
    others, fusion = fused("alone", gather("g"))
    assert seconds(schedule(fusion + config, others=others)) == (seconds_, [seconds_])


def fused(name, *lines):
    return computation(name, *lines), f"  %f_{name} = {X} fusion(%x, %c), calls=%{name}"


def test_a_collective_fused_with_products_runs_beside_them():
    others, fusion = fused("both", product("p"), gather("g"))
    found = schedule(fusion, product("after"), others=others)
    assert seconds(found) == (3, [1])
    assert found.collectives[0].beside_products


def test_a_collective_fused_with_no_product_is_exposed():
    others, fusion = fused("alone", gather("g"))
    found = schedule(product("before"), fusion, product("after"), others=others)
    assert seconds(found) == (4, [2])
    assert not found.collectives[0].beside_products


def test_fusions_that_share_a_channel_are_parts_of_one_transfer():
    first, start_ = fused("first", gather("g", 3))
    part, middle = fused("part", product("p"), gather("g", 3))
    last, end = fused("last", gather("g", 3))
    lines = (start_, middle, end, product("after"))
    found = schedule(*lines, others=first + part + last)
    assert seconds(found) == (3, [1])
    assert [x.name for x in found.collectives] == ["f_first"]


def test_wrapped_collectives_end_where_their_async_done_is():
    wrapped = computation("wrapped", gather("g"))
    lines = (
        f"  %s = (({X}, {X}), {ALL}) async-start(%x, %c), calls=%wrapped",
        product("p"),
        f"  %u = (({X}, {X}), {ALL}) async-update(%s), calls=%wrapped",
        product("q"),
        f"  %d = {ALL} async-done(%u), calls=%wrapped",
    )
    assert seconds(schedule(*lines, others=wrapped)) == (2, [0])
    assert seconds(schedule(*lines[::2], others=wrapped)) == (2, [2])  # the done of no update


def test_an_operation_takes_the_larger_of_compute_and_memory():
    slow = CHIP._replace(memory_bandwidth=ARRAY / 3)
    copy = f"  %y = {ON_CHIP} negate(%x)"
    assert schedule(product("p"), copy, chip=slow).operation_seconds == pytest.approx(1 + 3)
    product_from_memory = product("p").replace("dot(%c, %c)", "dot(%x, %c)")
    assert schedule(product_from_memory, chip=slow).operation_seconds == pytest.approx(3)


def test_calls_and_the_heaviest_branch_count_as_what_they_run():
    others = computation("light", product("p"), product("q")) + computation("heavy", gather("g"))
    others += computation("most", *(product(f"p{i}") for i in range(3)), gather("g"))
    branches = f"  %b = {X} conditional(%x), branch_computations={{%light, %most}}"
    call = f"  %k = {X} call(%x), to_apply=%heavy"
    assert seconds(schedule(branches, call, others=others)) == (3 + 2 + 2, [2, 2])


ONE_AXIS = ', backend_config={"emitter":"1DAllGather"}'
STEPS = ("product", "memory", "gather", "start", "done", "send", "loop", "fusion")


@st.composite
def programs(draw):
    """Lines of any mix of operations, collectives, loops and fusions, in any order."""
    bodies, lines = [], []
    for depth in range(draw(st.integers(1, 3))):
        if depth:
            bodies.append(computation(f"body{depth}", *lines))
        lines = []
        for i, step in enumerate(draw(st.lists(st.sampled_from(STEPS), max_size=12))):
            lines += {
                "product": [product(f"p{i}")],
                "memory": [f"  %m{i} = {X} negate(%x)"],
                "gather": [gather(f"g{i}", i) + draw(st.sampled_from(("", ONE_AXIS)))],
                "start": [start(f"s{i}", i)],
                "done": [done(f"d{i}", f"s{draw(st.integers(0, max(i, 1)))}")],
                "send": [send(f"w{i}", i)],
                "loop": [loop(f"l{i}", f"body{depth}", draw(st.integers(0, 3)))] if bodies else [],
                "fusion": [f"  %f{i} = {X} fusion(%x, %c), calls=%part{draw(st.integers(0, 2))}"],
            }[step]
    parts = "".join(
        computation(f"part{i}", *(product("p"), gather("g", 100 + i // 2))[i % 2 :])
        for i in range(3)
    )
    text = "HloModule m, is_scheduled=true\n" + parts + "".join(bodies)
    return text + computation("main", *lines, entry=True)


@settings(max_examples=200, deadline=None)
@given(
    programs(),
    st.sampled_from([1.0, 300.0, 1e6]),
    st.sampled_from([50.0, 1e4]),
    st.sampled_from([None, 70.0]),
)
def test_every_step_lies_between_perfect_overlap_and_none(text, memory, links, network):
    chip = Chip("any", 1000.0, 1.0, memory, links, network, 3)
    program = ProgramCosts(text)
    costs, found = program.total(), schedule_of(program, chip)
    times = [costs.matrix_flops / chip.flops_per_second, costs.memory_bytes / memory]
    for crosses_slices in (False, True):
        kinds = [x for x in costs.collective_bytes.items() if x[0].crosses_slices == crosses_slices]
        of_links = [x for x in found.collectives if x.crosses_slices == crosses_slices]
        sent = sum(size for _, size in kinds)
        assert sum(x.sent_bytes for x in of_links) == pytest.approx(sent)
        times.append(sum(transfer_seconds(message, chip) for message in kinds))
    assert max(times) <= found.step_seconds * (1 + 1e-9)
    assert found.step_seconds <= sum(times) * (1 + 1e-9)
    for x in found.collectives:
        assert -1e-9 <= x.exposed_seconds <= x.seconds * (1 + 1e-9)
