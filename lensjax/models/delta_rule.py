"""The gated delta rule (arXiv 2412.06464): a memory that forgets, and is corrected by every token."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lensjax.models.convolution import CausalConvolution, seen_before, seen_tokens
from lensjax.models.layers import Linear, RMSNorm, activation
from lensjax.models.memory import State
from lensjax.models.options import Options

_CHUNK = 64  # tokens whose states the backward pass computes again
_EPS = 1e-6  # of the norm of queries and keys


class GatedDeltaNet(nnx.Module):
    """Queries, keys and values by linear maps and short convolutions, read from and written to a memory of every head.

    Args:
      width: Of inputs and outputs.
      key_heads, value_heads: Numbers of heads; the first divides the second.
      key_dim, value_dim: Sizes of a head.
      taps: Of the convolutions.
      act: Name of the activation behind them.
      eps: Of the norm of what is read.

    Attributes:
      recomputes: Whether the backward pass keeps the memory before every chunk only, and computes the others again.
      memory: That of the tokens before these, only where a model writes.
    """

    mixes_tokens = True
    memory: State

    def __init__(
        self,
        width: int,
        key_heads: int,
        value_heads: int,
        key_dim: int,
        value_dim: int,
        taps: int,
        options: Options,
        rngs: nnx.Rngs,
        *,
        act: str = "silu",
        eps: float = 1e-6,
        std: float = 0.02,
    ) -> None:
        self.act, self.key_dim, self.value_dim, self.dtype = activation(act), key_dim, value_dim, options.dtype
        keys, values = key_heads * key_dim, value_heads * value_dim

        def linear(inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, options, rngs, std=std)

        def convolution(channels: int) -> CausalConvolution:
            return CausalConvolution(channels, taps, options, rngs, std=std)

        self.q, self.k, self.v = linear(width, keys), linear(width, keys), linear(width, values)
        self.q_conv, self.k_conv, self.v_conv = convolution(keys), convolution(keys), convolution(values)
        self.gate, self.rate, self.forget = (
            linear(width, values),
            linear(width, value_heads),
            linear(width, value_heads),
        )
        self.forget_log = nnx.Param(jnp.zeros(value_heads, options.param_dtype))
        self.forget_bias = nnx.Param(jnp.ones(value_heads, options.param_dtype))
        self.norm = RMSNorm(value_dim, options, eps=eps)
        self.recomputes = True
        self.o = linear(values, width)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        mask: Bool[Array, "batch 1 #time time"] | None,
        *,
        angles: object = None,
    ) -> Float[Array, "batch time width"]:
        """What attention is called with; there are no positions."""
        memory: State | None = getattr(self, "memory", None)
        seen = seen_tokens(mask, x.shape[1], memory)
        x = x if seen is None else jnp.where(seen[..., None], x, 0)
        q = self._heads(self.act(self.q_conv(self.q(x), mask)), self.key_dim)
        k = self._heads(self.act(self.k_conv(self.k(x), mask)), self.key_dim)
        v = self._heads(self.act(self.v_conv(self.v(x), mask)), self.value_dim)
        groups = v.shape[2] // k.shape[2]
        q, k = (jnp.repeat(_normed(z), groups, axis=2) for z in (q, k))
        rates = jax.nn.sigmoid(self.rate(x)).astype(v.dtype)
        gaps = jax.nn.softplus(self.forget(x).astype(v.dtype) + self.forget_bias[...].astype(v.dtype))
        kept = jnp.exp(-jnp.exp(self.forget_log[...].astype(v.dtype)) * gaps)
        if mask is not None and mask.shape[2] > 1:  # each example begins with an empty memory
            kept = jnp.where(seen_before(mask, 1)[..., None], kept, 0)
        before = None if memory is None else memory.state[...].astype(v.dtype)
        y, after = delta_rule(q * self.key_dim**-0.5, k, v, kept, rates, before, recomputes=self.recomputes)
        if memory is not None:
            memory.state[...] = after
        y = y.astype(self.dtype)
        gate = self._heads(self.gate(x), self.value_dim)
        y = (self.norm(y) * jax.nn.silu(gate)).astype(self.dtype)
        return self.o(y.reshape(*x.shape[:-1], -1))

    def _heads(self, x: Float[Array, "batch time inner"], dim: int) -> Float[Array, "batch time heads dim"]:
        """Heads in float32 or wider."""
        return x.reshape(*x.shape[:-1], -1, dim).astype(jnp.promote_types(x.dtype, jnp.float32))


def delta_rule(
    q: Float[Array, "batch time heads key"],
    k: Float[Array, "batch time heads key"],
    v: Float[Array, "batch time heads value"],
    kept: Float[Array, "batch time heads"],
    rates: Float[Array, "batch time heads"],
    memory: Float[Array, "batch heads key value"] | None = None,
    *,
    recomputes: bool = True,
) -> tuple[Float[Array, "batch time heads value"], Float[Array, "batch heads key value"]]:
    """What is read at every token from a memory S [key, value] of each head, and the memory after the last.

    A token multiplies S by its `kept`, moves the value that S has for its key towards its own by the share `rates`, and
    reads S by its query: S ← kept·S; S ← S + rates·k ⊗ (v − kᵀS); y = qᵀS. `memory` is
    S before the first, 0 where it is not given. If it `recomputes`, the backward pass keeps the memory before every
    chunk of tokens only.
    """

    def step(memory: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, kept, rate = token
        memory = memory * kept[..., None, None]
        error = (v - jnp.einsum("bhk,bhkv->bhv", k, memory)) * rate[..., None]
        memory = memory + k[..., :, None] * error[..., None, :]
        return memory, jnp.einsum("bhk,bhkv->bhv", q, memory)

    def chunk(memory: Array, tokens: tuple[Array, ...]) -> tuple[Array, Array]:
        return jax.lax.scan(step, memory, tokens)

    batch, time, heads, key = k.shape
    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, kept, rates))
    start = jnp.zeros((batch, heads, key, v.shape[-1]), v.dtype) if memory is None else memory
    if time <= _CHUNK or not recomputes:
        after, y = chunk(start, tokens)
        return jnp.moveaxis(y, 0, 1), after
    size = -(-time // _CHUNK)
    fills = 0, 0, 0, 1, 0  # a token that leaves the memory as it is
    padded = (
        jnp.pad(x, ((0, size * _CHUNK - time), *((0, 0),) * (x.ndim - 1)), constant_values=fill)
        for x, fill in zip(tokens, fills, strict=True)
    )
    chunks = tuple(x.reshape(size, _CHUNK, *x.shape[1:]) for x in padded)
    after, y = jax.lax.scan(jax.checkpoint(chunk, prevent_cse=False), start, chunks)
    return jnp.moveaxis(y.reshape(-1, *y.shape[2:])[:time], 0, 1), after


def _normed(x: Float[Array, "... dim"]) -> Float[Array, "... dim"]:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + _EPS)
