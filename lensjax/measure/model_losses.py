"""Losses of language models as `lensjax.curvature` takes them: how batches weigh, and losses as functions of logits."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp

from lensjax.curvature.hvp import Linear, OutputLoss, softmax_hessian
from lensjax.curvature.streaming import count_examples
from lensjax.models.model import Batch, Model


def target_tokens(model: Model) -> Callable[[Any], float]:
    """Counts the target tokens of a batch: the weight with which means of `model.loss` are means over all tokens."""
    count = jax.jit(lambda params, batch: model.token_losses(params, batch)[1].sum())
    return lambda batch: float(count(model.params, batch)) if count_examples(batch) else 0.0


def token_cross_entropy(model: Model) -> OutputLoss:
    """`model.loss` as a function of `model.apply`'s logits, with its Hessian written out."""
    given = _Logits(**{field.name: getattr(model, field.name) for field in fields(model)})

    def hessian(logits: Any, batch: Batch) -> Linear:
        _, weights = given.token_losses(logits, batch)
        return softmax_hessian(logits, weights / jnp.maximum(weights.sum(), 1))

    return OutputLoss(given.loss, hessian)


class _Logits(Model):
    """A model whose parameters are its logits."""

    def apply(self, params: Any, batch: Batch) -> Any:
        return params
