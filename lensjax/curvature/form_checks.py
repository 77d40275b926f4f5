"""Forms vᵀHv that are checked: some are computed a second time, by a plain product with the Hessian.

A fault of a rule is one of the program, so every program's first form is checked, and then one for every 64 examples.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lensjax.core.errors import InputError
from lensjax.core.pytrees import PyTree
from lensjax.curvature.jaxpr.program import Function, Program, traced_program
from lensjax.curvature.jaxpr.rounding import rounding
from lensjax.curvature.streaming import NoForwardDerivativeError, layer_dots

_EVERY = 64  # forms computed for one that is checked: a product takes 1.6 times as long
_SLACK, _MOST = 10, 0.5  # of |v| |Hv|, in units of the root of rounding, and at most

T = TypeVar("T")
_unchecked: WeakKeyDictionary[Program, int] = WeakKeyDictionary()  # forms computed since the last check


class WrongFormError(InputError):
    """A form is not that of a plain product with the Hessian."""


def check_on_mismatch(choice: str) -> None:
    """Raise InputError where there is no such choice."""
    if choice not in ("raise", "dense"):
        raise InputError(f"on_mismatch is '{choice}'; give 'raise' or 'dense'.")


def first_or_second(
    first: Callable[[PyTree], T],
    second: Callable[[PyTree], T],
    batch: PyTree,
    on_mismatch: str,
    *,
    always_first: bool = False,
) -> T:
    """What the first way gives, or the second where there is no first, or it is wrong and may be replaced."""
    try:
        return first(batch)
    except NoForwardDerivativeError:
        if always_first:
            raise
    except WrongFormError:
        if on_mismatch == "raise":
            raise
    return second(batch)


def one_layer(v: PyTree, layers: Sequence[int | None], seed: int) -> tuple[int, int | None, PyTree]:
    """A leaf of v that holds numbers, one of its layers, and v with zeros in all others."""
    rng = np.random.default_rng(seed)
    number = int(rng.choice([i for i, leaf in enumerate(jax.tree.leaves(v)) if np.size(leaf)] or [0]))
    depth = layers[number]
    layer = None if depth is None else int(rng.integers(depth))
    return number, layer, layer_of(v, number, layer)


def layer_of(v: PyTree, number: int, layer: int | None) -> PyTree:
    """A vector with zeros in all but one leaf, or one layer of it."""
    leaves, structure = jax.tree.flatten(v)
    kept = [jnp.zeros_like(leaf) for leaf in leaves]
    kept[number] = leaves[number] if layer is None else kept[number].at[layer].set(leaves[number][layer])
    return jax.tree.unflatten(structure, kept)


def check_form(
    losses: Function, params: PyTree, batch: PyTree, v: PyTree, value: Array, form: Array, name: str = "the parameters"
) -> None:
    """Compare a form, or that of one example, with a plain product, if it is time for it.

    Args:
      losses: (params, batch) → [examples] or scalar.
      params, batch: Its arguments.
      v: The direction: of one layer, 0 for all others, where the form is that of its block.
      value, form: Of all examples.
      name: Of the layer.

    Raises:
      WrongFormError: they differ by more than rounding, or the form is not a number.
    """
    if isinstance(form, jax.core.Tracer):
        return
    program, captured = traced_program(losses, params, batch, (0, 1))
    since = _unchecked.get(program)
    computed = (since or 0) + max(form.size, 1)
    _unchecked[program] = 0 if since is None or computed >= _EVERY else computed
    if _unchecked[program]:
        return
    at = int(np.random.default_rng(computed).integers(form.size)) if form.ndim else None
    given = float(np.asarray(form)[() if at is None else at])
    right, scale = _plain(losses, program, captured, params, batch, v, value, at)
    slack = min(_SLACK * np.sqrt(rounding(program)), _MOST) * scale
    if np.isfinite(right) and not abs(given - right) <= slack:
        example = "" if at is None else f" of example {at}"
        raise WrongFormError(
            f"The form vᵀHv of {name}{example} is {given:.6g}, and by a plain product {right:.6g}; give "
            "on_mismatch='dense' to have that, and please report it."
        )


def _plain(
    losses: Function,
    program: Program,
    captured: PyTree,
    params: PyTree,
    batch: PyTree,
    v: PyTree,
    value: Array,
    at: int | None,
) -> tuple[float, float]:
    """The form by plain derivatives, and how large what sums up to it may be."""
    if at is None:
        return _second_derivative(program, captured, params, batch, v)[1:]
    lengths = {np.shape(x)[0] if np.ndim(x) else 0 for x in jax.tree.leaves(batch)}
    if lengths == {len(value)}:  # one example alone, if its loss is the same
        keys = jax.dtypes.extended  # of random numbers, which have no NumPy array
        alone = jax.tree.map(
            lambda x: (x if jnp.issubdtype(jnp.result_type(x), keys) else np.asarray(x))[at : at + 1], batch
        )
        loss, *made = _second_derivative(*traced_program(losses, params, alone, (0, 1)), params, alone, v)
        if np.isclose(loss, float(np.asarray(value)[at]), rtol=_SLACK * np.sqrt(rounding(program)), atol=1e-6):
            return made[0], made[1]
    one, own = traced_program(lambda *args: jax.tree.leaves(losses(*args))[0][at], params, batch, (0,))
    return _second_derivative(one, own, params, batch, v)[1:]


def _second_derivative(
    program: Program, captured: PyTree, params: PyTree, batch: PyTree, v: PyTree
) -> tuple[float, float, float]:
    """The loss, vᵀHv, and |v| |Hv|."""
    try:
        made = _by_product(program, captured, params, batch, v)
    except ValueError as error:
        if "Reverse-mode differentiation does not work" not in str(error):  # of a loop
            raise
        made = _by_slopes(program, captured, params, batch, v)
    loss, form, scale = map(float, made)
    return loss, form, scale


@partial(jax.jit, static_argnums=0)
def _by_product(program: Program, captured: PyTree, params: PyTree, batch: PyTree, v: PyTree) -> tuple[Array, ...]:
    """By a product with the Hessian, of which those entries count where v is not 0."""

    def loss(params: PyTree) -> Array:
        return program(captured, params, batch).sum()

    (value, _), (_, product) = jax.jvp(jax.value_and_grad(loss), (params,), (v,))
    product = jax.tree.map(lambda x, y: jnp.where(y == 0, 0, x), product, v)
    whole = (None,) * len(jax.tree.leaves(v))
    form, squares, lengths = (sum(layer_dots(whole, *pair)) for pair in ((v, product), (product, product), (v, v)))
    return value, form, jnp.sqrt(squares * lengths)


@partial(jax.jit, static_argnums=0)
def _by_slopes(program: Program, captured: PyTree, params: PyTree, batch: PyTree, v: PyTree) -> tuple[Array, ...]:
    """By differentiating twice along v."""

    def slope(params: PyTree) -> tuple[Array, Array]:
        return jax.jvp(lambda params: program(captured, params, batch).sum(), (params,), (v,))

    (value, first), (_, second) = jax.jvp(slope, (params,), (v,))
    return value, second, jnp.abs(first) + jnp.abs(second)
