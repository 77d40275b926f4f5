"""The functional "fisher_sketch"."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lensjax.measure.functionals import FUNCTIONALS, Example, Functional, OfModel
from lensjax.models.losses import IGNORED
from lensjax.models.model import Model, Params
from lensjax.models.vocabulary import by_chunks, chunks_of, summed_wide


def fisher_sketch(model: Model, samples: int, seed: int = 0) -> OfModel:
    """Random projections Σ_t u_tᵀ z_t / √T of the logits at the T target tokens, u_t ~ N(0, diag(p) − ppᵀ): [samples].

    u = A g with A = diag(√p) − p√pᵀ, AAᵀ = diag(p) − ppᵀ, and g the same standard normal for every example. So the mean
    over samples of the kernel's diagonal in outputs is unbiased for Σ_t tr(A_tᵀ J_t J'_tᵀ A'_t) / √(TT'), and their
    spread is its error. Gradients do not flow through p. Projections of a few tokens at a time are held, and g at a
    position does not depend on how many these are.

    Args:
      samples: Number of projections.
      seed: Of g.
    """

    def f(params: Params, example: Example) -> Float[Array, " samples"]:
        batch = {name: jnp.asarray(value)[None] for name, value in example.items() if value is not None}
        x, targets = model.hidden(params, batch), model.targets(batch)
        chunks = chunks_of(targets.shape, model.config.vocab_size * samples, model.options.mesh)
        head = params if chunks is None else summed_wide(model.head_of(params))

        def of_some(x: Array, targets: Array, positions: Array) -> Float[Array, "rows tokens samples"]:
            logits = model.logits(head, x)
            logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
            p = jax.lax.stop_gradient(jax.nn.softmax(logits, axis=-1))
            root = jnp.sqrt(p)

            def project(key: Array) -> Float[Array, "rows tokens"]:
                keys = jax.vmap(jax.vmap(partial(jax.random.fold_in, key)))(positions)
                g = jax.vmap(jax.vmap(lambda one: jax.random.normal(one, logits.shape[-1:], logits.dtype)))(keys)
                u = root * g - p * (root * g).sum(axis=-1, keepdims=True)
                return jnp.where(targets == IGNORED, 0, (u * logits).sum(axis=-1))

            keys = jax.random.split(jax.random.key(seed), samples)
            return jax.vmap(project, out_axes=-1)(keys)

        positions = jnp.arange(targets.size).reshape(targets.shape)
        made: Array = by_chunks(of_some, chunks, x, targets, positions)
        return made.sum(axis=(0, 1)) / jnp.sqrt(jnp.maximum((targets != IGNORED).sum(), 1)).astype(made.dtype)

    return f


FUNCTIONALS.register("fisher_sketch")(
    Functional(
        description="Of random projections of the logits (an estimate of the Fisher-weighted kernel)",
        make=lambda model, classes, samples: fisher_sketch(model, samples),
        output="diagonal",
    )
)
