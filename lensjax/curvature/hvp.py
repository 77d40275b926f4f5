"""Products with the Hessian and its kin of any function of any pytree of parameters, on one device or many.

hvp = hvp_fn(model.loss, model.params, batch)  # linearised once
hvp(v)                                         # H v, a pytree like the parameters

A loss is f(params, batch) → scalar. A batch is a pytree of arrays with a leading axis of examples, or `Batches`, over
which the mean is taken. Arrays that the loss captures, such as frozen parameters beside adapters, are not copied.
Vectors have the shapes and types of the parameters, and products their shardings; `jax.vmap(hvp)` takes many at a time.
Everything is computed in the type of the parameters: for float64 make them so, under `jax.enable_x64`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from lensjax.core.errors import InputError
from lensjax.core.pytrees import PyTree, path_name
from lensjax.curvature.form_checks import check_form, check_on_mismatch, first_or_second, layer_of, one_layer
from lensjax.curvature.jaxpr.program import Function, Program, traced_program
from lensjax.curvature.operator import LinearOperator
from lensjax.curvature.series import FORWARD, diagonal_forms, form_of
from lensjax.curvature.streaming import (
    Batches,
    Layout,
    Shares,
    check_params,
    check_vector,
    count_examples,
    explained,
    gathered,
    kept,
    laid_out,
    layer_dots,
    layout,
    mean,
    scanned_layers,
    wide,
)

Mode = Literal["linearized", "direct"]
Linear = Callable[[PyTree], PyTree]
Layers = tuple[int | None, ...]
Forms = tuple[Array, list[Array]]
_BACKWARD = "hvp_fn can take it, which runs the backward pass that it has"


@dataclass(frozen=True)
class OutputLoss:
    """A loss of a model's outputs, and the product with its Hessian.

    Attributes:
      loss: (outputs, batch) → scalar; convex, for the product to be positive semidefinite.
      hessian: (outputs, batch) → (u ↦ ∇²loss u); differentiated for where it is not given.
    """

    loss: Callable[[PyTree, PyTree], Array]
    hessian: Callable[[PyTree, PyTree], Linear] | None = None


def hvp_fn(loss: Function, params: PyTree, batch: PyTree, *, mode: Mode | None = None) -> LinearOperator:
    """The Hessian H = ∇² loss(params, batch): products by forward over reverse mode (Pearlmutter 1994).

    Args:
      loss: (params, batch) → scalar.
      params: Pytree of floating-point arrays.
      batch: A batch, or `Batches`, whose products are averaged with their weights.
      mode: "linearized" computes the gradient once and keeps the arrays that its derivative needs: a product then takes
        2.0 gradients. "direct" computes the gradient anew for every vector, 2.7 gradients, and keeps nothing. By
        default one batch is linearised and `Batches` are not. If the model rematerialises, so do both.

    Returns:
      v ↦ H v, with v and H v shaped and sharded as the parameters.

    Raises:
      InputError: parameters are not floating-point numbers, the loss is not a scalar, there are no examples, or, from
        the product, the vector does not match the parameters, or a batch's loss is not finite.
    """
    return _operator(_Hessian(), loss, params, batch, mode)


def ggn_vp_fn(
    outputs: Function, loss: OutputLoss | Function, params: PyTree, batch: PyTree, *, mode: Mode | None = None
) -> LinearOperator:
    """The generalised Gauss–Newton matrix Jᵀ H_L J (Schraudolph 2002; Martens 2010): 1.33 to 1.67 gradients a product.

    J is the Jacobian of the outputs in the parameters, H_L the Hessian of the loss in the outputs. For losses that are
    negative log-likelihoods of natural parameters, such as softmax cross-entropy of logits, it is the Fisher matrix
    (Martens 2014, section 9). For language models see `lensjax.measure.model_losses.token_cross_entropy`.

    Args:
      outputs: (params, batch) → pytree of arrays.
      loss: (outputs, batch) → scalar, or `OutputLoss`.
      params, batch, mode: See `hvp_fn`; linearised, the outputs are computed once and not for every vector.

    Returns:
      v ↦ Jᵀ H_L J v, see `hvp_fn`.

    Raises:
      InputError: see `hvp_fn`; or the outputs have a custom_vjp, and so no forward derivative.
    """
    rule = _GaussNewton(loss if isinstance(loss, OutputLoss) else OutputLoss(loss))
    return _operator(rule, outputs, params, batch, mode)


def empirical_fisher_vp_fn(
    losses: Function, params: PyTree, batch: PyTree, *, mode: Mode | None = None
) -> LinearOperator:
    """The empirical Fisher matrix (1/N) Σ_n g_n g_nᵀ, g_n the gradient of example n's loss (arXiv 1905.12558).

    It has the labels of the data. The Fisher matrix itself, whose labels the model draws, is that of `ggn_vp_fn`.

    Args:
      losses: (params, batch) → [examples].
      params, batch, mode: See `hvp_fn`.

    Returns:
      v ↦ its product with v, see `hvp_fn`.

    Raises:
      InputError: see `ggn_vp_fn`.
    """
    return _operator(_GaussNewton(_MEAN, ranks=(1,)), losses, params, batch, mode)


def quadratic_form(
    losses: Function,
    params: PyTree,
    batch: PyTree,
    v: PyTree,
    *,
    mode: Literal["forward", "reverse"] | None = None,
    verify: bool = True,
    on_mismatch: Literal["raise", "dense"] = "raise",
) -> Array:
    """vᵀ∇²ℓ v = d²ℓ(params + t v)/dt² at t = 0, for every example or for a scalar loss.

    Args:
      losses: (params, batch) → [examples] or scalar.
      params: Pytree of floating-point arrays.
      batch: A batch, or `Batches`: scalars are averaged over them, and examples follow each other.
      v: A vector with the structure, shapes and types of the parameters.
      mode: "forward" carries Taylor series through the function, runs no backward pass and takes 1.7 gradients;
        "reverse" takes a product and then vᵀ(∇²ℓ v), an example at a time. By default forward, and reverse for
        functions with a custom_vjp.
      verify: Whether to compute the first form of a program, and then one of 64 examples, a second time, by a product
        without series: see `lensjax.curvature.form_checks`. Nothing is where forms are traced, as by `jax.jit`.
      on_mismatch: What to do where these differ by more than rounding: "raise", or take products alone, "dense".

    Returns:
      [examples] or a scalar.

    Raises:
      InputError: see `hvp_fn`; or the function has a custom_vjp and the mode is "forward".
      WrongFormError: a form is not that of a plain product.
    """
    if mode not in (None, "forward", "reverse"):
        raise InputError(f"mode is '{mode}'; give 'forward' or 'reverse'.")
    check_on_mismatch(on_mismatch)
    check_params(params)
    check_vector(params, v)

    def by_product(one: PyTree) -> tuple[Array, Array]:
        value, parts = _joint(losses, params, one, v, (None,) * len(jax.tree.leaves(params)))
        return value, sum(parts[1:], parts[0])

    def by_series(one: PyTree) -> tuple[Array, Array]:
        program, captured = traced_program(losses, params, one, (0, 1))
        with explained("mode='reverse' can take it", FORWARD):
            value, made = form_of(program, captured, params, one, jax.tree.leaves(v))
        if verify:
            check_form(losses, params, one, v, value, made)
        return value, made

    def form(one: PyTree) -> tuple[Array, Array]:
        if mode == "reverse":
            return by_product(one)
        return first_or_second(by_series, by_product, one, on_mismatch, always_first=mode == "forward")

    return gathered(form, batch)


def layer_forms(
    losses: Function,
    params: PyTree,
    batch: PyTree,
    v: PyTree,
    *,
    block: Literal["diagonal", "joint"],
    verify: bool = True,
    on_mismatch: Literal["raise", "dense"] = "raise",
) -> dict[str, Array]:
    """v_iᵀ(∇²ℓ v)_i or v_iᵀ∇²_ii ℓ v_i for every layer i, for every example or for a scalar loss.

    A layer is a leaf of the parameters; of leaves that a scan slices along their leading axis, each slice is one.
    "diagonal" takes H_ii, the layer's own block, as the theorem of Ju, Li & Zhang (ICML 2022) does: by Taylor series,
    0.3 to 1.3 gradients for every layer, or of a function with a custom_vjp by a product for each. "joint" takes all
    blocks of the row, Σ_j v_iᵀ H_ij v_j, as their code does: one product for all layers, and the sum over layers is
    vᵀ H v.

    Args:
      losses, params, batch, v: See `quadratic_form`.
      block: "diagonal" or "joint".
      verify, on_mismatch: See `quadratic_form`; of one layer at a time. Joint blocks are plain products already.

    Returns:
      By the leaf's path: a scalar, or [examples], after an axis of layers where there is one.

    Raises:
      InputError: see `hvp_fn`.
      WrongFormError: see `quadratic_form`.
    """
    if block not in ("diagonal", "joint"):
        raise InputError(f"block is '{block}'; give 'diagonal' or 'joint'.")
    check_on_mismatch(on_mismatch)
    check_params(params)
    check_vector(params, v)
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]

    def forms(one: PyTree) -> tuple[Array, dict[str, Array]]:
        layers = scanned_layers(losses, params, one)
        if block == "joint":
            value, parts = _joint(losses, params, one, v, layers)
        else:
            value, parts = first_or_second(series, products, one, on_mismatch)
        return value, dict(zip(names, parts, strict=True))

    def products(one: PyTree) -> Forms:
        return _diagonals_by_products(losses, params, one, v, scanned_layers(losses, params, one))

    def series(one: PyTree) -> Forms:
        layers = scanned_layers(losses, params, one)
        value, parts = diagonal_forms(losses, params, one, v, layers)
        if verify:
            number, layer, alone = one_layer(v, layers, len(parts) + value.size)
            part = parts[number] if layer is None else parts[number][layer]
            name = names[number] if layer is None else f"{names[number]}, layer {layer},"
            check_form(losses, params, one, alone, value, part, name)
        return value, parts

    return gathered(forms, batch)


def softmax_hessian(logits: Float[Array, "*rows classes"], weights: Float[Array, "*rows"]) -> Linear:
    """u ↦ w (p⊙u − p (p·u)) with p = softmax(logits), the Hessian of Σ_rows w · cross-entropy in the logits.

    Only p is kept, in float32 or wider, where differentiating would keep several arrays of the vocabulary's length.
    """
    p = jax.nn.softmax(logits.astype(wide(logits.dtype)), axis=-1)

    def product(u: Float[Array, "*rows classes"]) -> Float[Array, "*rows classes"]:
        pu = p * u
        return ((pu - p * pu.sum(-1, keepdims=True)) * weights[..., None]).astype(logits.dtype)

    return product


# The Hessian of a mean is 0; with I / N in its place the product is that of the gradients.
_MEAN = OutputLoss(lambda losses, _: losses.mean(), lambda losses, _: lambda u: u / losses.size)


def _gradient_and_value(f: Linear) -> Callable[[PyTree], tuple[PyTree, Array]]:
    """The gradient, and beside it the value, whose derivative is not asked for and would keep arrays of its own."""

    def both(params: PyTree) -> tuple[PyTree, Array]:
        value, gradient = jax.value_and_grad(f)(params)
        return gradient, value

    return both


@dataclass(frozen=True)
class _Hessian:
    """The product with a scalar function's Hessian, and the function's value, which shows whether it is finite."""

    ranks = (0,)

    def linear(self, f: Linear, params: PyTree, batch: PyTree) -> tuple[Array, Linear]:
        _, push, value = jax.linearize(_gradient_and_value(f), params, has_aux=True)
        return value, push

    def direct(self, f: Linear, params: PyTree, batch: PyTree, v: PyTree) -> tuple[Array, PyTree]:
        _, product, value = jax.jvp(_gradient_and_value(f), (params,), (v,), has_aux=True)
        return value, product


@dataclass(frozen=True)
class _GaussNewton:
    """The product with the Gauss–Newton matrix of a function's outputs under a loss."""

    output: OutputLoss
    ranks: tuple[int, ...] | None = None  # of the outputs

    def linear(self, f: Linear, params: PyTree, batch: PyTree) -> tuple[Array, Linear]:
        z, push = jax.linearize(f, params)
        value = self.output.loss(z, batch)
        if value.shape:
            raise InputError(f"The loss of outputs has shape {value.shape}; it must be a scalar.")
        if self.output.hessian is None:
            curve = jax.linearize(jax.grad(lambda z: self.output.loss(z, batch)), z)[1]
        else:
            curve = self.output.hessian(z, batch)
        pull = jax.linear_transpose(push, params)
        return value, lambda v: pull(curve(push(v)))[0]

    def direct(self, f: Linear, params: PyTree, batch: PyTree, v: PyTree) -> tuple[Array, PyTree]:
        value, product = self.linear(f, params, batch)
        return value, product(v)


