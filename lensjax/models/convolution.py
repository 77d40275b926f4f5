"""Short causal convolutions over time, one for each channel."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lensjax.models.layers import normal
from lensjax.models.memory import State
from lensjax.models.options import Options

Mask = Bool[Array, "batch 1 #time time"]


class CausalConvolution(nnx.Module):
    """y[t] = Σ_j kernel[last − j] · x[t − j] in every channel, with kernel [taps, 1, channels].

    It does not reach into other examples of a row; padding is for the caller to set to 0.

    Attributes:
      memory: The last inputs before these, as many as it reaches back to, only where a model writes.
    """

    memory: State

    def __init__(
        self, channels: int, taps: int, options: Options, rngs: nnx.Rngs, *, bias: bool = False, std: float = 0.02
    ) -> None:
        self.dtype = options.dtype
        self.kernel = normal(rngs, (taps, 1, channels), std, options)
        self.bias = nnx.Param(jnp.zeros(channels, options.param_dtype)) if bias else None

    def __call__(
        self, x: Float[Array, "batch time channels"], mask: Mask | None
    ) -> Float[Array, "batch time channels"]:
        """The convolution of x, within examples that `mask`, that of attention, keeps apart."""
        kernel, memory = self.kernel[...].astype(self.dtype), getattr(self, "memory", None)
        if memory is not None:
            return self._after(memory, x, kernel)
        apart = None if mask is None or mask.shape[2] == 1 else partial(seen_before, mask)
        y = x * kernel[-1, 0]
        for back in range(1, min(len(kernel), x.shape[1])):
            before = jnp.pad(x, ((0, 0), (back, 0), (0, 0)))[:, :-back]
            if apart is not None:
                before = jnp.where(apart(back)[..., None], before, 0)
            y = y + before * kernel[-1 - back, 0]
        return self._biased(y)

    def _after(
        self, memory: State, x: Float[Array, "batch time channels"], kernel: Float[Array, "taps 1 channels"]
    ) -> Float[Array, "batch time channels"]:
        """The convolution of x after what was read before, all of one example."""
        back, time = len(kernel) - 1, x.shape[1]
        joined = jnp.concatenate([memory.state[...].astype(x.dtype), x], axis=1)
        memory.state[...] = joined[:, time:].astype(memory.state[...].dtype)
        y = x * kernel[back, 0]
        for tap in range(back):
            y = y + joined[:, tap : tap + time] * kernel[tap, 0]
        return self._biased(y)

    def _biased(self, y: Float[Array, "batch time channels"]) -> Float[Array, "batch time channels"]:
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def seen_before(mask: Mask, back: int) -> Bool[Array, "batch time"]:
    """Whether each token sees the one so many places before it, which is another example's where it does not."""
    return jnp.pad(jnp.diagonal(mask[:, 0], -back, 1, 2), ((0, 0), (back, 0)))


def seen_tokens(mask: Mask | None, time: int, memory: State | None = None) -> Bool[Array, "batch time"] | None:
    """Where there are tokens and not padding, by the mask of attention; None where it is all of them.

    Args:
      mask: Of these tokens, or of all that a row may have, where there is a memory of those before.
      time: Number of these tokens.
      memory: See above.
    """
    if mask is None:
        return None
    if mask.shape[2] > 1:
        return jnp.diagonal(mask[:, 0], axis1=1, axis2=2)
    seen = mask[:, 0, 0]
    return seen if memory is None else jax.lax.dynamic_slice_in_dim(seen, memory.start[...], time, axis=1)
