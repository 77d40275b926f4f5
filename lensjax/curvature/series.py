"""Forms vᵀHv by Taylor series, of a whole vector or of one layer at a time."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lensjax.core.pytrees import PyTree
from lensjax.curvature.jaxpr.program import Function, Program, traced_program
from lensjax.curvature.jaxpr.taylor import second_derivative
from lensjax.curvature.streaming import explained

FORWARD = "quadratic_form with mode='forward' can take it"


@partial(jax.jit, static_argnums=0)
def form_of(
    program: Program, captured: PyTree, params: PyTree, batch: PyTree, v: list[Array | None]
) -> tuple[Array, Array]:
    """The value, and its second derivative along the leaves of a vector; None stands for 0."""
    leaves = jax.tree.leaves((params, batch))
    v = [*v, *[None] * (len(leaves) - len(v))]
    return second_derivative(program.jaxpr, captured, leaves, v)[0]


def diagonal_forms(
    losses: Function, params: PyTree, batch: PyTree, v: PyTree, layers: Sequence[int | None]
) -> tuple[Array, list[Array]]:
    """The value, and v_iᵀH_ii v_i of every leaf. Leaves of one part of a model and of one shape share a program."""
    program, captured = traced_program(losses, params, batch, (0, 1))
    alike: dict[Any, dict[int, Array]] = {}
    for number, ((path, leaf), length) in enumerate(zip(jax.tree.leaves_with_path(v), layers, strict=True)):
        alike.setdefault((path[:1], length, np.shape(leaf), jnp.result_type(leaf)), {})[number] = leaf
    with explained("products can take it", FORWARD):
        made = [_diagonal(program, length, captured, params, batch, own) for (_, length, *_), own in alike.items()]
    forms = {number: form for _, own in made for number, form in own.items()}
    return made[0][0], [forms[number] for number in sorted(forms)]


@partial(jax.jit, static_argnums=(0, 1))
def _diagonal(
    program: Program, layers: int | None, captured: PyTree, params: PyTree, batch: PyTree, v: dict[int, Array]
) -> tuple[Array, dict[int, Array]]:
    """The forms of leaves of one shape, by their numbers: a layer of one leaf at a time."""
    depth = layers or 1

    def form(place: Array) -> tuple[Array, Array]:
        along: list[Array | None] = [None] * len(jax.tree.leaves(params))
        for i, (number, leaf) in enumerate(v.items()):
            chosen = i * depth + jnp.arange(depth) == place
            along[number] = jnp.where(chosen.reshape(-1, *[1] * (leaf.ndim - 1)) if layers else chosen[0], leaf, 0)
        return form_of(program, captured, params, batch, along)

    values, forms = jax.lax.map(form, jnp.arange(len(v) * depth))
    parts = [forms[i * depth : (i + 1) * depth] if layers else forms[i] for i in range(len(v))]
    return values[0], dict(zip(v, parts, strict=True))