_Rule = _Hessian | _GaussNewton


def _operator(rule: _Rule, f: Function, params: PyTree, batch: PyTree, mode: Mode | None) -> LinearOperator:
    """The mean over batches of a rule's products; the batches are all linearised now, or each for every vector."""
    if mode not in (None, "linearized", "direct"):
        raise InputError(f"mode is '{mode}'; give 'linearized' or 'direct'.")
    check_params(params)
    data, how = Shares(batch), layout(params)
    linearized = mode == "linearized" or (mode is None and not isinstance(batch, Batches))

    def compute(step: Callable[..., tuple[Array, PyTree]], one: PyTree, *more: Any) -> tuple[Array, PyTree]:
        with explained(_BACKWARD, FORWARD):
            program, captured = traced_program(f, params, one, rule.ranks)
            return step(rule, program, captured, params, one, *more)

    held = [(share, push) for share, _, push in data.each(partial(compute, _linearize))] if linearized else []

    def product(v: PyTree) -> PyTree:
        check_vector(params, v)
        if not held:
            return mean((share, part) for share, _, part in data.each(lambda one: compute(_direct, one, how, v)))
        with explained(_BACKWARD, FORWARD):
            return mean((share, _apply(how, push, v)) for share, push in held)

    return LinearOperator(product, params)


