"""The loss of a language model: negative log-likelihood of target tokens, in nats."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

IGNORED = -100  # the label of positions that are not targets, as everywhere in Hugging Face's libraries

Reduction = Literal["mean", "example"]
_DOUBT = 0.6  # nats; the loss of a label with an equal is log 2 = 0.69 or more, give or take rounding
_CHUNKS = 32  # of rows that are read again, which no batch has more of


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


def greedy_hits(
    logits: Float[Array, "batch time vocabulary"], labels: Int[Array, "batch time"], losses: Float[Array, "batch time"]
) -> Bool[Array, "batch time"]:
    """Whether each label is the argmax of its logits, the first of several: what greedy decoding takes.

    An argmax over a large vocabulary takes long beside a small model. So the label's logit is compared with the
    highest, which the loss needs too, and only rows that may hold an equal before the label are read again: those
    where the label has about half of the probability or less. Ties are common in half precision.

    Args:
      logits, labels: See `token_losses`.
      losses: What it returns.
    """
    size, vocabulary = labels.size, logits.shape[-1]
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    chosen = jnp.take_along_axis(wide, jnp.maximum(labels, 0)[..., None], axis=-1, mode="fill")
    highest = ((chosen == wide.max(-1, keepdims=True))[..., 0] & (labels != IGNORED)).reshape(size)
    rows, values, flat = logits.reshape(size, vocabulary), chosen.reshape(size, 1), labels.reshape(size, 1)
    doubtful = highest & (losses.reshape(size) > _DOUBT)
    chunk = -(-size // _CHUNKS)
    places = jnp.nonzero(doubtful, size=chunk * _CHUNKS, fill_value=size)[0]

    def compare(i: Int[Array, ""], hits: Bool[Array, " size"]) -> Bool[Array, " size"]:
        some = jax.lax.dynamic_slice_in_dim(places, i * chunk, chunk)
        before = jnp.arange(vocabulary, dtype=flat.dtype) < flat[some]
        ties = (before & (rows[some] == values[some])).any(-1)
        return hits.at[some].set(~ties, mode="drop")

    chunks = (doubtful.sum() + chunk - 1) // chunk
    return jax.lax.fori_loop(0, chunks, compare, highest).reshape(labels.shape)


def reduce_losses(losses: Array, weights: Array, reduction: Reduction) -> Array:
    """Mean over all target tokens, or over those of each example; 0 where there are no target tokens."""
    axes = None if reduction == "mean" else -1
    return losses.sum(axes) / jnp.maximum(weights.sum(axes), 1.0)


def shift_right(labels: Int[Array, "batch time"], start: int | None, padding: int) -> Int[Array, "batch time"]:
    """A decoder's inputs from its targets: `start` first, and `padding` where targets are −100.

    Without `start`, each begins with the last token of its target, which is found by the number of tokens that are not
    padding, as `transformers` does.
    """
    tokens = jnp.where(labels == IGNORED, padding, labels)
    if start is None:
        last = jnp.maximum((tokens != padding).sum(1, keepdims=True) - 1, 0)
        first = jnp.take_along_axis(tokens, last, axis=1)
    else:
        first = jnp.full_like(tokens[:, :1], start)
    return jnp.concatenate([first, tokens[:, :-1]], axis=1)
