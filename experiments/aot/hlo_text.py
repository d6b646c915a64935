"""The text of optimized HLO as computations of instructions."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import NamedTuple

# Bytes of an element; types of less than a byte are stored in whole ones.
_ELEMENT_BYTES = {"pred": 1, "token": 0, "opaque": 0}
_COPIES = frozenset(("copy", "copy-done", "copy-start", "bitcast", "convert", "reshape"))
_ON_CHIP = re.compile(r"S\([1-9]\d*\)")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")


class Shape(NamedTuple):
    """An array of the text."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool

    @property
    def num_bytes(self) -> int:
        """Returns the bytes of the array."""
        return math.prod(self.dims) * _element_bytes(self.dtype)

    @property
    def memory_bytes(self) -> int:
        """Returns the bytes in main memory."""
        return 0 if self.on_chip else self.num_bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line: `%name = SHAPES opcode(ARGUMENTS), ATTRIBUTES`."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    arguments: str
    attributes: str

    @functools.cached_property
    def operands(self) -> list[str]:
        """Returns the names of what is read."""
        return _NAME.findall(self.arguments)

    @property
    def op_name(self) -> str:
        """Returns JAX's name stack, or the instruction's own name."""
        match = _OP_NAME.search(self.attributes)
        return match[1] if match else self.name

    def callee(self, role: str) -> str:
        """Returns the computation that the attribute `role` names, or an empty string."""
        match = re.search(rf"\b{role}=%([\w.\-]+)", self.attributes)
        return match[1] if match else ""

    def list_attribute(self, name: str) -> list[int]:
        """Returns the integers of an attribute, none where it is not there."""
        match = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return [int(x) for x in match[1].split(",") if x] if match else []


@dataclasses.dataclass
class Computation:
    """Instructions by name, in order, and the name of the one that is the result."""

    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""

    def users(self, name: str) -> list[Instruction]:
        """Returns the instructions that read `name`."""
        return [other for other in self.instructions.values() if name in other.operands]

    def parameter(self, index: int) -> str | None:
        """Returns the name of a parameter, None where it is not used."""
        for name, instruction in self.instructions.items():
            if instruction.opcode == "parameter" and instruction.arguments == str(index):
                return name
        return None


def names_in(text: str) -> list[str]:
    """Returns the names of instructions or computations in a part of the text."""
    return _NAME.findall(text)


def _element_bytes(dtype: str) -> int:
    if dtype in _ELEMENT_BYTES:
        return _ELEMENT_BYTES[dtype]
    digits = re.search(r"\d+", dtype)  # the width in bits comes first: bf16, f8e4m3fn, c64
    return max(1, int(digits[0]) // 8) if digits else 0


def _closing(text: str, start: int) -> int:
    """Returns the index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"HLO text has an unclosed parenthesis: {text[:80]!r}")


def _parse_instruction(name: str, text: str) -> Instruction:
    """Returns `text` is `TYPE OPCODE(ARGUMENTS), ATTRIBUTES`."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shapes = tuple(
        Shape(
            dtype,
            tuple(int(x.lstrip("<=")) for x in dims.split(",") if x),
            bool(_ON_CHIP.search(layout or "")),
        )
        for dtype, dims, layout in _SHAPE.findall(text[:end])
    )
    opened = text.index("(", end)
    closed = _closing(text, opened)
    return Instruction(
        name, text[end:opened].strip(), shapes, text[opened + 1 : closed], text[closed + 1 :]
    )


def parse_module(text: str) -> tuple[dict[str, Computation], str]:
    """Returns computations by name, and the entry's name.

    Raises:
      ValueError: the text is no HLO module.
    """
    computations: dict[str, Computation] = {}
    current, entry = None, ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[2]] = Computation()
            entry = header[2] if header[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.instructions[match[2]] = _parse_instruction(match[2], match[3])
            current.root = match[2] if match[1] else current.root
    if not entry:
        raise ValueError(f"text is {text[:40]!r}…, expected an HLO module with an entry")
    return computations, entry


def operand_shapes(x: Instruction, within: Computation) -> list[Shape]:
    """Returns the shapes of what an instruction reads."""
    return [shape for name in x.operands for shape in within.instructions[name].shapes]


def original(name: str, within: Computation) -> Instruction:
    """Returns the instruction that `name` is a copy of."""
    x = within.instructions[name]
    while x.opcode in _COPIES and x.operands:
        x = within.instructions[x.operands[0]]
    return x


def constant(name: str, within: Computation) -> int | None:
    """Returns the integer that an instruction is a copy of; None where it is of none."""
    x = original(name, within)
    is_integer = x.opcode == "constant" and re.fullmatch(r"-?\d+", x.arguments)
    return int(x.arguments) if is_integer else None
