"""Second derivatives along a line, by one walk of a function's jaxpr with Taylor series and no backward pass.

At w + t v every value is a series: itself and its first and second derivative in t at t = 0, without trailing
derivatives that are known to be 0. Values that do not depend on t have one coefficient, parameters have two, and values
linear in them have two again. A product of series has the terms that both have (Griewank & Walther 2008, chapter 13):
an activation by a weight takes 5 products of matrices, where a gradient takes 3, and two activations take 6.

`jax.experimental.jet` has series of any order, but no loops, no checkpoints and no known zeros.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from math import comb
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array

from lensjax.curvature.jaxpr.walker import Interpreter, Key, aval, bind, scan_parts

Series = tuple[Array, ...]
_MOST = 3  # coefficients

# Primitives whose first derivative is 0, and those whose second is, wherever it exists.
_LEVEL = frozenset({"ceil", "floor", "round", "sign", "stop_gradient"})
_LINEAR = """
    add add_any broadcast_in_dim clamp complex concatenate conj convert_element_type copy copy_p cummax cummin
    cumsum device_put dynamic_slice dynamic_update_slice fft gather imag max min name neg optimization_barrier pad real
    reduce_max reduce_min reduce_precision reduce_sum reduce_window_max reduce_window_min reduce_window_sum reshape rev
    scatter scatter-add select_n sharding_constraint slice sort split squeeze stack sub top_k transpose
"""
_BILINEAR = frozenset({"conv_general_dilated", "dot_general", "mul", "ragged_dot_general"})


def second_derivative(
    jaxpr: Jaxpr, captured: Sequence[Array], args: Sequence[Array], v: Sequence[Array | None]
) -> list[tuple[Array, Array]]:
    """The values of a jaxpr at args + t v for t = 0, and d²/dt² of them.

    Loops, branches and calls are walked into. JAX differentiates primitives without a rule, twice forward: so a
    custom_jvp is respected, and a custom_vjp refused, whose backward pass need not be the derivative of its value. JAX
    does so with the whole function where a custom_jvp gives tangents that are not the derivatives of its values, as
    straight-through estimators do: there the two derivatives see different functions, which no series can.

    Args:
      jaxpr, captured: The function, and the arrays that it captured.
      args: Its arguments.
      v: For every argument a direction, or None if it does not depend on t.

    Returns:
      For every output the value, and the second derivative of the same shape.

    Raises:
      TypeError: the function has a custom_vjp.
    """
    series = [(x,) if dx is None else (x, dx) for x, dx in zip(args, v, strict=True)]
    try:
        padded = [_padded(y, _MOST) for y in _Taylor().run(jaxpr, [(x,) for x in captured], series)]
    except _NoSeries:
        return _twice_forward(jaxpr, captured, args, v)
    return [(y[0], y[2]) for y in padded]


class _NoSeries(Exception):
    """A function whose first and second derivatives are not those of one function."""


def _twice_forward(
    jaxpr: Jaxpr, captured: Sequence[Array], args: Sequence[Array], v: Sequence[Array | None]
) -> list[tuple[Array, Array]]:
    """What `second_derivative` returns, by differentiating the whole function forward twice."""
    moved = [i for i, dx in enumerate(v) if dx is not None]

    def f(*xs: Array) -> list[Array]:
        given = list(args)
        for i, x in zip(moved, xs, strict=True):
            given[i] = x
        return list(jaxpr_as_fun(ClosedJaxpr(jaxpr, captured))(*given))

    def slope(*xs: Array) -> tuple[list[Array], list[Array]]:
        return jax.jvp(f, xs, directions)

    at, directions = tuple(args[i] for i in moved), tuple(dx for dx in v if dx is not None)
    (ys, _), (_, ddys) = jax.jvp(slope, at, directions)
    return list(zip(ys, ddys, strict=True))


class _Taylor(Interpreter[Series]):
    """Carries series; those of one coefficient do not depend on t."""

    def constant(self, value: Any) -> Series:
        return (value,)

    def matters(self, equation: JaxprEqn, inputs: list[Series], key: Key) -> bool:
        return any(len(x) > 1 for x in inputs) and any(_differentiable(aval(var)) for var in equation.outvars)

    def plain(self, equation: JaxprEqn, inputs: list[Series], key: Key) -> list[Series]:
        """Outputs whose derivatives are 0."""
        return [(y,) for y in bind(equation, [x[0] for x in inputs])]

    def linear(self, equation: JaxprEqn, inputs: list[Series], key: Key) -> list[Series]:
        """y⁽ᵏ⁾ = Df x⁽ᵏ⁾."""
        pushed = [
            jax.jvp(*_function(equation, inputs, order), _coefficients(inputs, order, order), has_aux=True)
            for order in range(1, max(map(len, inputs)))
        ]
        ys, _, others = pushed[0]
        return _merged(equation, zip(ys, *(dys for _, dys, _ in pushed), strict=True), others)

    def bilinear(self, equation: JaxprEqn, inputs: list[Series], key: Key) -> list[Series]:
        """Leibniz's rule, Σᵢ (k over i) a⁽ⁱ⁾ b⁽ᵏ⁻ⁱ⁾; other inputs are group sizes, which are whole numbers."""
        a, b, *others = inputs

        def term(i: int, j: int) -> Any:
            factor = comb(i + j, i) * a[i] if i and j else a[i]
            (y,) = bind(equation, [factor, b[j], *(x[0] for x in others)])
            return y

        def coefficient(k: int) -> Any:
            first, *more = [term(i, k - i) for i in range(len(a)) if 0 <= k - i < len(b)]
            return sum(more, first)

        return [tuple(coefficient(k) for k in range(min(_MOST, len(a) + len(b) - 1)))]

    def absolute(self, equation: JaxprEqn, inputs: list[Series], key: Key) -> list[Series]:
        """Linear on either side of 0; that of a complex number is not."""
        complex_ = jnp.iscomplexobj(inputs[0][0])
        return (self.unknown if complex_ else self.linear)(equation, inputs, key)

    def divide(self, equation: JaxprEqn, inputs: list[Series], key: Key) -> list[Series]:
        """Linear where the divisor does not depend on t."""
        return (self.linear if len(inputs[1]) == 1 else self.unknown)(equation, inputs, key)

    def exp(self, equation: JaxprEqn, inputs: list[Series], key: Key) -> list[Series]:
        """Written out, so that its coefficients share y alone, and one array of a softmax's size is kept."""
        x, dx, *ddx = inputs[0]
        (y,) = bind(equation, [x])
        return [(y, y * dx, y * sum(ddx, dx * dx))]

    def unknown(self, equation: JaxprEqn, inputs: list[Series], key: Key) -> list[Series]:
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

    def custom_jvp(self, equation: JaxprEqn, inputs: list[Series], key: Key) -> list[Series]:
        if not _consistent(equation):
            raise _NoSeries
        return self.unknown(equation, inputs, key)

    def scan(self, equation: JaxprEqn, inputs: list[Series], key: Key) -> list[Series]:
        params = equation.params
        first, carried = scan_parts(equation)
        last = first + carried
        consts, init, xs = inputs[:first], inputs[first:last], inputs[last:]

        def step(carry: list[Series], sliced: list[Series]) -> tuple[list[Series], list[Series]]:
            outputs = self.run_closed(params["jaxpr"], [*consts, *carry, *sliced], key)
            return outputs[: len(init)], outputs[len(init) :]

        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
        init = _settled(lambda carry: jax.eval_shape(step, carry, one)[0], init)

        def padded(carry: list[Series], sliced: list[Series]) -> tuple[list[Series], list[Series]]:
            made, ys = step(carry, sliced)
            return _alike(made, carry), ys

        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        carry, ys = jax.lax.scan(padded, init, xs, **options)
        return [*carry, *ys]

    def while_loop(self, equation: JaxprEqn, inputs: list[Series], key: Key) -> list[Series]:
        params = equation.params
        test, body = params["cond_jaxpr"], params["body_jaxpr"]
        if test.out_avals[0].shape:  # of several loops at once
            return self.unknown(equation, inputs, key)
        first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        bounds, consts, init = inputs[:first], inputs[first:last], inputs[last:]

        def step(carry: list[Series]) -> list[Series]:
            return self.run_closed(body, [*consts, *carry], key)

        def goes_on(carry: list[Series]) -> Any:
            return jaxpr_as_fun(test)(*(x[0] for x in (*bounds, *carry)))[0]

        init = _settled(lambda carry: jax.eval_shape(step, carry), init)
        return jax.lax.while_loop(goes_on, lambda carry: _alike(step(carry), carry), init)

    def cond(self, equation: JaxprEqn, inputs: list[Series], key: Key) -> list[Series]:
        index, *operands = inputs
        calls = [partial(self.run_closed, branch, key=key) for branch in equation.params["branches"]]
        made = zip(*(jax.eval_shape(call, operands) for call in calls), strict=True)
        longest = [max(each, key=len) for each in made]
        branches = [lambda operands, call=call: _alike(call(operands), longest) for call in calls]
        return jax.lax.switch(index[0], branches, operands)

    rules: ClassVar = {
        **dict.fromkeys(_LEVEL, plain),
        **dict.fromkeys(_LINEAR.split(), linear),
        **dict.fromkeys(_BILINEAR, bilinear),
        "abs": absolute,
        "cond": cond,
        "custom_jvp_call": custom_jvp,
        "div": divide,
        "exp": exp,
        "scan": scan,
        "while": while_loop,
    }


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
        outputs = bind(equation, [next(given) if len(x) > order else x[0] for x in inputs])
        return [y for y in outputs if _differentiable(y)], [y for y in outputs if not _differentiable(y)]

    return f, _coefficients(inputs, order, 0)


