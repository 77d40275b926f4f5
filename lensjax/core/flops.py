"""Floating-point operations of a function's matrix products."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
    """Floating-point operations of the matrix products and convolutions of `function(*args)`: 2 per multiply–add.

    They are counted in the function's jaxpr, so nothing is computed. Products that no result depends on do not count,
    as compilers remove them. The body of a scan, or of a `fori_loop` with constant bounds, counts once per step, and
    once in all for a `while_loop`, whose number of steps is not known. The largest branch of a `cond` counts. Products
    that a backward pass recomputes count again. The work in a `shard_map` counts for each device.

    Elementwise work such as norms and softmaxes does not count, nor do decompositions and solutions of linear systems,
    nor kernels that JAX cannot see into: Pallas's and cuDNN's attention (count a model with "xla" attention instead).
    Attention counts in full even if half of it is masked, and so does the padding of a convolution.

    Args:
      function: A compiled one may have static arguments, and is not traced again when it is called.
      *args: Its arguments, or `jax.ShapeDtypeStruct`s in place of arrays.

    Returns:
      FLOPs, as an exact integer.
    """
    compiled = function if hasattr(function, "trace") else jax.jit(function)
    jaxpr = compiled.trace(*args).jaxpr.jaxpr
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(needed)


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
    """Every row meets the matrix of its group only; groups that divide the contracted dimension each sum their part."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    shape, groups = _shape(equation.invars[0]), _shape(equation.invars[2])[-1]
    divided = set(numbers.lhs_ragged_dimensions) & set(contracted)
    return _size(equation) * _product(shape, contracted) // (groups if divided else 1)


def _grouped(equation: JaxprEqn) -> int:
    """Products of `lensjax.models.grouped`: every row meets one matrix, or adds to one."""
    one, other = (_shape(variable) for variable in equation.invars[:2])
    return math.prod(one) * other[-1]


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
    "grouped_dot": _grouped,
    "grouped_outer": _grouped,
    "ragged_dot_general": _ragged_dot_general,
}
