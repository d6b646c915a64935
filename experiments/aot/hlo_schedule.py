"""What a compiled program waits for: its collectives beside its operations, in scheduled order.

The text of a TPU program is a schedule: a computation's instructions run in their order. An
operation takes the larger of its products' time and its HBM traffic's. A collective's transfer
takes its bytes over the link's rate, from its start on, while the operations after it run; what is
left of it when the program needs its result is exposed: the chip waits. So the step is the sum of
the operations' times and of what is exposed.

| in the text                                     | transfer                                       |
|-------------------------------------------------|------------------------------------------------|
| `all-gather-start` … `-done`, `async-start` …,  | from the start to the done                     |
| `send` … `send-done`                            |                                                |
| fusions that share one collective's channel     | from the first of them to the end of the last  |
| one fusion that holds a collective and products | beside that fusion                             |
| any other collective                            | synchronous, all exposed                       |
| a start without a done in its computation       | waited for at the computation's end            |
| a done without a start in its computation       | waits for nothing                              |

A link does one transfer at a time, in the order of their starts; links within the slice and the
network between slices work side by side. A loop is one turn of its body, as often as it turns:
nothing runs across the end of a turn. While a loop runs, transfers that started before it have the
links only when the loop does not. HBM traffic of a collective itself is that of an operation, and
is not hidden.

The step is never shorter than each of compute, HBM and links alone, nor longer than all of them
one after another.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping

from experiments.aot.hlo_costs import HloCosts, ProgramCosts
from experiments.aot.hlo_messages import Message, transfer_seconds
from experiments.aot.hlo_text import Computation, Instruction
from lst_jax.hardware import Chip


@dataclasses.dataclass(frozen=True)
class ScheduledCollective:
    """A collective of the text and the time of its transfers, over all its turns.

    Attributes:
      name: of the instruction that starts it.
      kind: all-gather, all-reduce, …
      crosses_slices: whether it goes over the network between slices.
      torus_axes: along how many axes of the torus it runs, None where the text does not say.
      beside_products: whether matrix products run between its start and its end.
      turns: how often it runs.
      sent_bytes: that the device sends.
      seconds: of the transfers.
      exposed_seconds: the part that the chip waits for.
    """

    name: str
    kind: str
    crosses_slices: bool
    torus_axes: int | None
    beside_products: bool
    turns: float
    sent_bytes: float
    seconds: float
    exposed_seconds: float

    def times(self, count: float) -> ScheduledCollective:
        """Returns the collective in `count` turns of the loop around it."""
        return dataclasses.replace(
            self,
            turns=self.turns * count,
            sent_bytes=self.sent_bytes * count,
            seconds=self.seconds * count,
            exposed_seconds=self.exposed_seconds * count,
        )


@dataclasses.dataclass(frozen=True)
class Schedule:
    """One run of a computation.

    Attributes:
      operation_seconds: sum over operations of the larger of compute and HBM time.
      has_products: whether it holds matrix products.
      collectives: in the order of their starts, those of its loops at the loop.
    """

    operation_seconds: float
    has_products: bool
    collectives: tuple[ScheduledCollective, ...]

    @property
    def exposed_seconds(self) -> float:
        """Returns the time that the chip waits for links."""
        return sum(x.exposed_seconds for x in self.collectives)

    @property
    def step_seconds(self) -> float:
        """Returns the time of the run."""
        return self.operation_seconds + self.exposed_seconds

    def times(self, count: float) -> Schedule:
        """Returns `count` runs, one after another."""
        collectives = tuple(x.times(count) for x in self.collectives)
        return Schedule(self.operation_seconds * count, self.has_products, collectives)


def schedule_of(program: ProgramCosts, chip: Chip) -> Schedule:
    """Returns the schedule of a compiled program on a chip.

    Args:
      program: parsed, with its costs.
      chip: its rates. Transfers between slices take no time where it has no rate for them.
    """
    return _Scheduler(program, chip).run(program.entry)


class _Transfer:
    """A collective under way."""

    def __init__(self, name: str, message: Message, seconds: float) -> None:
        self.name, self.message, self.seconds = name, message, seconds
        self.left, self.exposed, self.beside_products = seconds, 0.0, False

    def finished(self) -> ScheduledCollective:
        collective, sent = self.message
        return ScheduledCollective(
            self.name,
            collective.kind,
            collective.crosses_slices,
            collective.torus_axes,
            self.beside_products,
            1.0,
            sent,
            self.seconds,
            self.exposed,
        )


class _Timeline:
    """Operations and transfers of one computation, as time passes."""

    def __init__(self) -> None:
        self._operation_seconds = 0.0
        self._has_products = False
        self._queues: dict[bool, deque[_Transfer]] = {False: deque(), True: deque()}
        self._collectives: list[_Transfer | ScheduledCollective] = []
        self._open: list[_Transfer] = []

    def start(self, transfer: _Transfer) -> None:
        """Puts a transfer behind those on its link."""
        self._collectives.append(transfer)
        self._open.append(transfer)
        self._queues[transfer.message[0].crosses_slices].append(transfer)

    def operate(self, seconds: float, has_products: bool) -> None:
        """Runs an operation; the links go on beside it."""
        self._operation_seconds += seconds
        self._note_products(has_products)
        for queue in self._queues.values():
            _pass(queue, seconds)

    def nest(self, inner: Schedule) -> None:
        """Runs another computation; transfers under way have what it leaves of the links."""
        self._operation_seconds += inner.operation_seconds
        self._note_products(inner.has_products)
        for crosses_slices, queue in self._queues.items():
            links = [x.seconds for x in inner.collectives if x.crosses_slices == crosses_slices]
            _pass(queue, max(0.0, inner.step_seconds - sum(links)))
        self._collectives += inner.collectives

    def wait(self, transfer: _Transfer) -> None:
        """Waits for a transfer, and so for those before it on its link."""
        if transfer in self._open:
            self._open.remove(transfer)
        crosses_slices = transfer.message[0].crosses_slices
        queue, other = self._queues[crosses_slices], self._queues[not crosses_slices]
        while transfer in queue:
            first = queue.popleft()
            _pass(other, first.left)
            first.exposed += first.left

    def finish(self) -> Schedule:
        """Waits for what nobody has waited for, and returns the whole."""
        for transfer in list(self._open):
            self.wait(transfer)
        collectives = tuple(
            x.finished() if isinstance(x, _Transfer) else x for x in self._collectives
        )
        return Schedule(self._operation_seconds, self._has_products, collectives)

    def _note_products(self, has_products: bool) -> None:
        self._has_products |= has_products
        for transfer in self._open:
            transfer.beside_products |= has_products


def _pass(queue: deque[_Transfer], seconds: float) -> None:
    """Moves a link's transfers on for a time."""
    while queue and queue[0].left <= seconds:
        seconds -= queue.popleft().left
    if queue:
        queue[0].left -= seconds


