"""Rules of custom_jvps that `jax.vmap` mapped: whether they give what the function gives, its axes in the same order.

Where the rule of a mapped custom_jvp has the mapped axis of its value at another place than the function, as a loop
in the rule may, JAX (0.10.2) has the place right as it differentiates, but not once it has traced the function, as
`jax.jit` does: the value is then taken for the function's, transposed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr
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
        if _needed(function, shapes) == _needed(ruled, shapes):
            return False
        if sum(x.size for x in [*shapes, *jax.eval_shape(function, *shapes)]) > _LARGEST:
            return False
        with jax.ensure_compile_time_eval():
            rng = np.random.default_rng(0)
            drawn = [rng.uniform(0.5, 1.5, x.shape) if i in moving else np.zeros(x.shape) for i, x in enumerate(shapes)]
            xs = [jnp.asarray(x, shape.dtype) for x, shape in zip(drawn, shapes, strict=True)]
            return not all(map(_close, function(*xs), ruled(*xs)))
    except Exception as error:  # of a transposed value of another shape; others, as of meshes, say nothing of the rule
        return isinstance(error, TypeError) and "reshape" in str(error)


def _needed(f: Callable[..., Any], shapes: Sequence[Any]) -> str:
    """The equations that the outputs of f depend on, as text: a rule that calls its function first is that call."""
    jaxpr = jax.make_jaxpr(f)(*shapes).jaxpr
    return str(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0])


def _close(x: Array, y: Array) -> bool:
    one, other = (np.asarray(z, np.complex128 if jnp.iscomplexobj(z) else np.float64) for z in (x, y))
    return one.shape == other.shape and np.allclose(one, other, rtol=_CLOSE, atol=_CLOSE, equal_nan=True)
