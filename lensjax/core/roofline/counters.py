"""What a step of a compiled program does on each chip, read from its optimised HLO.

The bodies of loops count as often as they run. A program of the TPU's compiler is scheduled and says what lies in the
main memory (HBM) and what in the chip's vector memory, so that its bytes are those that cross to HBM. Other compilers
do not say so, and every operand and result counts there.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from lensjax.core.roofline.groups import Groups, axes_of, permuted_pairs, replica_groups
from lensjax.core.roofline.hlo import Computation, Instruction, Program, parse
from lensjax.core.roofline.kernels import is_known
from lensjax.core.roofline.loops import steps_of
from lensjax.core.roofline.operations import GROUPED, other_flops, passes, product_flops
from lensjax.core.roofline.traffic import main_memory_bytes

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")
_FREE = (
    "AllocateBuffer",
    "ConcatBitcast",
    "AssumeGatherIndicesInBound",
    "GatherScatterIndicesBitpacked",
    "PrepareAsyncCallStart",
    "PrepareAsyncCallDone",
    "Sharding",
    "ZeroCrop",
)
_GROUPED = (GROUPED, "ragged-dot-metadata")
_AWAY = re.compile("(async|call)-(start|done|update)")  # work elsewhere, as on a TPU's sparse cores
_CHAIN = ("AsyncCollectiveStart", "AsyncCollectiveDone")


class Collective(NamedTuple):
    """A collective of a program, all its runs in a step together.

    Attributes:
      kind: One of `KINDS`.
      axes: Mesh axes that it joins.
      members: Chips of a group.
      bytes: Of the whole array: what an all-gather gives, what a reduction or permutation takes.
      sent: Bytes that a chip has to send, and to receive, whatever the algorithm: of n members (n − 1)/n of the array
        for gathers, scatters and all-to-all, twice that for all-reduce, all of it for permutations.
      asynchronous: Whether other work may run meanwhile.
      overlapped: FLOPs of products that are scheduled between its start and its end.
      runs: How often it runs.
      groups: Its groups of chips, by number of partition; for permutations, the pairs.
    """

    kind: str
    axes: tuple[str, ...]
    members: int
    bytes: float
    sent: float
    asynchronous: bool
    overlapped: float
    runs: int
    groups: Groups


@dataclass(frozen=True)
class Counts:
    """What a program does on each chip.

    Attributes:
      flops: Of matrix products and convolutions.
      other_flops: Of elementwise work and reductions.
      memory_bytes: Read from and written to the main memory.
      work: How often instructions run, by their FLOPs of products, repeated ones too, and their bytes of main memory; a
        fusion is one instruction. Copies that run beside others are not among them.
      collectives: Those that join more than one chip.
      endless: Loops whose number of steps the program does not say; they count once.
      kernels: Custom calls whose work cannot be seen, by target, and how often each runs.
      repeated: FLOPs that the TPU's units, which multiply in bfloat16, take besides `flops` for products of float32 at
        a higher precision than the default: five times as many at the highest, and twice as many at the one below.
    """

    flops: float = 0
    other_flops: float = 0
    memory_bytes: float = 0
    work: Mapping[tuple[float, float], int] = field(default_factory=dict)
    collectives: tuple[Collective, ...] = ()
    endless: int = 0
    kernels: Mapping[str, int] = field(default_factory=dict)
    repeated: float = 0

    def by_kind(self) -> dict[tuple[str, tuple[str, ...]], Collective]:
        """Collectives of the same kind and axes added up."""
        made: dict[tuple[str, tuple[str, ...]], Collective] = {}
        for one in self.collectives:
            key = one.kind, one.axes
            other = made.get(key)
            made[key] = (
                one
                if other is None
                else other._replace(
                    bytes=other.bytes + one.bytes,
                    sent=other.sent + one.sent,
                    asynchronous=other.asynchronous and one.asynchronous,
                    overlapped=other.overlapped + one.overlapped,
                    runs=other.runs + one.runs,
                )
            )
        return made

    def times(self, number: int) -> "Counts":
        """Those of several runs."""
        return Counts(
            self.flops * number,
            self.other_flops * number,
            self.memory_bytes * number,
            {costs: runs * number for costs, runs in self.work.items()},
            tuple(
                one._replace(
                    bytes=one.bytes * number,
                    sent=one.sent * number,
                    overlapped=one.overlapped * number,
                    runs=one.runs * number,
                )
                for one in self.collectives
            ),
            self.endless,
            {name: runs * number for name, runs in self.kernels.items()},
            self.repeated * number,
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.flops + other.flops,
            self.other_flops + other.other_flops,
            self.memory_bytes + other.memory_bytes,
            Counter(self.work) + Counter(other.work),
            self.collectives + other.collectives,
            self.endless + other.endless,
            Counter(self.kernels) + Counter(other.kernels),
            self.repeated + other.repeated,
        )


def count_program(text: str, axes: Mapping[str, int]) -> Counts:
    """Count what a program does on each chip.

    Args:
      text: Of the optimised module, as `jax.stages.Compiled.as_text` gives it.
      axes: Axes of the mesh and their sizes, in the mesh's order.

    Raises:
      ValueError: the text is not that of a module that this reader understands.
    """
    program = parse(text)
    return _Counter(program, tuple(axes), tuple(axes.values())).computation(program.entry)


@dataclass
class _Counter:
    program: Program
    names: Sequence[str]
    sizes: Sequence[int]
    known: dict[str, Counts] = field(default_factory=dict)

    def computation(self, name: str) -> Counts:
        if name not in self.known:
            self.known[name] = self._computation(self.program.computations[name])
        return self.known[name]

    def _computation(self, inside: Computation) -> Counts:
        each = [self._instruction(one, inside) for one in inside.instructions]
        total = sum(each, Counts())
        if not total.collectives:
            return total
        work = [counts.flops + counts.repeated for counts in each]
        found: list[Collective] = []
        for place, counts in enumerate(each):
            for one in counts.collectives:
                end = self._end(inside, place) if one.asynchronous and one.overlapped == 0 else None
                found.append(one if end is None else one._replace(overlapped=sum(work[place + 1 : end])))
        return replace(total, collectives=tuple(found))

    def _end(self, inside: Computation, place: int) -> int | None:
        """The place of the instruction that ends what one of the same computation starts."""
        start = inside.instructions[place]
        chain = self._chain(start)
        for later in range(place + 1, len(inside.instructions)):
            one = inside.instructions[later]
            if one.opcode.endswith("-done") and start.name in one.operands:
                return later
            if chain is not None and self._chain(one, _CHAIN[1]) == chain:
                return later
        return None

    def _chain(self, instruction: Instruction, target: str = _CHAIN[0]) -> str | None:
        """The channel of a collective that a fusion starts or ends, as the TPU's compiler writes them."""
        called = instruction.called("calls") if instruction.opcode == "fusion" else None
        if called is None:
            return None
        inside = self.program.computations[called].instructions
        if not any(f'"{target}"' in one.attributes for one in inside if one.opcode == "custom-call"):
            return None
        return next((_channel(one) for one in inside if _kind(one) is not None), None)

    def _instruction(self, one: Instruction, inside: Computation) -> Counts:
        if one.opcode == "while":
            return self._loop(one, inside)
        if one.opcode == "conditional":
            branches = [self.computation(name) for name in _branches(one)]
            return max(branches, key=lambda counts: (counts.flops, counts.memory_bytes), default=Counts())
        if one.opcode == "call":
            return self.computation(one.called("to_apply") or "")
        flops = product_flops(one, inside)
        moved = main_memory_bytes(one, inside, self.program)
        again = (passes(one, inside) - 1) * flops if self.program.of_tpu else 0
        counts = Counts(flops, other_flops(one, inside), moved, repeated=again)
        if (kind := _between_slices(one)) is not None:
            return replace(counts, collectives=(self._crossing(one, kind, inside),))
        if one.opcode == "fusion":
            fused = self._fused(self.program.computations[one.called("calls") or ""])
            return _worked(counts + replace(fused, memory_bytes=0))
        if _AWAY.fullmatch(one.opcode):
            called = one.called("calls") or one.called("to_apply") if one.opcode.endswith("-start") else None
            inner = Counts() if called is None else self.computation(called)
            started = tuple(item._replace(asynchronous=True) for item in inner.collectives)
            return replace(inner, collectives=started)
        if _kind(one) is not None:
            return replace(counts, collectives=tuple(self._collective(one, inside)))
        if one.opcode == "custom-call":
            target = re.search(r'custom_call_target="([^"]*)"', one.attributes)
            name = "" if target is None else target[1]
            seen = name in _FREE + _CHAIN or one.name.startswith(_GROUPED) or is_known(one)
            return _worked(counts if seen else replace(counts, kernels={name: 1}))
        return counts if one.opcode.endswith("-start") else _worked(counts)

    def _fused(self, inside: Computation) -> Counts:
        """Of a fusion; the steps of a collective that is spread over several fusions count where it starts."""
        total = Counts()
        starts = any(f'"{_CHAIN[0]}"' in one.attributes for one in inside.instructions if one.opcode == "custom-call")
        for one in inside.instructions:
            counts = self._instruction(one, inside)
            if _kind(one) is not None:
                spread = "async_collective_fusion_config" in one.attributes
                made = () if spread and not starts else counts.collectives
                if inside.name.startswith("all-reduce-scatter"):  # so the TPU's compiler writes a reduce-scatter
                    made = tuple(item._replace(kind="reduce-scatter", sent=item.sent / 2) for item in made)
                made = tuple(item._replace(asynchronous=spread or item.asynchronous) for item in made)
                counts = replace(counts, collectives=made)
            total += counts
        return total

    def _loop(self, one: Instruction, inside: Computation) -> Counts:
        body, condition = (self.computation(one.called(kind) or "") for kind in ("body", "condition"))
        steps = steps_of(one, inside, self.program)
        if steps is None:
            return replace(body + condition, endless=body.endless + 1)
        return body.times(steps) + condition.times(steps + 1)

    def _crossing(self, one: Instruction, kind: str, inside: Computation) -> Collective:
        """A collective between slices, in which each chip meets those at its place in the others.

        The program is that of a slice, and hands arrays to the runtime of its host. Slices are the slowest to change in
        the order of the mesh's chips.
        """
        target = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', one.attributes)
        slices = _count(target[1]) if target is not None else 2
        groups = np.arange(math.prod(self.sizes)).reshape(slices, -1).T
        operand = inside.operands(one)[0].bytes
        whole = float(operand * slices if kind == "all-gather" else operand)
        sent = whole * (slices - 1) / slices * (2 if kind == "all-reduce" else 1)
        axes = axes_of(groups, self.names, self.sizes)
        return Collective(kind, axes, slices, whole, sent, True, 0.0, 1, groups)

    def _collective(self, one: Instruction, inside: Computation) -> Iterator[Collective]:
        kind = _kind(one) or ""
        chips = math.prod(self.sizes)
        operand = sum(value.bytes for value in inside.operands(one))
        if kind == "collective-permute":
            groups = permuted_pairs(one.attributes)
            members, whole, sent = 2, float(operand), float(operand)
        else:
            groups = replica_groups(one.attributes, chips)
            members = groups.shape[1]
            whole = float(operand * members if kind == "all-gather" else operand)
            sent = whole * (members - 1) / members * (2 if kind == "all-reduce" else 1)
        axes = axes_of(groups, self.names, self.sizes)
        if axes:
            yield Collective(kind, axes, members, whole, sent, one.opcode.endswith("-start"), 0.0, 1, groups)


def _worked(counts: Counts) -> Counts:
    """Those of an instruction that nothing else runs beside."""
    costs = counts.flops + counts.repeated, counts.memory_bytes
    return replace(counts, work={costs: 1} if any(costs) else {})


def _between_slices(one: Instruction) -> str | None:
    """The kind of a collective that the program leaves to the runtime of hosts."""
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.attributes) if one.opcode == "send" else None
    return None if found is None else found[1].lower().replace("_", "-")


def _count(places: str) -> int:
    """How many numbers a list such as 1,2 or 0:3 names."""
    ends = (piece.partition(":")[::2] for piece in places.split(","))
    return sum(1 if not last else int(last) - int(first) + 1 for first, last in ends)


def _kind(one: Instruction) -> str | None:
    name = one.opcode.removesuffix("-start")
    return name if name in KINDS else None


def _channel(one: Instruction) -> str | None:
    found = re.search(r"channel_id=(\d+)", one.attributes)
    return None if found is None else found[1]


def _branches(one: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
    if listed is not None:
        return re.findall(r"%?([\w.\-]+)", listed[1])
    return [name for kind in ("true_computation", "false_computation") if (name := one.called(kind)) is not None]