class _Scheduler:
    def __init__(self, program: ProgramCosts, chip: Chip) -> None:
        self._program, self._chip = program, chip
        self._cache: dict[str, Schedule] = {}

    def run(self, name: str) -> Schedule:
        if name not in self._cache:
            self._cache[name] = self._walk(self._program.computations[name])
        return self._cache[name]

    def _walk(self, computation: Computation) -> Schedule:
        timeline = _Timeline()
        # Transfers under way by the instruction that a done names, and by collective in fusions.
        started: dict[str, list[_Transfer]] = {}
        last = self._last_parts(computation)
        for x in computation.instructions.values():
            if (inner := self._nested(x, computation)) is not None:
                timeline.nest(inner)
            elif x.opcode.endswith("-done"):
                for transfer in self._waited(x, started):
                    timeline.wait(transfer)
            elif x.opcode.endswith("-update"):
                started[x.name] = self._waited(x, started)
            elif x.opcode == "fusion":
                self._fuse(x, computation, timeline, started, last)
            else:
                self._operate(x, computation, timeline, started)
        return timeline.finish()

    def _nested(self, x: Instruction, within: Computation) -> Schedule | None:
        """Returns what a loop, a call or the heaviest branch of a conditional takes."""
        if x.opcode == "while":
            return self.run(x.callee("body")).times(self._program.turns(x, within))
        if x.opcode == "call":
            return self.run(x.callee("to_apply"))
        if x.opcode == "conditional":
            return self.run(self._program.heaviest_branch(x))
        return None

    def _operate(
        self,
        x: Instruction,
        within: Computation,
        timeline: _Timeline,
        started: dict[str, list[_Transfer]],
    ) -> None:
        timeline.operate(*self._time(self._program.instruction_costs(x, within)))
        transfers = [self._transfer(x, y) for y in self._program.messages_of(x, within).values()]
        for transfer in transfers:
            timeline.start(transfer)
        if x.opcode == "send" or x.opcode.endswith("-start"):
            started[x.name] = transfers
            return
        for transfer in transfers:
            timeline.wait(transfer)

    def _fuse(
        self,
        x: Instruction,
        within: Computation,
        timeline: _Timeline,
        started: dict[str, list[_Transfer]],
        last: Mapping[str, str],
    ) -> None:
        seconds, has_products = self._time(self._program.instruction_costs(x, within))
        messages = self._program.messages_of(x, within)
        new = {key: self._transfer(x, y) for key, y in messages.items() if key not in started}
        started |= {key: [transfer] for key, transfer in new.items()}
        if has_products:  # the collective is what the products were fused with
            self._start(new.values(), timeline)
        timeline.operate(seconds, has_products)
        if not has_products:
            self._start(new.values(), timeline)
        for key in messages:
            if last[key] == x.name:
                for transfer in started[key]:
                    timeline.wait(transfer)

    def _start(self, transfers: Iterable[_Transfer], timeline: _Timeline) -> None:
        for transfer in transfers:
            timeline.start(transfer)

    def _last_parts(self, computation: Computation) -> dict[str, str]:
        """Returns the name of the last fusion that holds a part of each collective."""
        return {
            key: x.name
            for x in computation.instructions.values()
            if x.opcode == "fusion"
            for key in self._program.messages_of(x, computation)
        }

    def _waited(self, done: Instruction, started: Mapping[str, list[_Transfer]]) -> list[_Transfer]:
        return [transfer for name in done.operands for transfer in started.get(name, [])]

    def _transfer(self, x: Instruction, message: Message) -> _Transfer:
        return _Transfer(x.name, message, transfer_seconds(message, self._chip))

    def _time(self, costs: HloCosts) -> tuple[float, bool]:
        compute = costs.matrix_flops / self._chip.flops_per_second
        memory = costs.memory_bytes / self._chip.memory_bandwidth
        return max(compute, memory), costs.matrix_flops > 0
