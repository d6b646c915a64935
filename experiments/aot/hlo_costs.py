"""What a compiled program does, from the text of its optimized HLO: work, traffic, messages.

XLA's own `cost_analysis()` counts the body of a loop once and a kernel as nothing. Here a body
counts as often as it runs: by `known_trip_count` where the compiler left it, else by the constant
that the loop's condition compares with, else by the caller's estimate from the loop's name. All
numbers are of one device, the program of which the text is.

| quantity         | what is counted                                                               |
|------------------|-------------------------------------------------------------------------------|
| matrix FLOPs     | `dot` and `convolution`, two for a multiply-add, taps in the padding left out |
| memory bytes     | an estimate: reads and writes of every instruction outside of fusions, unless |
|                  | the array lies on the chip; slices and in-place updates count what they touch |
| collective bytes | an estimate: what the device sends in rings (`hlo_messages`)                  |

Matrix FLOPs are those of the traced program (`jaxpr_flops`) where nothing is padded or computed by
several devices; tests hold it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from experiments.aot.hlo_messages import Collective, Message, fused_message, message_of
from experiments.aot.hlo_text import (
    Computation,
    Instruction,
    Shape,
    constant,
    names_in,
    operand_shapes,
    original,
    parse_module,
)

# Instructions that only name, group or wait for arrays, or whose cost is that of what they call.
_FREE = frozenset(
    [
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"),
        *("conditional", "after-all", "domain", "partition-id", "replica-id"),
        *("optimization-barrier", "add-dependency"),
    ]
)
_SLICES = frozenset(("slice", "dynamic-slice", "gather"))

# The work of one call of a kernel or one turn of a loop that the text does not tell, from its name.
TripCounts = Callable[[str], float | None]


class KernelCost(NamedTuple):
    """Work of one call of a custom kernel: matrix FLOPs and bytes of memory traffic."""

    flops: float
    memory_bytes: float


@dataclasses.dataclass(frozen=True)
class HloCosts:
    """What one device does in one run of a program.

    Attributes:
      matrix_flops: of dots and convolutions, kernels included.
      memory_bytes: estimate of what is read from and written to main memory.
      collective_bytes: estimate of what the device sends, by kind.
      kernel_flops: the part of `matrix_flops` that is in custom kernels.
      estimated_flops: the part in loops and kernels whose size was estimated by the caller.
      unknown: names of loops (counted as one turn) and kernels (as nothing) without a count.
    """

    matrix_flops: float = 0.0
    memory_bytes: float = 0.0
    collective_bytes: Mapping[Collective, float] = dataclasses.field(default_factory=dict)
    kernel_flops: float = 0.0
    estimated_flops: float = 0.0
    unknown: frozenset[str] = frozenset()

    def __add__(self, other: HloCosts) -> HloCosts:
        kinds = {**self.collective_bytes, **other.collective_bytes}
        return HloCosts(
            self.matrix_flops + other.matrix_flops,
            self.memory_bytes + other.memory_bytes,
            {
                kind: self.collective_bytes.get(kind, 0.0) + other.collective_bytes.get(kind, 0.0)
                for kind in kinds
            },
            self.kernel_flops + other.kernel_flops,
            self.estimated_flops + other.estimated_flops,
            self.unknown | other.unknown,
        )

    def times(self, count: float) -> HloCosts:
        """Returns the cost of `count` runs."""
        return HloCosts(
            self.matrix_flops * count,
            self.memory_bytes * count,
            {kind: size * count for kind, size in self.collective_bytes.items()},
            self.kernel_flops * count,
            self.estimated_flops * count,
            self.unknown,
        )


def hlo_costs(
    text: str,
    trip_counts: TripCounts = lambda name: None,
    kernel_costs: Callable[[str], KernelCost | None] = lambda name: None,
) -> HloCosts:
    """Returns the costs of a compiled program.

    Args:
      text: optimized HLO, `compiled.as_text()`.
      trip_counts: turns of a loop whose bounds depend on data, from its name (JAX's name stack);
        None where it has no estimate.
      kernel_costs: the same for custom kernels; the estimate that a kernel carries itself
        (`pallas_call(cost_estimate=…)`) is used where this has none.

    Raises:
      ValueError: the text is no HLO module, or has device groups of an unknown form.
    """
    return ProgramCosts(text, trip_counts, kernel_costs).total()


class ProgramCosts:
    """A parsed program and the costs of its parts.

    Attributes:
      computations: of the program, by name.
      entry: the name of the one that runs.
    """

    def __init__(
        self,
        text: str,
        trip_counts: TripCounts = lambda name: None,
        kernel_costs: Callable[[str], KernelCost | None] = lambda name: None,
    ) -> None:
        """Parses a program; arguments and errors are those of `hlo_costs`."""
        self.computations, self.entry = parse_module(text)
        self._trip_counts = trip_counts
        self._kernel_costs = kernel_costs
        self._cache: dict[tuple[str, bool], HloCosts] = {}

    def total(self) -> HloCosts:
        """Returns the costs of one run of the program."""
        return self._computation_costs(self.entry, fused=False)

    def _computation_costs(self, name: str, fused: bool) -> HloCosts:
        key = (name, fused)
        if key not in self._cache:
            computation = self.computations[name]
            costs = [self._costs(x, computation, fused) for x in computation.instructions.values()]
            if not fused:
                sent = self._messages(computation).values()
                costs += [HloCosts(collective_bytes={kind: size}) for kind, size in sent]
            self._cache[key] = _total(costs)
        return self._cache[key]

    def instruction_costs(self, x: Instruction, within: Computation) -> HloCosts:
        """Returns the costs of one instruction, the messages in fusions left out."""
        return self._costs(x, within, fused=False)

    def messages_of(self, x: Instruction, within: Computation) -> dict[str, Message]:
        """Returns the collectives that an instruction starts, or holds a part of, by a key.

        One that the compiler interleaves with products lies in several fusions: in each that sends
        a part, with the whole array's shape. They have the same channel and shapes, and so the same
        key. Other collectives may share a channel, too: their keys are their own.
        """
        if x.opcode in ("fusion", "async-start"):
            # A fusion with notes of the collective's algorithm has all of it.
            is_whole = x.opcode == "async-start" or "collective_algorithm_config" in x.attributes
            own = f"{x.name} " if is_whole else ""
            fused = self._fused_messages(self.computations[x.callee("calls")])
            return {own + key: fused_message(y, x.attributes) for key, y in fused.items()}
        message = message_of(x, within)
        return {x.name: message} if message else {}

    def _fused_messages(self, computation: Computation) -> dict[str, Message]:
        """Returns the collectives that a fusion or an asynchronous call holds."""
        messages: dict[str, Message] = {}
        for x in computation.instructions.values():
            for name, message in self.messages_of(x, computation).items():
                channel = re.search(r"channel_id=\d+", x.attributes)
                shapes = [shape.dims for shape in x.shapes]
                key = f"{x.opcode} {channel[0]} {shapes}" if channel else name
                messages.setdefault(key, message)
        return messages

    def _messages(self, computation: Computation) -> dict[str, Message]:
        """Returns the collectives of a computation and its fusions, each once."""
        messages: dict[str, Message] = {}
        for x in computation.instructions.values():
            for key, message in self.messages_of(x, computation).items():
                messages.setdefault(key, message)
        return messages

    def _costs(self, x: Instruction, within: Computation, fused: bool) -> HloCosts:
        if x.opcode == "while":
            return self._loop_costs(x, within)
        called = self._called_costs(x)
        if x.opcode == "custom-call":
            return called + self._kernel(x, within)
        memory = 0.0 if fused else self._memory_bytes(x, within)
        flops = 0.0
        if x.opcode == "dot":
            flops = _dot_flops(x, within)
        elif x.opcode == "convolution":
            flops = _convolution_flops(x, within)
        return called + HloCosts(flops, memory)

    def _called_costs(self, x: Instruction) -> HloCosts:
        if x.opcode == "fusion":
            return self._computation_costs(x.callee("calls"), fused=True)
        if x.opcode == "call":
            return self._computation_costs(x.callee("to_apply"), fused=False)
        if x.opcode == "async-start":
            called = self._computation_costs(x.callee("calls"), fused=False)
            return dataclasses.replace(called, collective_bytes={})  # among the messages
        if x.opcode == "conditional":
            return self._computation_costs(self.heaviest_branch(x), fused=False)
        return HloCosts()

    def heaviest_branch(self, conditional: Instruction) -> str:
        """Returns the computation of a conditional that has most work."""
        branches = re.search(r"branch_computations=\{([^}]*)\}", conditional.attributes)
        names = names_in(branches[1]) if branches else []
        roles = ("true_computation", "false_computation")
        names += [name for name in map(conditional.callee, roles) if name]
        costs = {name: self._computation_costs(name, fused=False) for name in names}
        return max(names, key=lambda name: (costs[name].matrix_flops, costs[name].memory_bytes))

    def _loop_costs(self, loop: Instruction, within: Computation) -> HloCosts:
        body = self._computation_costs(loop.callee("body"), fused=False)
        count = self._known_trip_count(loop, within)
        if count is not None:
            return body.times(count)
        estimate = self._trip_counts(loop.op_name)
        if estimate is None:
            return body + HloCosts(unknown=frozenset([loop.op_name]))
        costs = body.times(estimate)
        return dataclasses.replace(costs, estimated_flops=costs.matrix_flops)

    def turns(self, loop: Instruction, within: Computation) -> float:
        """Returns how often a loop turns, 1 where nobody knows."""
        count = self._known_trip_count(loop, within)
        estimate = self._trip_counts(loop.op_name) if count is None else count
        return 1.0 if estimate is None else estimate

    def _known_trip_count(self, loop: Instruction, within: Computation) -> int | None:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        return self._trip_count_of_condition(loop, within)

    def _trip_count_of_condition(self, loop: Instruction, within: Computation) -> int | None:
        """Turns of `for (i = a; i < b; i += c)` with constants; None for any other loop."""
        condition = self.computations[loop.callee("condition")]
        compare = condition.instructions[condition.root]
        counter, limit = (condition.instructions.get(name) for name in (compare.operands * 2)[:2])
        direction = compare.attributes
        if compare.opcode == "fusion":
            fused = self.computations[compare.callee("calls")]
            direction = fused.instructions[fused.root].attributes
        if "direction=LT" not in direction or counter is None or limit is None:
            return None
        if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
            return None
        index = re.search(r"index=(\d+)", counter.attributes)
        initial = within.instructions[loop.operands[0]]
        if index is None or initial.opcode != "tuple":
            return None
        start = constant(initial.operands[int(index[1])], within)
        step = self._step(loop, int(index[1]))
        if start is None or step is None:
            return None
        return max(0, -(-(int(limit.arguments) - start) // step))

    def _step(self, loop: Instruction, index: int) -> int | None:
        """Returns what a loop's body adds to element `index` of its state."""
        body = self.computations[loop.callee("body")]
        root = body.instructions[body.root]
        if root.opcode != "tuple":
            return None
        name, step = root.operands[index], 0
        while True:
            x = original(name, body)
            if x.opcode == "get-tuple-element":
                same = f"index={index}" in re.findall(r"index=\d+", x.attributes)
                return step if same and step > 0 else None
            operands = self._summands(x)
            constants = [constant(operand, body) for operand in operands]
            if len(operands) != 2 or (constants[0] is None) == (constants[1] is None):
                return None
            step += constants[0] or constants[1] or 0
            name = operands[constants.index(None)]

    def _summands(self, x: Instruction) -> list[str]:
        """Returns what an addition adds, also one that is a fusion."""
        if x.opcode == "add":
            return x.operands
        if x.opcode == "fusion":
            fused = self.computations[x.callee("calls")]
            root = fused.instructions[fused.root]
            arguments = [fused.instructions[name] for name in root.operands]
            if root.opcode == "add" and all(y.opcode == "parameter" for y in arguments):
                return [x.operands[int(y.arguments)] for y in arguments]
        return []

    def _kernel(self, x: Instruction, within: Computation) -> HloCosts:
        """Returns the costs of a Pallas kernel; other custom calls, the compiler's, do no work."""
        if 'custom_call_target="tpu_custom_call"' not in x.attributes:
            return HloCosts()
        estimate = self._kernel_costs(x.op_name)
        if estimate is None:
            estimate = _own_estimate(x)
        if estimate is None:
            memory = _sum_memory([*x.shapes, *operand_shapes(x, within)])
            return HloCosts(memory_bytes=memory, unknown=frozenset([x.op_name]))
        flops, memory = estimate
        return HloCosts(flops, memory, kernel_flops=flops, estimated_flops=flops)

    def _memory_bytes(self, x: Instruction, within: Computation) -> float:
        if x.opcode in _FREE or x.opcode.endswith(("-done", "-update")):
            return 0.0
        if x.opcode == "async-start":
            return 0.0  # counted in what it calls
        if x.opcode in ("copy-start", "slice-start"):
            # (destination, source, …) or (source, destination, …): the smaller is what moves.
            pair = x.shapes[:2]
            moved = min(shape.num_bytes for shape in pair)
            return float(moved * sum(not shape.on_chip for shape in pair))
        if x.opcode == "fusion":
            return self._fusion_memory_bytes(x, within)
        outputs = _sum_memory(x.shapes)
        operands = operand_shapes(x, within)
        if x.opcode in _SLICES:
            return 2.0 * outputs
        if x.opcode == "dynamic-update-slice":
            return 2.0 * operands[1].memory_bytes
        if x.opcode == "scatter":
            return 3.0 * operands[-1].memory_bytes
        return outputs + _sum_memory(operands)

    def _fusion_memory_bytes(self, x: Instruction, within: Computation) -> float:
        fused = self.computations[x.callee("calls")]
        total = 0.0
        for index, shape in enumerate(operand_shapes(x, within)):
            if shape.on_chip or (parameter := fused.parameter(index)) is None:
                continue
            total += _bytes_read(parameter, fused, self.computations)
        root = fused.instructions[fused.root]
        names = root.operands if root.opcode == "tuple" else [root.name]
        for name, shape in zip(names, x.shapes, strict=False):
            if not shape.on_chip:
                total += _bytes_written(name, fused)
        return total


def _total(costs: Iterable[HloCosts]) -> HloCosts:
    return sum(costs, HloCosts())


def _sum_memory(shapes: Iterable[Shape]) -> float:
    return float(sum(shape.memory_bytes for shape in shapes))


def _bytes_read(name: str, within: Computation, modules: Mapping[str, Computation]) -> float:
    """Returns the bytes of a fusion's parameter that its users read."""
    whole = within.instructions[name].shapes[0].num_bytes
    total = 0.0
    for user in within.users(name):
        if user.opcode == "bitcast":
            total += _bytes_read(user.name, within, modules)
        elif user.opcode == "fusion":
            total += _bytes_read_by_fusion(name, user, modules)
        elif user.opcode in _SLICES and user.operands[0] == name:
            total += user.shapes[0].num_bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue  # updated in place
        else:
            return whole
    return min(total, whole)


def _bytes_read_by_fusion(
    name: str, fusion: Instruction, modules: Mapping[str, Computation]
) -> float:
    """Returns the bytes of the array `name` that a fusion inside of a fusion reads."""
    inner = modules[fusion.callee("calls")]
    parameters = (inner.parameter(i) for i, x in enumerate(fusion.operands) if x == name)
    return sum(_bytes_read(parameter, inner, modules) for parameter in parameters if parameter)


def _bytes_written(name: str, within: Computation) -> float:
    """Returns the bytes that a fusion writes for one of its results."""
    x = within.instructions[name]
    while x.opcode == "bitcast":
        x = within.instructions[x.operands[0]]
    if x.opcode == "dynamic-update-slice":
        return float(within.instructions[x.operands[1]].shapes[0].num_bytes)
    return float(sum(shape.num_bytes for shape in x.shapes))


def _own_estimate(kernel: Instruction) -> KernelCost | None:
    """Returns what the kernel's author said of it (`pallas_call(cost_estimate=…)`)."""
    match = re.search(r'"cost_estimate":\{([^}]*)\}', kernel.attributes)
    if not match:
        return None
    values = dict(re.findall(r'"(\w+)":"?(\d+)"?', match[1]))
    return KernelCost(float(values.get("flops", 0)), float(values.get("bytes_accessed", 0)))


def _dot_flops(x: Instruction, within: Computation) -> float:
    lhs = within.instructions[x.operands[0]].shapes[0].dims
    contracted = math.prod(lhs[axis] for axis in x.list_attribute("lhs_contracting_dims"))
    return 2.0 * math.prod(x.shapes[0].dims) * contracted


def _convolution_flops(x: Instruction, within: Computation) -> float:
    """Returns the FLOPs of a convolution, which on TPUs matrix products are, too."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", x.attributes)
    if not labels:
        raise ValueError(f"convolution has no dim_labels: {x.attributes[:80]!r}")
    lhs, rhs = (within.instructions[name].shapes[0].dims for name in x.operands[:2])
    out = x.shapes[0].dims
    window = _window(x.attributes)
    taps = 1
    for axis in range(len(out) - 2):
        label = str(axis)
        taps *= _valid_taps(
            lhs[labels[1].index(label)],
            rhs[labels[2].index(label)],
            out[labels[3].index(label)],
            {name: values[axis] for name, values in window.items() if axis < len(values)},
        )
    batch, features = out[labels[3].index("b")], out[labels[3].index("f")]
    return 2.0 * taps * batch * features * rhs[labels[2].index("i")]


def _window(attributes: str) -> dict[str, list[str]]:
    match = re.search(r"window=\{([^}]*)\}", attributes)
    fields = (field.split("=") for field in match[1].split()) if match else ()
    return {name: values.split("x") for name, values in fields}


def _valid_taps(size: int, taps: int, positions: int, window: Mapping[str, str]) -> int:
    """Returns the pairs of an output position and a kernel tap that meet an element of the input.

    Args:
      size: input length along the axis.
      taps: kernel length.
      positions: output length.
      window: stride, pad, lhs_dilate, rhs_dilate of the axis, where not trivial.
    """
    stride, base = int(window.get("stride", 1)), int(window.get("lhs_dilate", 1))
    dilation = int(window.get("rhs_dilate", 1))
    low = int(window.get("pad", "0_0").split("_")[0])
    at = stride * np.arange(positions)[:, None] + dilation * np.arange(taps) - low
    return int(np.sum((at >= 0) & (at <= (size - 1) * base) & (at % base == 0)))
