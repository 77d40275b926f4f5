"""Reading the text of an optimised HLO program, as `jax.stages.Compiled.as_text` gives it."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_END = re.compile(r"\}(, execution_thread=\"\w+\")?")  # of a computation; one of a TPU's sparse cores has a thread


class Shape(NamedTuple):
    """One array of a value: its type, its dimensions, and its memory space, of which 0 is the main one."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        bits = re.search(r"\d+", self.dtype)
        if self.dtype in ("token", "opaque"):
            return 0
        width = 8 if bits is None else int(bits[0])
        return -(-self.size * width // 8)


@dataclass(frozen=True)
class Instruction:
    """An instruction of a computation.

    Attributes:
      name, opcode: As in the text.
      shapes: The arrays of its result, tuples flattened.
      operands: Names of instructions of the same computation.
      inside: The text between its parentheses: of constants and parameters, their value and number.
      attributes: The text after them.
      root: Whether the computation returns it.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str
    root: bool

    @property
    def bytes(self) -> int:
        """Bytes of its result."""
        return sum(shape.bytes for shape in self.shapes)

    def called(self, kind: str) -> str | None:
        """Name of the computation that an attribute such as `calls` names."""
        found = re.search(rf"\b{kind}=%?([\w.\-]+)", self.attributes)
        return None if found is None else found[1]

    def listed(self, kind: str) -> tuple[int, ...]:
        """Numbers of an attribute such as `lhs_contracting_dims={1,2}`."""
        found = re.search(rf"\b{kind}=\{{([\d,]*)\}}", self.attributes)
        return () if found is None or not found[1] else tuple(map(int, found[1].split(",")))

    def number(self, kind: str, default: int) -> int:
        """Number of an attribute such as `feature_group_count=2`."""
        found = re.search(rf"\b{kind}=(\d+)", self.attributes)
        return default if found is None else int(found[1])


@dataclass(frozen=True)
class Computation:
    """Instructions in the order of the text, which is that of the schedule where the module is scheduled."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        return {one.name: one for one in self.instructions}

    @cached_property
    def root(self) -> Instruction:
        return next(one for one in self.instructions if one.root)

    @cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        return {int(one.inside): one for one in self.instructions if one.opcode == "parameter"}

    @cached_property
    def users(self) -> Mapping[str, tuple[Instruction, ...]]:
        found: dict[str, list[Instruction]] = {one.name: [] for one in self.instructions}
        for one in self.instructions:
            for name in dict.fromkeys(one.operands):
                found[name].append(one)
        return {name: tuple(users) for name, users in found.items()}

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.by_name[name] for name in instruction.operands]


@dataclass(frozen=True)
class Program:
    """The computations of a module by name, the name of that which is run, and whether a TPU's compiler made them."""

    computations: Mapping[str, Computation]
    entry: str
    of_tpu: bool = False


def parse(text: str) -> Program:
    """Read a module's text.

    Args:
      text: As `jax.stages.Compiled.as_text` gives it.

    Raises:
      ValueError: the text is not that of a module.
    """
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    body: list[Instruction] = []
    for line in text.splitlines():
        if _END.fullmatch(line.rstrip()):  # attributes of kernels take several lines
            computations[name] = Computation(name, tuple(body))
            name, body = "", []
        elif line[:1] not in (" ", "") and line.endswith("{") and (header := _HEADER.match(line)):
            name = header[2]
            entry = name if header[1] else entry
        elif name and line.startswith(" ") and " = " in line:
            body.append(_instruction(line.strip()))
    if entry not in computations:
        raise ValueError("this is not the text of an HLO module")
    return Program(computations, entry, "T(8,128)" in text)


def gathered(text: str) -> set[tuple[int, ...]]:
    """Shapes of the arrays that a program's all-gathers take and give."""
    every = (one for inside in parse(text).computations.values() for one in inside.instructions)
    gathers = (one for one in every if one.opcode in ("all-gather", "all-gather-start"))
    return {shape.dims for one in gathers for shape in one.shapes}


def _instruction(line: str) -> Instruction:
    root = line.startswith("ROOT ")
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    close = start + _closing(rest[start:])
    inside = rest[start + 1 : close - 1]
    opcode = rest[:start]
    operands = () if opcode in ("constant", "parameter") else tuple(_NAME.findall(inside))
    return Instruction(name.lstrip("%"), opcode, tuple(_shapes(kind)), operands, inside, rest[close:], root)


def _closing(text: str) -> int:
    """The place after the parenthesis that closes the one that the text begins with."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"a parenthesis is not closed in: {text[:80]}")


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, dims, layout in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size.removeprefix("<=")) for size in dims.split(",") if size)
        yield Shape(dtype, sizes, int(space[1]) if space else 0)
