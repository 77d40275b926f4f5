"""Losses of language models as `lensjax.curvature` takes them: how batches weigh, and losses as functions of logits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lensjax.curvature.hvp import Linear, OutputLoss, softmax_hessian
from lensjax.curvature.streaming import count_examples
from lensjax.models.losses import IGNORED, reduce_losses, token_losses
from lensjax.models.model import Batch, Model, Params
from lensjax.models.vocabulary import by_chunks, summed_wide

Outputs = tuple[Array, Params]


def target_tokens(model: Model) -> Callable[[Any], float]:
    """Counts the target tokens of a batch: the weight with which means of `model.loss` are means over all tokens."""
    count = jax.jit(lambda params, batch: model.token_losses(params, batch)[1].sum())
    return lambda batch: float(count(model.params, batch)) if count_examples(batch) else 0.0


def token_cross_entropy(model: Model) -> OutputLoss:
    """`model.loss` as a function of `model.apply`'s logits, with its Hessian written out."""

    def loss(logits: Any, batch: Batch) -> Array:
        return reduce_losses(*token_losses(logits, model.targets(batch)), "mean")

    def hessian(logits: Any, batch: Batch) -> Linear:
        weights = (model.targets(batch) != IGNORED).astype(jnp.promote_types(logits.dtype, jnp.float32))
        return softmax_hessian(logits, weights / jnp.maximum(weights.sum(), 1))

    return OutputLoss(loss, hessian)


def head_cross_entropy(model: Model) -> tuple[Callable[[Params, Batch], Outputs], OutputLoss]:
    """The Gauss–Newton matrix of `model.loss` in its logits, none of which are held for a whole batch.

    ggn_vp_fn(*head_cross_entropy(model), model.params, batch) is that of `model.apply` and `token_cross_entropy`. Its
    outputs are what the head reads and the head's own parameters, and the product is with J_hᵀ H J_h, with J_h the
    Jacobian of the head and H the Hessian in the logits, for a chunk of tokens at a time.

    Returns:
      The outputs, and the loss as a function of them.
    """

    def outputs(params: Params, batch: Batch) -> Outputs:
        return model.hidden(params, batch), model.head_of(params)

    def loss(z: Outputs, batch: Batch) -> Array:
        x, head = z
        targets = model.targets(batch)
        chunks = model.chunks(targets.shape)
        made = by_chunks(lambda x, targets: token_losses(model.logits(head, x), targets), chunks, x, targets)
        losses, weights = made
        return reduce_losses(losses, weights, "mean")

    def product(z: Outputs, batch: Batch) -> Linear:
        x, head = z
        targets = model.targets(batch)
        chunks = model.chunks(targets.shape)
        count = jnp.maximum((targets != IGNORED).sum(), 1)

        def of_some(x: Array, targets: Array, dx: Array, dhead: Params) -> tuple[Params, Array]:
            logits, push = jax.linearize(model.logits, head, x)
            curve = softmax_hessian(logits, (targets != IGNORED) / count.astype(logits.dtype))
            slopes: tuple[Params, Array] = jax.linear_transpose(push, head, x)(curve(push(dhead, dx)))
            return slopes

        def of_all(u: Outputs) -> Outputs:
            dx, dhead = u
            if chunks is None:
                slope, back = of_some(x, targets, dx, dhead)
                return back, slope

            def add(total: Params, some: tuple[Array, Array, Array]) -> tuple[Params, Array]:
                slope, back = of_some(*some, dhead)
                return jax.tree.map(lambda whole, part: whole + part.astype(whole.dtype), total, slope), back

            zero = jax.tree.map(jnp.zeros_like, summed_wide(head))
            some = chunks.split(x), chunks.split(targets, IGNORED), chunks.split(dx)
            slope, back = jax.lax.scan(add, zero, some)
            return chunks.join(back), jax.tree.map(lambda part, of: part.astype(of.dtype), slope, head)

        return of_all

    return outputs, OutputLoss(loss, product)
