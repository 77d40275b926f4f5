"""The loss of a language model: negative log-likelihood of target tokens, in nats."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

IGNORED = -100  # the label of positions that are not targets, as everywhere in Hugging Face's libraries

Reduction = Literal["mean", "example"]


def token_losses(
    logits: Float[Array, "batch time vocabulary"], labels: Int[Array, "batch time"]
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
    """Loss of every token in nats, and its weight.

    Returns:
      Losses and weights; a weight is 1 where the token counts, and loss and weight are 0 where the label is −100. The
      loss of other labels outside the vocabulary is NaN.
    """
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    counted = labels != IGNORED
    rows = jnp.where(counted, labels, 0)
    rows = jnp.where(rows < 0, wide.shape[-1], rows)  # beyond the vocabulary: a negative index would count from its end
    chosen = jnp.take_along_axis(wide, rows[..., None], axis=-1, mode="fill")[..., 0]
    losses = jax.nn.logsumexp(wide, axis=-1) - chosen
    return jnp.where(counted, losses, 0.0), counted.astype(wide.dtype)


def reduce_losses(losses: Array, weights: Array, reduction: Reduction) -> Array:
    """Mean over all target tokens, or over those of each example; 0 where there are no target tokens."""
    axes = None if reduction == "mean" else -1
    return losses.sum(axes) / jnp.maximum(weights.sum(axes), 1.0)


def shift_right(labels: Int[Array, "batch time"], start: int, padding: int) -> Int[Array, "batch time"]:
    """A decoder's inputs from its targets: `start` first, and `padding` where targets are −100."""
    shifted = jnp.concatenate([jnp.full_like(labels[:, :1], start), labels[:, :-1]], axis=1)
    return jnp.where(shifted == IGNORED, padding, shifted)