@partial(jax.jit, static_argnums=(0, 1))
def _linearize(rule: _Rule, program: Program, captured: PyTree, params: PyTree, batch: PyTree) -> tuple[Array, Partial]:
    """The value, and the product with all that it keeps."""
    value, push = rule.linear(lambda p: program(captured, p, batch), params, batch)
    return value, kept(push, params)


@partial(jax.jit, static_argnums=0)
def _apply(how: Layout, push: Partial, v: PyTree) -> PyTree:
    return laid_out(push(v), how)


@partial(jax.jit, static_argnums=(0, 1, 5))
def _direct(
    rule: _Rule, program: Program, captured: PyTree, params: PyTree, batch: PyTree, how: Layout, v: PyTree
) -> tuple[Array, PyTree]:
    value, product = rule.direct(lambda p: program(captured, p, batch), params, batch, v)
    return value, laid_out(product, how)


def _diagonals_by_products(losses: Function, params: PyTree, batch: PyTree, v: PyTree, layers: Layers) -> Forms:
    """What `diagonal_forms` returns, by a product for every layer."""
    parts: list[Array] = []
    for number, length in enumerate(layers):
        made = []
        for layer in [None] if length is None else range(length):
            value, forms = _joint(losses, params, batch, layer_of(v, number, layer), layers)
            made.append(forms[number] if layer is None else forms[number][layer])
        parts.append(made[0] if length is None else jnp.stack(made))
    return value, parts


def _joint(losses: Function, params: PyTree, batch: PyTree, v: PyTree, layers: Layers) -> Forms:
    """The value, and v_iᵀ(Hv)_i of every leaf; of examples, one at a time."""
    program, captured = traced_program(losses, params, batch, (0, 1))
    with explained("hvp_fn of a function without it can", FORWARD):
        if program.shapes == ((),):
            value, product = _direct(_Hessian(), program, captured, params, batch, layout(params), v)
            return value, layer_dots(layers, v, product)
        count_examples(batch)
        program, captured = traced_program(losses, params, jax.tree.map(lambda x: x[:1], batch), (1,))
        return _joint_examples(program, layers, captured, params, batch, v)


@partial(jax.jit, static_argnums=(0, 1))
def _joint_examples(
    program: Program, layers: Layers, captured: PyTree, params: PyTree, batch: PyTree, v: PyTree
) -> Forms:
    def one(example: PyTree) -> Forms:
        alone = jax.tree.map(lambda x: x[None], example)
        value, product = _Hessian().direct(lambda p: program(captured, p, alone)[0], params, alone, v)
        return value, layer_dots(layers, v, product)

    values, forms = jax.lax.map(one, batch)
    return values, [jnp.moveaxis(form, 0, -1) for form in forms]
