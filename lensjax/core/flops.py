"""Floating-point operations: how many the matrix products of a function take, and how many a device can do a second."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr
from numpy.typing import DTypeLike

# Dense TFLOP/s of matrix units by pattern of `device_kind`, in the types that they take.
_TPUS: Sequence[tuple[str, float]] = (
    (r"TPU v2", 45 / 2),  # JAX's devices are the two cores of a chip of v2, v3 and 7x
    (r"TPU v3", 123 / 2),
    (r"TPU v4", 275),
    (r"TPU v5 lite|TPU v5e", 197),
    (r"TPU v5p?", 459),
    (r"TPU v6 lite|TPU v6e", 918),
    (r"TPU ?v?7x?", 2307 / 2),
)
_GPUS: Sequence[tuple[str, dict[str, float]]] = (
    (r"Tesla V100-SXM2.*", {"float16": 125, "float32": 15.7}),  # no TF32, so float32 is that of the other units
    (r"Tesla V100-PCIE.*", {"float16": 112, "float32": 14}),
    (r"Tesla T4", {"float16": 65, "float32": 8.1}),
    (r"NVIDIA A100.*", {"float16": 312, "bfloat16": 312, "float32": 156}),
    (r"NVIDIA A10", {"float16": 125, "bfloat16": 125, "float32": 62.5}),
    (r"NVIDIA L4", {"float16": 121, "bfloat16": 121, "float32": 60}),
    (r"NVIDIA L40S", {"float16": 362, "bfloat16": 362, "float32": 183}),
    (r"NVIDIA H100 PCIe", {"float16": 756, "bfloat16": 756, "float32": 378}),
    (r"NVIDIA H(100|200) NVL", {"float16": 835, "bfloat16": 835, "float32": 417}),
    (r"NVIDIA (H100.* HBM3|H200|GH200.*)", {"float16": 989, "bfloat16": 989, "float32": 494}),
    (r"NVIDIA B200", {"float16": 2250, "bfloat16": 2250, "float32": 1125}),
    (r"NVIDIA GB200", {"float16": 2500, "bfloat16": 2500, "float32": 1250}),
)


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
    """Floating-point operations of the matrix products and convolutions of function(*args): 2 per multiply–add.

    They are counted from the function's jaxpr, so nothing is computed, and `args` may be `jax.ShapeDtypeStruct`s; a
    function that `jax.jit` made may have static ones, and is not traced again when it is called. What no result depends
    on is not counted, as compilers leave it out. A scan counts as often as it has steps, so does a `fori_loop` with
    constant bounds, and what a backward pass computes anew counts again. Of the branches of a `cond` the largest
    counts. The body of a `while_loop`, whose number of steps is not known, counts once. What `shard_map` spreads over
    devices counts for each of them.

    Norms, softmaxes and other elementwise work are not counted, nor are decompositions and solutions of linear systems,
    nor kernels that JAX cannot see into: Pallas's, and cuDNN's attention, for which count a model with "xla" attention.
    Attention counts in full where half of it is masked; so does padding of a convolution.

    Returns:
      FLOPs, as an exact integer.
    """
    compiled = function if hasattr(function, "trace") else jax.jit(function)
    jaxpr = compiled.trace(*args).jaxpr.jaxpr
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(needed)


def peak_flops(device: Any, dtype: DTypeLike) -> float | None:
    """Published dense peak of the matrix units of one JAX device, in FLOP/s; None where it is not known.

    Of float32 it is the peak at JAX's default precision: one bfloat16 pass on TPUs, TF32 on NVIDIA's GPUs from Ampere
    on, and before those float32 on the other units. GPUs are taken at full power and boost clock, and without the
    factor of 2 for sparse matrices; a slice of one (MIG) is not known.

    Sources: the pages "TPU v2" to "TPU7x (Ironwood)" of Google Cloud's TPU documentation; NVIDIA's data sheets of V100,
    T4, A100, A10, L4, L40S, H100, H100 NVL, H200, GH200, DGX B200 and GB200 NVL72.

    Args:
      device: Such as `jax.devices()[0]`; its `device_kind` decides.
      dtype: Of the factors, whose products are summed in float32.
    """
    kind, name = str(device.device_kind), jax.numpy.dtype(dtype).name
    for pattern, tera in _TPUS:
        if re.fullmatch(pattern, kind):
            return tera * 1e12 if name in ("bfloat16", "float32") else None
    for pattern, table in _GPUS:
        if re.fullmatch(pattern, kind) and "MIG" not in kind:
            return table[name] * 1e12 if name in table else None
    return None


def _count(jaxpr: Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name in _PRODUCTS:
        return 2 * _PRODUCTS[name](equation)
    if name == "pallas_call":  # its body runs on blocks
        return 0
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in params["branches"])
    if name == "custom_linear_solve":  # holds the system and its transpose besides
        return _count(params["jaxprs"].solve.jaxpr)
    inner = sum(_count(jaxpr) for jaxpr in _jaxprs(list(params.values())))
    if name == "scan":
        return int(params["length"]) * inner
    if name == "shard_map":  # has the shapes of one device
        sizes = dict(params["mesh"].shape)
        return inner * math.prod(int(sizes[axis]) for axis in params["newly_manual_axes"])
    return inner


def _jaxprs(values: Any) -> Iterator[Jaxpr]:
    """The jaxprs among the settings of an equation."""
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)


def _dot_general(equation: JaxprEqn) -> int:
    """Every value of the result is a sum over the contracted dimensions."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = _shape(equation.invars[0])
    return _size(equation) * _product(shape, contracted)


def _ragged_dot_general(equation: JaxprEqn) -> int:
    """Every row meets the matrix of its group only; where groups divide what is contracted, each sums its part."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    shape, groups = _shape(equation.invars[0]), _shape(equation.invars[2])[-1]
    divided = set(numbers.lhs_ragged_dimensions) & set(contracted)
    return _size(equation) * _product(shape, contracted) // (groups if divided else 1)


def _convolution(equation: JaxprEqn) -> int:
    """Every value of the result is a sum over the kernel's window and input features."""
    kernel, outputs = _shape(equation.invars[1]), equation.params["dimension_numbers"].rhs_spec[0]
    return _size(equation) * math.prod(kernel) // int(kernel[outputs])


def _size(equation: JaxprEqn) -> int:
    return math.prod(_shape(equation.outvars[0]))


def _product(shape: tuple[int, ...], dims: Sequence[int]) -> int:
    return math.prod(shape[dim] for dim in dims)


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(variable.aval.shape)


_PRODUCTS: dict[str, Callable[[JaxprEqn], int]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot_general,
}
