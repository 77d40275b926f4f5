"""The gradient of the summed loss, as a training step needs it: without logits of a whole batch, computed once."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lensjax.core.pytrees import Params, PyTree
from lensjax.models.adapters import join
from lensjax.models.losses import IGNORED, token_losses
from lensjax.models.model import Model

Sums = tuple[Float[Array, ""], Float[Array, ""]]


def loss_and_gradient(model: Model, trained: Params, frozen: Params, batch: Mapping[str, Array]) -> tuple[Sums, Params]:
    """The loss summed over target tokens, in nats, their number, and the gradient of the sum.

    As every loss counts alike, the gradient of a chunk is taken while its logits are there (see
    `lensjax.models.vocabulary`): nothing is computed twice.

    Args:
      model: Makes the loss; its own parameters are not read.
      trained, frozen: As `lensjax.models.lora.split_trainable` takes parameters apart; the gradient is in the first.
      batch: See `Model`.
    """
    targets = model.targets(batch)
    chunks = model.chunks(targets.shape)

    def total(own: Params, head: Params, x: Array, targets: Int[Array, "rows tokens"]) -> Sums:
        losses, weights = token_losses(model.logits({**head, **own}, x), targets)
        return losses.sum(), weights.sum()

    if chunks is None:

        def whole(trained: Params) -> Sums:
            params = join(trained, frozen)
            return total({}, params, model.hidden(params, batch), targets)

        return jax.value_and_grad(whole, has_aux=True)(trained)
    x, pull = jax.vjp(lambda trained: model.hidden(join(trained, frozen), batch), trained)
    head = model.head_of(join(trained, frozen))
    own = {key: value for key, value in head.items() if key in trained}
    step = jax.value_and_grad(total, argnums=(0, 2), has_aux=True)

    def add(carry: PyTree, chunk: tuple[Array, Array]) -> tuple[PyTree, Array]:
        sums, (slope, dx) = step(own, head, *chunk)
        return jax.tree.map(lambda total, part: total + part.astype(total.dtype), carry, (sums, slope)), dx

    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), own)
    none = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
    parts = chunks.split(x), chunks.split(targets, IGNORED)
    (sums, slopes), dx = jax.lax.scan(add, ((none, none), zero), parts)
    (gradient,) = pull(chunks.join(dx))
    mixed = jax.tree.map(lambda of, slope: of + slope.astype(of.dtype), {key: gradient[key] for key in own}, slopes)
    return sums, {**gradient, **mixed}
