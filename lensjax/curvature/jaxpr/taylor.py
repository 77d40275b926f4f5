"""Second derivatives along a line, by one walk of a function's jaxpr with Taylor series and no backward pass.

At w + t v every value is a series: itself and its first and second derivative in t at t = 0, of which those that are
known to be 0 are left off at the end. What does not depend on t has one coefficient, parameters have two, and what is
linear in them has two again. A product of series has the terms that both have (Griewank & Walther 2008, chapter 13): an
activation by a weight takes 5 products of matrices, where a gradient takes 3, and two activations take 6.

`jax.experimental.jet` has series of any order, but no loops, no checkpoints and no zeros that it knows.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import comb
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, jaxpr_as_fun
from jax.extend.core import Literal as JaxprLiteral
from jaxtyping import Array

Series = tuple[Array, ...]
_MOST = 3  # coefficients

# Primitives whose first derivative is 0, and those whose second is, wherever they have one.
_LEVEL = frozenset({"ceil", "floor", "round", "sign", "stop_gradient"})
_LINEAR = """
    abs add add_any broadcast_in_dim clamp complex concatenate conj convert_element_type copy copy_p cummax cummin
    cumsum device_put dynamic_slice dynamic_update_slice fft gather imag max min name neg optimization_barrier pad real
    reduce_max reduce_min reduce_precision reduce_sum reduce_window_max reduce_window_min reduce_window_sum reshape rev
    scatter scatter-add select_n sharding_constraint slice sort split squeeze stack sub top_k transpose
"""
_BILINEAR = frozenset({"conv_general_dilated", "dot_general", "mul", "ragged_dot_general"})
_CALLS = frozenset({"checkpoint", "closed_call", "core_call", "jit", "pjit", "remat2"})


def second_derivative(
    closed: ClosedJaxpr, args: Sequence[Array], v: Sequence[Array | None]
) -> list[tuple[Array, Array]]:
    """The values of a jaxpr at args + t v for t = 0, and d²/dt² of them.

    Loops, branches and calls are walked into. What has no rule is differentiated by JAX, twice forward: so a custom_jvp
    is respected, and a custom_vjp refused, whose backward pass need not be the derivative of what it computes.

    Args:
      closed: The function.
      args: Its arguments.
      v: For every argument a direction, or None where it does not depend on t.

    Returns:
      For every output the value, and the second derivative of the same shape.

    Raises:
      TypeError: the function has a custom_vjp.
    """
    series = [(x,) if dx is None else (x, dx) for x, dx in zip(args, v, strict=True)]
    padded = [_padded(y, _MOST) for y in _walk(closed, series)]
    return [(y[0], y[2]) for y in padded]


def _walk(closed: ClosedJaxpr, args: Sequence[Series]) -> list[Series]:
    jaxpr = closed.jaxpr
    known: dict[Any, Series] = {var: (x,) for var, x in zip(jaxpr.constvars, closed.consts, strict=True)}
    known |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Series:
        return (atom.val,) if isinstance(atom, JaxprLiteral) else known[atom]

    for equation in jaxpr.eqns:
        outputs = _equation(equation, [read(atom) for atom in equation.invars])
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(equation: JaxprEqn, inputs: list[Series]) -> list[Series]:
    name = equation.primitive.name
    level = all(len(x) == 1 for x in inputs) or not any(_differentiable(var.aval) for var in equation.outvars)
    if level or name in _LEVEL:
        return [(y,) for y in _bind(equation, [x[0] for x in inputs])]
    if name in _LINEAR.split() or (name == "div" and len(inputs[1]) == 1):
        return _linear(equation, inputs)
    if name in _BILINEAR:
        return _product(equation, inputs)
    if name in _CALLS:
        inner = equation.params["jaxpr" if "jaxpr" in equation.params else "call_jaxpr"]
        return _walk(inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ()), inputs)
    return _RULES.get(name, _general)(equation, inputs)


def _linear(equation: JaxprEqn, inputs: list[Series]) -> list[Series]:
    """y⁽ᵏ⁾ = Df x⁽ᵏ⁾."""
    found = [
        jax.jvp(*_function(equation, inputs, order), _coefficients(inputs, order, order), has_aux=True)
        for order in range(1, max(map(len, inputs)))
    ]
    ys, _, others = found[0]
    return _merged(equation, zip(ys, *(dys for _, dys, _ in found), strict=True), others)


def _product(equation: JaxprEqn, inputs: list[Series]) -> list[Series]:
    """Leibniz's rule, Σᵢ (k over i) a⁽ⁱ⁾ b⁽ᵏ⁻ⁱ⁾; other inputs are group sizes, which are whole numbers."""
    a, b, *others = inputs

    def term(i: int, j: int) -> Any:
        factor = comb(i + j, i) * a[i] if i and j else a[i]
        (y,) = _bind(equation, [factor, b[j], *(x[0] for x in others)])
        return y

    def coefficient(k: int) -> Any:
        first, *more = [term(i, k - i) for i in range(len(a)) if 0 <= k - i < len(b)]
        return sum(more, first)

    return [tuple(coefficient(k) for k in range(min(_MOST, len(a) + len(b) - 1)))]


