"""The PAC-Bayes bound on fine-tuning: its terms, measured for every layer of a pretrained and a fine-tuned model.

With v_i = ŵ_i − w_i, a layer's fine-tuned minus its pretrained weight, and H_i the largest v_iᵀ ∇²_i⁺ ℓ v_i of any
example (∇²⁺ the positive part of the layer's block of the Hessian), with probability 0.99 or more

    L(f_ŵ) ≤ (1 + ε) L̂(f_ŵ) + (1 + ε) Σ_i √(C H_i) / √n + O(n^(−3/4))        (Ju, Li & Zhang, ICML 2022)

for n training examples and losses of at most C. A maximum over some examples is at most the H_i over all that could
occur. `lensjax.curvature.phases` fits how the terms fall with n.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lensjax.core.errors import InputError, NotFinite, shorten
from lensjax.core.flops import matmul_flops
from lensjax.core.pytrees import PyTree, path_name
from lensjax.curvature.hvp import layer_forms
from lensjax.curvature.jaxpr.program import Function, Program, traced_program
from lensjax.curvature.streaming import Shares, check_params, layer_dots, scanned_layers, wide

Block = Literal["diagonal", "joint"]
EPSILON = 0.01  # the theorem has "any fixed ε close to zero"
REMAINDER = 1.0  # constant of the O(n^(−3/4)) term, which the theorem leaves open: 1 shows its rate only
RATE = 0.75  # of that term
_ROUNDING = 50  # times a type's precision: smaller numbers, relative to a matrix, are rounding
_AT_ONCE = 2**28  # bytes of vectors that examples computed at once may hold


@dataclass(frozen=True)
class LayerTerms:
    """Terms of a pretrained and a fine-tuned model for each of l layers.

    A layer is a leaf of the parameters; of leaves that a scan slices along their leading axis, each slice is one.

    Attributes:
      layers: Their names: the leaf's path, with the number of the slice, as in "layers/blocks/mlp/up/kernel[2]".
      block: "diagonal", v_iᵀ H_ii v_i of the theorem, or "joint", Σ_j v_iᵀ H_ij v_j of the authors' released code.
      over: Whether the N columns are "examples", as in the theorem, or "batches", as in that code.
      forms: [l, N].
      positive: [l, N], v_iᵀ (H_ii)₊ v_i, if measured.
      distances: [l], ‖v_i‖².
      losses: [N], in nats.
    """

    layers: tuple[str, ...]
    block: Block
    over: Literal["examples", "batches"]
    forms: Float[np.ndarray, "l N"]
    positive: Float[np.ndarray, "l N"] | None
    distances: Float[np.ndarray, " l"]
    losses: Float[np.ndarray, " N"]

    @property
    def largest(self) -> Float[np.ndarray, " l"]:
        """H_i: the largest over examples, at least 0; of the positive part if measured."""
        return self._measured.max(axis=1, initial=0.0)

    @property
    def mean(self) -> Float[np.ndarray, " l"]:
        """The mean over examples, of the positive part if measured."""
        return self._measured.mean(axis=1)

    @property
    def _measured(self) -> Float[np.ndarray, "l N"]:
        return self.forms if self.positive is None else self.positive


def difference(pretrained: PyTree, finetuned: PyTree) -> PyTree:
    """v = ŵ − w, in the types of ŵ.

    Raises:
      InputError: the two do not have the same leaves, or one holds numbers that are not floating-point.
      NotFinite: one holds numbers that are not finite.
    """
    check_params(pretrained)
    check_params(finetuned)
    before, after = (
        {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (pretrained, finetuned)
    )
    for name in sorted(before.keys() ^ after.keys()):
        which = "pretrained" if name in before else "fine-tuned"
        raise InputError(f"Only the {which} model has a parameter '{shorten(name)}'; give two of one architecture.")
    for name, leaf in before.items():
        if jnp.shape(leaf) != jnp.shape(after[name]):
            raise InputError(
                f"Parameter '{shorten(name)}' has shape {jnp.shape(leaf)} in the pretrained model and "
                f"{jnp.shape(after[name])} in the fine-tuned one; give two of one architecture."
            )
    v = {name: _minus(leaf, before[name]) for name, leaf in after.items()}
    for name, part in v.items():
        if not bool(jnp.isfinite(part).all()):
            raise NotFinite(f"Parameter '{shorten(name)}' is not finite in both models; give a pair that is.")
    return jax.tree.unflatten(jax.tree.structure(finetuned), list(v.values()))


def layer_terms(
    losses: Function,
    pretrained: PyTree,
    finetuned: PyTree,
    batch: PyTree,
    *,
    block: Block = "diagonal",
    positive_steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LayerTerms:
    """The forms of every layer along v = ŵ − w, at ŵ.

    Args:
      losses: (params, batch) → [examples], or a scalar: then each batch stands for one example.
      pretrained, finetuned: Pytrees of parameters.
      batch: A batch, or `Batches`, whose examples follow each other.
      block: See `LayerTerms`.
      positive_steps: Measure v_iᵀ (H_ii)₊ v_i too, by this many steps of Lanczos quadrature from v_i, each a product
        for every layer and example: ‖v_i‖² e₁ᵀ max(T, 0) e₁ (Golub & Meurant 2010, chapter 7). It is exact with as
        many steps as the layer has parameters.
      progress: Called with the number of finished batches, and of all.

    Returns:
      Terms in nats, as the losses are.

    Raises:
      InputError: the models do not match, the block is unknown, positive_steps is given with joint blocks, there are
        no examples, or the loss of one is not finite.
    """
    if positive_steps is not None and block != "diagonal":
        raise InputError("The positive part is that of a layer's own block; give block='diagonal' with positive_steps.")
    if positive_steps is not None and positive_steps < 1:
        raise InputError(f"positive_steps is {positive_steps}; give 1 or more.")
    v = difference(pretrained, finetuned)
    data = Shares(batch)

    def value(one: PyTree) -> tuple[Array, None]:
        return _values(*traced_program(losses, finetuned, one, (0, 1)), finetuned, one), None

    values = [value for _, value, _ in data.each(value)]
    layers = scanned_layers(losses, finetuned, next(iter(data))[2])
    forms, positive = [], []
    for done, (_, _, one) in enumerate(data):
        forms.append(_stacked(layer_forms(losses, finetuned, one, v, block=block).values(), layers))
        if positive_steps is not None:
            positive.append(_stacked(_positive_parts(losses, finetuned, one, v, layers, positive_steps), layers))
        if progress is not None:
            progress(done + 1, len(values))
    return LayerTerms(
        layer_names(finetuned, layers),
        block,
        "examples" if any(value.ndim for value in values) else "batches",
        np.concatenate(forms, axis=1),
        np.concatenate(positive, axis=1) if positive else None,
        _stacked(layer_dots(layers, v, v), layers)[:, 0],
        np.concatenate([np.atleast_1d(np.asarray(value, np.float64)) for value in values]),
    )


def layer_terms_flops(
    losses: Function, params: PyTree, batch: PyTree, *, block: Block = "diagonal", positive_steps: int | None = None
) -> int:
    """FLOPs of the matrix products of `layer_terms`, counted by `lensjax.core.flops.matmul_flops`; computes nothing.

    Args:
      losses, batch, block, positive_steps: See `layer_terms`.
      params: Parameters of either model, or their shapes.
    """

    def compute(params: PyTree, batch: PyTree) -> Any:
        value = _values(*traced_program(losses, params, batch, (0, 1)), params, batch)
        forms = layer_forms(losses, params, batch, params, block=block)
        if positive_steps is None:
            return value, forms
        layers = scanned_layers(losses, params, batch)
        return value, forms, _positive_parts(losses, params, batch, params, layers, positive_steps)

    return sum(matmul_flops(compute, params, one) for _, _, one in Shares(batch))


def layer_names(params: PyTree, layers: tuple[int | None, ...]) -> tuple[str, ...]:
    """The path of every leaf, or of every slice of leaves with layers, which `scanned_layers` gives."""
    names: list[str] = []
    for (path, _), length in zip(jax.tree_util.tree_leaves_with_path(params), layers, strict=True):
        name = path_name(path)
        names += [name] if length is None else [f"{name}[{i}]" for i in range(length)]
    return tuple(names)


def check_constants(loss_bound: float, epsilon: float = EPSILON, remainder: float = REMAINDER) -> None:
    """Raise InputError if a constant of the bound is out of range; see `bound_terms`."""
    for name, value in (("loss_bound (C)", loss_bound), ("remainder (c)", remainder)):
        if not 0 <= value < np.inf:
            raise InputError(f"{name} is {value}; give a finite number, 0 or more.")
    if not 0 < epsilon < np.inf:
        raise InputError(f"epsilon (ε) is {epsilon}; give a finite number above 0.")


@dataclass(frozen=True)
class Bound:
    """The right-hand side of the bound, in nats: (1 + ε) L̂, (1 + ε) Σ √(C H_i) / √n, and c n^(−3/4)."""

    empirical: float
    hessian: float
    remainder: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.empirical + self.hessian + self.remainder


def bound_terms(
    n: int,
    train_loss: float,
    largest: Float[np.ndarray, " l"],
    loss_bound: float,
    *,
    epsilon: float = EPSILON,
    remainder: float = REMAINDER,
) -> Bound:
    """The three terms of the bound.

    Args:
      n: Training examples.
      train_loss: L̂, the mean loss on them.
      largest: H_i of every layer, see `LayerTerms.largest`.
      loss_bound: C, which no loss exceeds. Cross-entropy has no such bound; C cannot be below the largest measured
        loss.
      epsilon: ε, any fixed number above 0 (Ju, Li & Zhang, ICML 2022).
      remainder: c of the O(n^(−3/4)) term, which the theorem leaves open.

    Raises:
      InputError: a number is not finite or has the wrong sign.
    """
    check_constants(loss_bound, epsilon, remainder)
    numbers = np.array([n, train_loss, *largest])
    if not (np.isfinite(numbers).all() and n >= 1 and numbers.min() >= 0):
        raise InputError(
            f"n is {n}, the training loss {train_loss}, the smallest H_i {min(largest)}; give finite numbers from 0 "
            "up, and n from 1 up."
        )
    hessian = (1 + epsilon) * float(np.sqrt(loss_bound * np.asarray(largest)).sum()) / n**0.5
    return Bound((1 + epsilon) * train_loss, hessian, remainder * n**-RATE)


def _stacked(parts: Iterable[Array], layers: tuple[int | None, ...]) -> Float[np.ndarray, "l N"]:
    """Leaf by leaf → layer by layer."""
    rows = [np.asarray(part, np.float64).reshape(length or 1, -1) for part, length in zip(parts, layers, strict=True)]
    return np.concatenate(rows)


@jax.jit
def _minus(x: Array, y: Array) -> Array:
    kind = wide(jnp.promote_types(x.dtype, y.dtype))
    return (x.astype(kind) - y.astype(kind)).astype(x.dtype)


@partial(jax.jit, static_argnums=0)
def _values(program: Program, captured: PyTree, params: PyTree, batch: PyTree) -> Array:
    return program(captured, params, batch)


def _positive_parts(
    losses: Function, params: PyTree, batch: PyTree, v: PyTree, layers: tuple[int | None, ...], steps: int
) -> list[Array]:
    """v_iᵀ (H_ii)₊ v_i of every leaf, [layers?, examples?]."""
    program, captured = traced_program(losses, params, batch, (0, 1))
    whole = program.shapes == ((),)
    if not whole:
        program, captured = traced_program(losses, params, jax.tree.map(lambda x: x[:1], batch))
    return [
        _positive(program, whole, number, length, steps, captured, params, batch, part)
        for number, (length, part) in enumerate(zip(layers, jax.tree.leaves(v), strict=True))
    ]


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _positive(
    program: Program,
    whole: bool,
    number: int,
    layers: int | None,
    steps: int,
    captured: PyTree,
    params: PyTree,
    batch: PyTree,
    v: Array,
) -> Array:
    leaves, structure = jax.tree.flatten(params)

    def form(example: PyTree, layer: Array | None) -> Array:
        def f(part: Array) -> Array:
            leaf = part if layer is None else leaves[number].at[layer].set(part)
            mixed = [leaf if i == number else other for i, other in enumerate(leaves)]
            value: Array = program(captured, jax.tree.unflatten(structure, mixed), example)
            return value.sum()

        at, start = (leaves[number], v) if layer is None else (leaves[number][layer], v[layer])
        return _quadrature(jax.linearize(jax.grad(f), at)[1], start, steps)

    def forms(layer: Array | None) -> Array:
        if whole:
            return form(batch, layer)
        held = 2 * steps * (v.size // (layers or 1)) * v.dtype.itemsize
        return jax.lax.map(
            lambda one: form(jax.tree.map(lambda x: x[None], one), layer), batch, batch_size=max(1, _AT_ONCE // held)
        )

    return forms(None) if layers is None else jax.lax.map(forms, jnp.arange(layers))


def _quadrature(product: Callable[[Array], Array], v: Array, steps: int) -> Array:
    """vᵀ A₊ v by Lanczos' method from v, fully reorthogonalised.

    A vector that is rounding only becomes 0, and the quadrature stays exact. matfree's `tridiag_sym` divides by its
    norm: that gives NaN for a block that is 0 or the identity, and 4 % too much for a projector.
    """
    steps = min(steps, v.size)
    kind = wide(v.dtype)
    rounding = _ROUNDING * jnp.finfo(kind).eps
    length = jnp.linalg.norm(v.astype(kind).ravel())

    def step(j: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        basis, matrix, q, scale = carry
        basis = basis.at[j].set(q)
        w = product(q.astype(v.dtype)).astype(kind)
        scale = jnp.maximum(scale, jnp.linalg.norm(w.ravel()))
        for _ in range(2):  # "twice is enough", as in `Basis.orthogonalized`
            parts = jnp.tensordot(basis, w, axes=w.ndim, precision="highest")
            w = w - jnp.tensordot(parts, basis, axes=1, precision="highest")
            matrix = matrix.at[:, j].add(parts)
        left = jnp.linalg.norm(w.ravel())
        kept = left > rounding * scale
        return basis, matrix, jnp.where(kept, w / jnp.where(kept, left, 1), 0), scale

    begin = v.astype(kind) / jnp.where(length > 0, length, 1)
    zeros = jnp.zeros((steps, *v.shape), kind), jnp.zeros((steps, steps), kind)
    _, matrix, _, _ = jax.lax.fori_loop(0, steps, step, (*zeros, begin, jnp.zeros((), kind)))
    upper = jnp.triu(matrix)
    values, vectors = jnp.linalg.eigh(upper + jnp.triu(matrix, 1).T)
    return length**2 * (jnp.square(vectors[0]) * jnp.maximum(values, 0)).sum()
