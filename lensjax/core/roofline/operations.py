"""Floating-point operations of one HLO instruction."""

import math
import re

import numpy as np

from lensjax.core.roofline.hlo import Computation, Instruction, Shape
from lensjax.core.roofline.kernels import is_known, kernel_flops

_ELEMENTWISE = re.compile(
    r"abs|add|and|atan2|cbrt|ceil|clamp|compare|cosine|divide|erf|exponential(-minus-one)?|floor|log(-plus-one)?|logistic"
    r"|maximum|minimum|multiply|negate|or|power|remainder|round-nearest-(afz|even)|rsqrt|select|sign|sine|sqrt|subtract"
    r"|tan|tanh|xor"
)
GROUPED = "ragged-dot-none"  # the kernel of the TPU's compiler that multiplies rows with one of several matrices each
_PASSES = {"highest": 6, "high": 3}
_PIECE = 2**22  # places of a window that are looked at together


def product_flops(instruction: Instruction, computation: Computation) -> int:
    """Operations of a matrix product, convolution or kernel of such, 2 per multiply–add; 0 of other instructions.

    Of a convolution, products with padding and with the zeros between dilated values do not count.
    """
    if instruction.opcode == "dot":
        left = computation.operands(instruction)[0].shapes[0]
        summed = math.prod(left.dims[dim] for dim in instruction.listed("lhs_contracting_dims"))
        return 2 * instruction.shapes[0].size * summed
    if instruction.opcode == "convolution":
        left, right = (operand.shapes[0] for operand in computation.operands(instruction))
        return _convolution(instruction, left, right)
    if instruction.opcode == "custom-call" and instruction.name.startswith(GROUPED):
        matrices = computation.operands(instruction)[-1].shapes[0]
        return 2 * instruction.shapes[0].size * matrices.dims[-2]
    return kernel_flops(instruction, computation) if is_known(instruction) else 0


def passes(instruction: Instruction, computation: Computation) -> int:
    """How often a TPU's units, which multiply in bfloat16, go over a product: of float32 at the highest precision six
    times, at the one below three times, and once otherwise.
    """
    if instruction.opcode not in ("dot", "convolution"):
        return 1
    wanted = re.search(r"operand_precision=\{(\w+),(\w+)\}", instruction.attributes)
    if wanted is None or any(one.shapes[0].dtype != "f32" for one in computation.operands(instruction)):
        return 1
    return max(_PASSES.get(name, 1) for name in wanted.groups())


def other_flops(instruction: Instruction, computation: Computation) -> int:
    """Elementwise operations, and the additions of reductions: one per value."""
    if _ELEMENTWISE.fullmatch(instruction.opcode):
        return instruction.shapes[0].size if _is_real(instruction.shapes[0]) else 0
    if instruction.opcode in ("reduce", "reduce-window"):
        first = computation.operands(instruction)[0].shapes[0]
        return first.size if _is_real(first) else 0
    return 0


def _is_real(shape: Shape) -> bool:
    return shape.dtype.startswith(("f", "bf"))


def _convolution(instruction: Instruction, left: Shape, right: Shape) -> int:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"a convolution without dim_labels: {instruction.name}")
    inputs, kernel, outputs = labels.groups()
    out = instruction.shapes[0].dims
    total = 2 * out[outputs.index("b")] * out[outputs.index("f")] * right.dims[kernel.index("i")]
    for dim, window in enumerate(_windows(instruction.attributes, len(inputs) - 2)):
        digit = str(dim)
        total *= _places(left.dims[inputs.index(digit)], out[outputs.index(digit)], window)
    return total


def _windows(attributes: str, dims: int) -> list[dict[str, tuple[int, int]]]:
    """Size, stride, padding and dilation along each dimension, the second number of padding alone being used."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(item.split("=") for item in found[1].split()) if found else {}
    windows: list[dict[str, tuple[int, int]]] = [{} for _ in range(dims)]
    for name, default in (("size", "1"), ("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"), ("rhs_dilate", "1")):
        values = fields[name].split("x") if name in fields else [default] * dims
        for window, value in zip(windows, values, strict=True):
            first, _, second = value.partition("_")
            window[name] = int(first), int(second or 0)
    return windows


def _places(size: int, out: int, window: dict[str, tuple[int, int]]) -> int:
    """Number of pairs of an output and a place in the window that meet a value of the input."""
    (kernel, _), (stride, _), (low, _), (apart, _), (wide, _) = (
        window[name] for name in ("size", "stride", "pad", "lhs_dilate", "rhs_dilate")
    )
    spread = (size - 1) * apart + 1
    found, step = 0, max(1, _PIECE // kernel)
    within = np.arange(kernel) * wide - low
    for first in range(0, out, step):
        at = (np.arange(first, min(first + step, out)) * stride)[:, None] + within
        found += int(np.count_nonzero((at >= 0) & (at < spread) & (at % apart == 0)))
    return found
