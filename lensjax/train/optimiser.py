"""AdamW with clipping, and the learning rate of every step."""

import math

import jax
import jax.numpy as jnp
import optax

from lensjax.core.pytrees import PyTree, path_name
from lensjax.models.model import Params
from lensjax.train.spec import TrainingSpec

_UNDECAYED = ("bias", "scale", "lora_m")


def make_optimiser(spec: TrainingSpec) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) without its learning rate and sign, for gradients that the caller has clipped."""

    def decayed(params: Params) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path_name(path).rsplit("/", 1)[-1] not in _UNDECAYED, params
        )

    return optax.chain(
        optax.scale_by_adam(spec.beta1, spec.beta2, spec.epsilon),
        optax.add_decayed_weights(spec.weight_decay, mask=decayed),
    )


def clip(total: Params, count: jax.Array, limit: float) -> tuple[Params, jax.Array]:
    """The gradient of a mean, scaled down to a norm of at most `limit`, and its norm before.

    Both scalings are one factor, which XLA fuses into the optimiser's own pass over memory; `optax.clip_by_global_norm`
    would take a pass more.

    Args:
      total: Gradient of the sum.
      count: Number of summands.
      limit: Largest norm over all parameters.
    """
    norm = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(total))) / count
    factor = jnp.minimum(1.0, limit / norm) / count
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), total), norm


def learning_rate(spec: TrainingSpec, peak: float, step: int, steps: int) -> float:
    """The learning rate of a step: a linear warm-up, and then the spec's schedule.

    It is computed in float64 on the host; the schedules of optax compute in float32, and dispatch to a device every
    step.

    Args:
      spec: Its `warmup` and `schedule`.
      peak: The rate after the warm-up.
      step: Counted from 0.
      steps: Of the whole training.
    """
    warmup = math.ceil(spec.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if spec.schedule == "constant":
        return peak
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * (1 - done) if spec.schedule == "linear" else peak * 0.5 * (1 + math.cos(math.pi * done))
