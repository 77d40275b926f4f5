"""AdamW with clipping, and the learning rate of every step."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lensjax.core.pytrees import path_name
from lensjax.train.spec import TrainingSpec

_UNDECAYED = ("bias", "scale")


def make_optimiser(spec: TrainingSpec) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) for a learning rate of −1: the caller clips, and scales."""

    def decayed(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path_name(path).rsplit("/", 1)[-1] not in _UNDECAYED, params
        )

    return optax.chain(
        optax.scale_by_adam(spec.beta1, spec.beta2, spec.epsilon),
        optax.add_decayed_weights(spec.weight_decay, mask=decayed),
    )


def clip(total: Any, count: jax.Array, limit: float) -> tuple[Any, jax.Array]:
    """The gradient total / count, scaled down to norm `limit` where it is above, and its norm before.

    All scaling is one factor, which becomes part of the optimiser's own pass over memory.
    """
    norm = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(total))) / count
    factor = jnp.minimum(1.0, limit / norm) / count
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), total), norm


def learning_rate(spec: TrainingSpec, peak: float, step: int, steps: int) -> float:
    """The learning rate of step `step`, counted from 0, of `steps`."""
    warmup = math.ceil(spec.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if spec.schedule == "constant":
        return peak
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * (1 - done) if spec.schedule == "linear" else peak * 0.5 * (1 + math.cos(math.pi * done))
