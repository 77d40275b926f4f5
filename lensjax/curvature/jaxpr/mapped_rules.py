"""Rules of custom_jvps that `jax.vmap` mapped: whether they give what the function gives, its axes in the same order.

Where the rule of a mapped custom_jvp has the mapped axis of its value at another place than the function, as a loop
in the rule may, JAX (0.10.2) has the place right as it differentiates, but not once it has traced the function, as
`jax.jit` does: the value is then taken for the function's, transposed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn
from jaxtyping import Array

from lensjax.core.errors import InputError
from lensjax.curvature.jaxpr.walker import aval, bind, equations

_LARGEST = 2**24  # numbers of inputs and outputs that are compared
_CLOSE = 1e-2


def check_mapped_rules(jaxpr: Jaxpr) -> None:
    """Raise InputError where such a rule gives other values than its function."""
    for equation in equations(jaxpr):
        if equation.primitive.name == "custom_jvp_call" and _differs(equation):
            name = equation.params["call_jaxpr"].jaxpr.debug_info.func_name
            raise InputError(
                f"The rule of the custom_jvp {name} gives other values than {name} itself once JAX has traced both, as "
                f"one with a loop does under jax.vmap; let the rule give {name}(*primals) for its value."
            )


def _differs(equation: JaxprEqn) -> bool:
    avals = [aval(var) for var in equation.invars]
    moving = [i for i, x in enumerate(avals) if jnp.issubdtype(x.dtype, jnp.inexact)]

    def function(*xs: Array) -> list[Any]:
        return bind(equation, xs)

    def ruled(*xs: Array) -> list[Any]:
        def f(*some: Array) -> list[Any]:
            mixed = list(xs)
            for i, x in zip(moving, some, strict=True):
                mixed[i] = x
            return bind(equation, mixed)

        at = tuple(xs[i] for i in moving)
        return jax.jvp(f, at, tuple(map(jnp.zeros_like, at)))[0]

    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals]
    try:
        if str(jax.make_jaxpr(function)(*shapes)) == str(jax.make_jaxpr(ruled)(*shapes)):
            return False
    except TypeError as error:  # of another shape
        if "reshape" in str(error):
            return True
        raise
    if sum(x.size for x in [*shapes, *jax.eval_shape(function, *shapes)]) > _LARGEST:
        return False
    rng = np.random.default_rng(0)
    with jax.ensure_compile_time_eval():
        xs = [jnp.asarray(rng.uniform(0.5, 1.5, x.shape) if i in moving else 0, x.dtype) for i, x in enumerate(shapes)]
        xs = [jnp.broadcast_to(x, shape.shape) for x, shape in zip(xs, shapes, strict=True)]
        return not all(map(_close, function(*xs), ruled(*xs)))


def _close(x: Array, y: Array) -> bool:
    one, other = (np.asarray(z, np.complex128 if jnp.iscomplexobj(z) else np.float64) for z in (x, y))
    return one.shape == other.shape and np.allclose(one, other, rtol=_CLOSE, atol=_CLOSE, equal_nan=True)
