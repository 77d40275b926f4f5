"""What of a language model's output a kernel is of: functions of parameters and one example.

Each takes a model and gives f(params, example) → array. An example is a mapping as the model takes it, without the
batch axis. `lensjax.curvature.ntk.ntk` takes these and any other function of the kind.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lensjax.models.losses import IGNORED
from lensjax.models.model import Model, Params

Example = Mapping[str, Any]
Functional = Callable[[Params, Example], Array]


def loss(model: Model) -> Functional:
    """Mean negative log-likelihood of the target tokens, in nats: a scalar.

    Its kernel says how a gradient step on one example changes the loss of another.
    """

    def f(params: Params, example: Example) -> Float[Array, ""]:
        return model.loss(params, example)

    return f


def target_logprob(model: Model) -> Functional:
    """Log-probability of every target token, in nats: [time], 0 where there is no target."""

    def f(params: Params, example: Example) -> Float[Array, " time"]:
        return -model.token_losses(params, example)[0]

    return f


def label_logits(model: Model, labels: Sequence[int]) -> Functional:
    """Logits of some tokens where the first target token is predicted: [labels] (Malladi et al., arXiv 2210.05643).

    Args:
      labels: Ids of the tokens that stand for the classes.
    """
    columns = jnp.asarray(labels, jnp.int32)

    def f(params: Params, example: Example) -> Float[Array, " labels"]:
        logits = _wide(model.apply(params, example))
        return logits[_first_target(model, example)][columns]

    return f


def fisher_sketch(model: Model, samples: int, seed: int = 0) -> Functional:
    """Random projections Σ_t u_tᵀ z_t / √T of the logits at the T target tokens, u_t ~ N(0, diag(p) − ppᵀ): [samples].

    u = A g with A = diag(√p) − p√pᵀ, AAᵀ = diag(p) − ppᵀ, and g the same standard normal for every example. So the mean
    over samples of the kernel's diagonal in outputs is unbiased for Σ_t tr(A_tᵀ J_t J'_tᵀ A'_t) / √(TT'), and their
    spread is its error. Gradients do not flow through p.
    """

    def f(params: Params, example: Example) -> Float[Array, " samples"]:
        logits = _wide(model.apply(params, example))
        _, weights = model.token_losses(jax.lax.stop_gradient(params), example)
        p = jax.lax.stop_gradient(jax.nn.softmax(logits, axis=-1))
        root = jnp.sqrt(p)
        count = jnp.maximum(weights.sum(), 1)

        def project(key: Array) -> Array:
            g = jax.random.normal(key, logits.shape, logits.dtype)
            u = root * g - p * (root * g).sum(axis=-1, keepdims=True)
            return ((u * logits).sum(axis=-1) * weights).sum() / jnp.sqrt(count)

        return jax.vmap(project)(jax.random.split(jax.random.key(seed), samples))

    return f


def _first_target(model: Model, example: Example) -> Array:
    """Position whose logits predict the first target token."""
    labels = jnp.asarray(example["labels"])
    first = jnp.argmax(labels != IGNORED)
    return first if model.family.encoder_decoder else jnp.maximum(first - 1, 0)


def _wide(logits: Array) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
