"""The functional "fisher_sketch"."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lensjax.measure.functionals import FUNCTIONALS, Example, Functional, OfModel
from lensjax.models.model import Model, Params


def fisher_sketch(model: Model, samples: int, seed: int = 0) -> OfModel:
    """Random projections Σ_t u_tᵀ z_t / √T of the logits at the T target tokens, u_t ~ N(0, diag(p) − ppᵀ): [samples].

    u = A g with A = diag(√p) − p√pᵀ, AAᵀ = diag(p) − ppᵀ, and g the same standard normal for every example. So the mean
    over samples of the kernel's diagonal in outputs is unbiased for Σ_t tr(A_tᵀ J_t J'_tᵀ A'_t) / √(TT'), and their
    spread is its error. Gradients do not flow through p.

    Args:
      samples: Number of projections.
      seed: Of g.
    """

    def f(params: Params, example: Example) -> Float[Array, " samples"]:
        logits = model.apply(params, example)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
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


FUNCTIONALS.register("fisher_sketch")(
    Functional(
        description="Of random projections of the logits (an estimate of the Fisher-weighted kernel)",
        make=lambda model, classes, samples: fisher_sketch(model, samples),
        output="diagonal",
    )
)