def _exp(equation: JaxprEqn, inputs: list[Series]) -> list[Series]:
    """Written out, because its coefficients then have y in common only, and one array of a softmax's size is kept."""
    x, dx, *ddx = inputs[0]
    (y,) = _bind(equation, [x])
    return [(y, y * dx, y * sum(ddx, dx * dx))]


def _general(equation: JaxprEqn, inputs: list[Series]) -> list[Series]:
    """y″ = D²f [x′, x′] + Df x″: the first derivative, Df x′, differentiated along (x′, x″)."""
    f, xs = _function(equation, inputs, 1)

    def slope(xs: tuple[Any, ...], bent: tuple[Any, ...]) -> tuple[Any, Any]:
        given = iter(bent)
        firsts = tuple(next(given) if len(x) > 2 else x[1] for x in inputs if len(x) > 1)
        ys, dys, others = jax.jvp(f, xs, firsts, has_aux=True)
        return (ys, dys), others

    at = xs, _coefficients(inputs, 2, 1)
    along = _coefficients(inputs, 1, 1), _coefficients(inputs, 2, 2)
    (ys, dys), (_, ddys), others = jax.jvp(slope, at, along, has_aux=True)
    return _merged(equation, zip(ys, dys, ddys, strict=True), others)


def _scan(equation: JaxprEqn, inputs: list[Series]) -> list[Series]:
    params = equation.params
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, init, xs = inputs[:first], inputs[first:last], inputs[last:]

    def step(carry: list[Series], sliced: list[Series]) -> tuple[list[Series], list[Series]]:
        outputs = _walk(params["jaxpr"], [*consts, *carry, *sliced])
        return outputs[: len(init)], outputs[len(init) :]

    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    init = _settled(lambda carry: jax.eval_shape(step, carry, one)[0], init)

    def padded(carry: list[Series], sliced: list[Series]) -> tuple[list[Series], list[Series]]:
        made, ys = step(carry, sliced)
        return _alike(made, carry), ys

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = jax.lax.scan(padded, init, xs, **options)
    return [*carry, *ys]


def _while(equation: JaxprEqn, inputs: list[Series]) -> list[Series]:
    params = equation.params
    test, body = params["cond_jaxpr"], params["body_jaxpr"]
    if test.out_avals[0].shape:  # of several loops at once
        return _general(equation, inputs)
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    bounds, consts, init = inputs[:first], inputs[first:last], inputs[last:]

    def step(carry: list[Series]) -> list[Series]:
        return _walk(body, [*consts, *carry])

    def goes_on(carry: list[Series]) -> Any:
        return jaxpr_as_fun(test)(*(x[0] for x in (*bounds, *carry)))[0]

    init = _settled(lambda carry: jax.eval_shape(step, carry), init)
    return jax.lax.while_loop(goes_on, lambda carry: _alike(step(carry), carry), init)


def _cond(equation: JaxprEqn, inputs: list[Series]) -> list[Series]:
    index, *operands = inputs
    calls = [partial(_walk, branch) for branch in equation.params["branches"]]
    made = zip(*(jax.eval_shape(call, operands) for call in calls), strict=True)
    longest = [max(each, key=len) for each in made]
    branches = [lambda operands, call=call: _alike(call(operands), longest) for call in calls]
    return jax.lax.switch(index[0], branches, operands)


_RULES = {"cond": _cond, "exp": _exp, "scan": _scan, "while": _while}


def _settled(step: Callable[[list[Series]], list[Series]], carry: list[Series]) -> list[Series]:
    """A carry with zeros written out for the coefficients that later steps give it."""
    while any(len(x) < _MOST and _differentiable(x[0]) for x in carry):
        longer = [max(x, made, key=len) for x, made in zip(carry, step(carry), strict=True)]
        if all(len(x) == len(y) for x, y in zip(carry, longer, strict=True)):
            break
        carry = _alike(carry, longer)
    return carry


def _alike(series: Sequence[Series], like: Sequence[Series]) -> list[Series]:
    return [_padded(x, len(y)) for x, y in zip(series, like, strict=True)]


def _padded(x: Series, length: int) -> Series:
    return (*x, *(jnp.zeros_like(x[0]) for _ in range(length - len(x))))


def _coefficients(inputs: list[Series], least: int, order: int) -> tuple[Any, ...]:
    """Coefficients of an order, of the inputs that have one of order `least`."""
    return tuple(x[order] for x in inputs if len(x) > least)


def _function(equation: JaxprEqn, inputs: list[Series], order: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """An equation as a function of the inputs that have a coefficient of an order, and their values.

    Outputs that cannot be differentiated are auxiliary.
    """

    def f(*xs: Any) -> tuple[list[Any], list[Any]]:
        given = iter(xs)
        outputs = _bind(equation, [next(given) if len(x) > order else x[0] for x in inputs])
        return [y for y in outputs if _differentiable(y)], [y for y in outputs if not _differentiable(y)]

    return f, _coefficients(inputs, order, 0)


def _merged(equation: JaxprEqn, series: Any, others: Any) -> list[Series]:
    """The outputs of an equation in their order."""
    smooth, rest = iter(series), iter(others)
    return [tuple(next(smooth)) if _differentiable(var.aval) else (next(rest),) for var in equation.outvars]


def _differentiable(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _bind(equation: JaxprEqn, inputs: list[Any]) -> list[Any]:
    with equation.ctx.manager:
        found = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
    return list(found) if equation.primitive.multiple_results else [found]
