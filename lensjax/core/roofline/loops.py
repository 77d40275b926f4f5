"""How often the loops of an HLO program run."""

import re

from lensjax.core.roofline.hlo import Computation, Instruction, Program

_SAME = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start")


def steps_of(loop: Instruction, inside: Computation, program: Program) -> int | None:
    """The number of steps of a loop, or None where the program does not say it.

    It is what the compiler noted, or else follows from a counter that begins at a constant, grows by a constant, and is
    compared with one.
    """
    known = re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes)
    if known is not None:
        return int(known[1])
    condition = program.computations[loop.called("condition") or ""]
    body = program.computations[loop.called("body") or ""]
    begun = inside.operands(loop)[0]
    test = condition.root
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, limit = (_source(condition, one) for one in condition.operands(test))
    place = _carried(counter)
    if place is None:
        return None
    start = _constant(inside, _element(inside, begun, place))
    end = _number(condition, limit, inside, begun)
    step = _step(body, place, inside, begun)
    if start is None or end is None or not step:
        return None
    return max(0, -(-(end - start) // step))


def _step(body: Computation, place: int, inside: Computation, begun: Instruction) -> int | None:
    """What a step adds to the counter."""
    value = _element(body, body.root, place)
    value = None if value is None else _source(body, value)
    if value is None or value.opcode != "add":
        return None
    one, other = (_source(body, term) for term in body.operands(value))
    for counter, added in ((one, other), (other, one)):
        if _carried(counter) == place:
            return _number(body, added, inside, begun)
    return None


def _number(here: Computation, value: Instruction, inside: Computation, begun: Instruction) -> int | None:
    """A constant of the loop: one of its own, or one that it was given."""
    found, place = _constant(here, value), _carried(value)
    if found is None and place is not None:
        return _constant(inside, _element(inside, begun, place))
    return found


def _carried(value: Instruction) -> int | None:
    """The place of a value in the tuple that a loop carries."""
    return value.number("index", 0) if value.opcode == "get-tuple-element" else None


def _element(inside: Computation, value: Instruction, place: int) -> Instruction | None:
    return inside.by_name[value.operands[place]] if value.opcode == "tuple" else None


def _source(inside: Computation, value: Instruction) -> Instruction:
    while value.opcode in _SAME and value.operands:
        value = inside.by_name[value.operands[0]]
    return value


def _constant(inside: Computation, value: Instruction | None) -> int | None:
    """A whole number, where the value is one."""
    if value is None:
        return None
    value = _source(inside, value)
    whole = value.opcode == "constant" and re.fullmatch(r"-?\d+", value.inside)
    return int(value.inside) if whole else None
