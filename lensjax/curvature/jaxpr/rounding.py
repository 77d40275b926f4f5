"""How exact the operations of a program are."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from lensjax.curvature.jaxpr.program import Program
from lensjax.curvature.jaxpr.walker import aval, equations


def rounding(program: Program) -> float:
    """The largest relative error of one operation in a program."""
    types = {jnp.dtype(x.dtype) for x in _values(program.jaxpr) if jnp.issubdtype(x.dtype, jnp.inexact)}
    unit = max((float(jnp.finfo(dtype).eps) for dtype in types), default=0.0)
    products = getattr(jax.config, "jax_default_matmul_precision", None)
    if products in (None, "default", "fastest", "tensorfloat32", "bfloat16"):
        unit = max(unit, {"cpu": 0.0, "gpu": 2.0**-11}.get(jax.default_backend(), 2.0**-8) if unit > 1e-10 else 0.0)
    return unit


def _values(jaxpr: Jaxpr) -> Iterator[Any]:
    """Shapes and types of all arrays of a program."""
    yield from (aval(var) for var in jaxpr.invars)
    for equation in equations(jaxpr):
        yield from (aval(var) for var in equation.outvars if hasattr(aval(var), "dtype"))