def _consistent(equation: JaxprEqn) -> bool:
    """Whether the program of a custom_jvp's tangents is that of the derivatives of the values beside them."""
    avals = [aval(var) for var in equation.invars]
    smooth = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals if _differentiable(x)]
    others = [jnp.zeros(x.shape, x.dtype) for x in avals if not _differentiable(x)]

    def f(*xs: Array) -> list[Array]:
        given, rest = iter(xs), iter(others)
        outputs = bind(equation, [next(given) if _differentiable(x) else next(rest) for x in avals])
        return [y for y in outputs if _differentiable(y)]

    def tangents(xs: tuple[Array, ...], dxs: tuple[Array, ...]) -> list[Array]:
        return jax.jvp(f, xs, dxs)[1]

    def derivatives(xs: tuple[Array, ...], dxs: tuple[Array, ...]) -> list[Array]:
        return jax.jvp(lambda *xs: jax.jvp(f, xs, dxs)[0], xs, dxs)[1]

    return _program(tangents, smooth) == _program(derivatives, smooth)


def _program(f: Callable[..., Any], smooth: Sequence[Any]) -> str:
    """The equations of f(smooth, smooth) that its outputs depend on, as text."""
    jaxpr = jax.make_jaxpr(f)(tuple(smooth), tuple(smooth)).jaxpr
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return re.sub(r"0x[0-9a-f]+", "", str(needed))


def _merged(equation: JaxprEqn, series: Any, others: Any) -> list[Series]:
    """The outputs of an equation in their order."""
    smooth, rest = iter(series), iter(others)
    return [tuple(next(smooth)) if _differentiable(aval(var)) else (next(rest),) for var in equation.outvars]


def _differentiable(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))
