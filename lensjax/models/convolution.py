"""Short causal convolutions over time, one for each channel."""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lensjax.models.layers import normal
from lensjax.models.options import Options

Mask = Bool[Array, "batch 1 #time time"]


class CausalConvolution(nnx.Module):
    """y[t] = Σ_j kernel[last − j] · x[t − j] in every channel, with kernel [taps, 1, channels].

    It does not reach into other examples of a row; padding is for the caller to set to 0.
    """

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
        kernel = self.kernel[...].astype(self.dtype)
        apart = None if mask is None or mask.shape[2] == 1 else partial(seen_before, mask)
        y = x * kernel[-1, 0]
        for back in range(1, min(len(kernel), x.shape[1])):
            before = jnp.pad(x, ((0, 0), (back, 0), (0, 0)))[:, :-back]
            if apart is not None:
                before = jnp.where(apart(back)[..., None], before, 0)
            y = y + before * kernel[-1 - back, 0]
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def seen_before(mask: Mask, back: int) -> Bool[Array, "batch time"]:
    """Whether each token sees the one so many places before it, which is another example's where it does not."""
    return jnp.pad(jnp.diagonal(mask[:, 0], -back, 1, 2), ((0, 0), (back, 0)))


def seen_tokens(mask: Mask | None) -> Bool[Array, "batch time"] | None:
    """Where there are tokens and not padding, by the mask of attention; None where it is all of them."""
    if mask is None:
        return None
    return mask[:, 0, 0] if mask.shape[2] == 1 else jnp.diagonal(mask[:, 0], axis1=1, axis2=2)
