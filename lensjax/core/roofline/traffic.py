"""Bytes that an HLO instruction reads from and writes to the main memory."""

import re

from lensjax.core.roofline.hlo import Computation, Instruction, Program, Shape

_NOTHING = re.compile(
    r"parameter|constant|tuple|get-tuple-element|bitcast|after-all|partition-id|replica-id|opt-barrier|domain"
    r"|add-dependency|while|conditional|call|infeed|outfeed|send|recv|.*-done|.*-update"
)
_UNSEEN = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")
_UPDATE = {"dynamic-update-slice": 1, "scatter": -1}  # the operand with what is written of the first, in place
_SAME = ("bitcast", "copy", "reshape")


def main_memory_bytes(one: Instruction, inside: Computation, program: Program) -> int:
    """Bytes read and written by an instruction that is not part of a fusion.

    Of arrays that are only sliced, the slices count, and of those that are updated in place, the updates.
    """
    if _NOTHING.fullmatch(one.opcode):
        return 0
    if one.opcode == "custom-call" and any(f'"{name}"' in one.attributes for name in _UNSEEN):
        return 0
    operands = inside.operands(one)
    if one.opcode == "fusion":
        return _fusion(one, operands, program.computations[one.called("calls") or ""], program)
    if one.opcode == "copy-start":
        return _held(one.shapes[0]) + _held(one.shapes[1])
    if one.opcode == "slice-start":
        source, result = one.shapes[0], one.shapes[len(operands)]
        return _held(result) + (result.bytes if source.space == 0 else 0)
    if one.opcode in ("slice", "dynamic-slice", "gather"):
        read = sum(_held(shape) for shape in one.shapes) if operands[0].shapes[0].space else one.bytes
        return read + sum(_held(shape) for shape in one.shapes)
    if one.opcode in _UPDATE:
        update = operands[_UPDATE[one.opcode]].shapes[0]
        return _held(update) + (update.bytes if one.shapes[0].space == 0 else 0)
    if one.opcode.endswith("-start"):
        return 2 * sum(_held(shape) for operand in operands for shape in operand.shapes)
    return sum(_held(shape) for value in (*operands, one) for shape in value.shapes)


def _held(shape: Shape) -> int:
    return shape.bytes if shape.space == 0 else 0


def _fusion(one: Instruction, operands: list[Instruction], inside: Computation, program: Program) -> int:
    total = 0
    for number, operand in enumerate(operands):
        if operand.shapes and operand.shapes[0].space == 0:
            total += _read(inside, inside.parameters[number], operand, program)
    results = inside.operands(inside.root) if inside.root.opcode == "tuple" else [inside.root]
    if len(results) != len(one.shapes):
        return total + sum(_held(shape) for shape in one.shapes)
    return total + sum(
        _written(inside, result, shape, program)
        for shape, result in zip(one.shapes, results, strict=True)
        if shape.space == 0
    )


def _written(inside: Computation, result: Instruction, shape: Shape, program: Program) -> int:
    """Bytes of a result that a fusion writes: of one that is updated in place, the update."""
    while result.opcode in _SAME and result.operands:
        result = inside.by_name[result.operands[0]]
    if result.opcode == "parameter":  # it is passed through
        return 0
    if result.opcode == "fusion":
        within = program.computations[result.called("calls") or ""]
        return _written(within, within.root, shape, program)
    place = _UPDATE.get(result.opcode)
    return shape.bytes if place is None else inside.operands(result)[place].shapes[0].bytes


def _read(inside: Computation, value: Instruction, operand: Instruction, program: Program) -> int:
    """Bytes of an operand that a fusion reads, also where a fusion within it takes the slice."""
    total = 0
    for user in inside.users[value.name]:
        first = user.operands[0] == value.name
        if user.opcode in ("slice", "dynamic-slice") or (user.opcode == "gather" and first):
            total += user.shapes[0].bytes
        elif user.opcode == "bitcast":
            total += _read(inside, user, operand, program)
        elif user.opcode == "fusion":
            within = program.computations[user.called("calls") or ""]
            places = [place for place, name in enumerate(user.operands) if name == value.name]
            total += sum(_read(within, within.parameters[place], operand, program) for place in places)
        elif user.opcode != "tuple" and not (user.opcode in _UPDATE and first):
            return operand.bytes
    return min(total, operand.bytes)
