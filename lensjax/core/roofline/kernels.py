"""Work of kernels that programs call without showing it: JAX's Pallas kernels of attention on TPUs ("splash")."""

import math
import re

from lensjax.core.roofline.hlo import Computation, Instruction

_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dq|dkv)_")
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}  # of queries, keys, values, and their gradients, for each pair of tokens


def is_known(one: Instruction) -> bool:
    """Whether an instruction calls a kernel whose work is known."""
    return one.opcode == "custom-call" and _SPLASH.match(one.name) is not None


def kernel_flops(one: Instruction, inside: Computation) -> int:
    """Operations of the kernel's products, 2 per multiply–add, in the blocks of pairs that it does not skip.

    Where causality or a window masks pairs, its first operand says how many blocks of them a row of blocks has at most,
    of which the first rows have fewer.
    """
    kind = _SPLASH.match(one.name)
    if kind is None:
        return 0
    shapes = [operand.shapes[0] for operand in inside.operands(one)]
    queries, keys = [shape.dims for shape in shapes if shape.dtype.startswith(("f", "bf")) and len(shape.dims) > 2][:2]
    share = 1.0
    if shapes[0].dtype.startswith("s"):
        wide, blocks = sorted(shapes[0].dims[-2:])
        share = (blocks * wide - wide * (wide - 1) // 2) / blocks**2
    pairs = round(share * queries[-2] * keys[-2])
    return _PRODUCTS[kind[1]] * 2 * pairs * queries[-1] * math.prod(queries[:-2])
