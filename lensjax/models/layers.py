"""The parts that models are built of: linear maps, embeddings, norms, attention, MLPs and the scanned stack."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from lensjax.core.errors import InputError, shorten
from lensjax.core.pytrees import PyTree
from lensjax.models.attend import Way, attend
from lensjax.models.linear import Linear as Linear  # exported from here too, beside the parts made of it
from lensjax.models.linear import normal as normal
from lensjax.models.masks import Sight, both
from lensjax.models.memory import Lent, Memory, Slot, Source, seen, through
from lensjax.models.options import Options
from lensjax.models.remat import recomputed, rematerialised
from lensjax.models.rotary import rotate
from lensjax.models.sharding import constrain_activations

# Cosines and sines [batch, time, half], and in models whose queries grow with their positions, the factor of those.
Angles = tuple[Float[Array, "batch time half"], ...]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_fast": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "gelu_python": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_python_tanh": jax.nn.gelu,
    "gelu_accurate": jax.nn.gelu,
    "gelu_10": lambda x: jnp.clip(jax.nn.gelu(x, approximate=False), -10, 10),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "hardswish": jax.nn.hard_swish,
    "laplace": lambda x: 0.5 * (1 + jax.lax.erf((x - 0.707107) / (0.282095 * np.sqrt(2.0)))),
    "leaky_relu": jax.nn.leaky_relu,
    "linear": lambda x: x,
    "mish": jax.nn.mish,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "sqrtsoftplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
    "tanh": jnp.tanh,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The elementwise function of that name in a Hugging Face configuration.

    Of those that `transformers` has, two hold parameters of their own and are not here: prelu and xielu.

    Raises:
      InputError: there is none.
    """
    if name not in _ACTIVATIONS:
        raise InputError(f"Activation '{shorten(name)}' in config.json; LensJAX knows {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


class Embedding(nnx.Module):
    """Rows of a table; ids outside it, negative ones too, give NaN rather than the row of another token."""

    def __init__(self, rows: int, width: int, options: Options, rngs: nnx.Rngs, *, std: float = 0.02) -> None:
        self.dtype = options.dtype
        self.embedding = normal(rngs, (rows, width), std, options)

    def __call__(self, ids: Int[Array, "..."]) -> Float[Array, "... width"]:
        return self.embedding[...].at[ids].get(mode="fill", wrap_negative_indices=False).astype(self.dtype)

    def logits(self, x: Float[Array, "... width"]) -> Float[Array, "... rows"]:
        """Scores of every row: the head of models that tie it to their embedding."""
        return x.astype(self.dtype) @ self.embedding[...].astype(self.dtype).T


class Bias(nnx.Module):
    """A bias that stands alone, as of a head that is tied to the embedding.

    Args:
      shape: Its shape.
      learned: Whether gradients reach it.
    """

    def __init__(self, shape: tuple[int, ...], options: Options, *, learned: bool = True) -> None:
        self.learned = learned
        self.bias = nnx.Param(jnp.zeros(shape, options.param_dtype))

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        bias = self.bias[...].astype(x.dtype)
        return x + (bias if self.learned else jax.lax.stop_gradient(bias)).reshape(-1)


class LayerNorm(nnx.Module):
    """Layer normalisation (arXiv 1607.06450), computed in float32 or wider."""

    def __init__(
        self, width: int, options: Options, *, eps: float = 1e-5, scale: bool = True, bias: bool = True
    ) -> None:
        self.eps, self.dtype = eps, options.dtype
        self.scale = nnx.Param(jnp.ones(width, options.param_dtype)) if scale else None
        self.bias = nnx.Param(jnp.zeros(width, options.param_dtype)) if bias else None

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        return recomputed(self._norm)(x)

    def _norm(self, x: Array) -> Array:
        wide = _widen(x)
        centred = wide - wide.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        y = y if self.scale is None else y * self.scale[...]
        return (y if self.bias is None else y + self.bias[...]).astype(self.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation (arXiv 1910.07467), computed in float32 or wider.

    `offset` is added to the scale: Gemma stores scale − 1. There is none without `scale`.
    """

    def __init__(
        self, width: int, options: Options, *, eps: float = 1e-6, offset: float = 0.0, scale: bool = True
    ) -> None:
        self.eps, self.offset, self.dtype = eps, offset, options.dtype
        self.scale = nnx.Param(jnp.full(width, 1.0 - offset, options.param_dtype)) if scale else None

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        return recomputed(self._norm)(x)

    def _norm(self, x: Array) -> Array:
        wide = _widen(x)
        normed = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        if self.scale is None:
            return normed.astype(self.dtype)
        return (normed * (self.offset + self.scale[...].astype(wide.dtype))).astype(self.dtype)


class MLP(nnx.Module):
    """down(act(up(x))), or, gated, down(act(gate(x)) * up(x)) (GLU variants, arXiv 2002.05202)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        act: str,
        options: Options,
        rngs: nnx.Rngs,
        *,
        gated: bool = False,
        bias: bool = False,
        std: float = 0.02,
    ) -> None:
        self.act = activation(act)
        self.gate = Linear(width, hidden, options, rngs, bias=bias, std=std) if gated else None
        self.up = Linear(width, hidden, options, rngs, bias=bias, std=std)
        self.down = Linear(hidden, width, options, rngs, bias=bias, std=std)

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        if self.gate is None:
            return self.down(recomputed(self.act)(self.up(x)))
        gated = recomputed(lambda gate, up: self.act(gate) * up)
        return self.down(gated(self.gate(x), self.up(x)))


class Attention(nnx.Module):
    """Multi-head attention: plain, grouped-query, causal or not, onto itself or onto an encoder.

    Args:
      width: Size of inputs and outputs.
      heads, kv_heads, head_dim: Query heads, key and value heads (a divisor), and the size of each.
      causal: Whether a position sees only itself and those before it.
      bias, out_bias: Whether q, k and v, and the output, have biases; `out_bias` follows `bias` where not given.
      scale: Factor of q·k; 1/√head_dim where not given.
      softcap: Squash scores to ±softcap through tanh (Gemma 2).
      qk_norm: Makes a norm of the given size for queries and keys.
      norm_heads: Whether that norm is over each head, or over all heads together (OLMo 2).
      gated: Whether the heads' outputs are multiplied by the sigmoid of a linear map of x.
      sinks: Whether every head has a score of its own that takes part in softmaxes and adds nothing (gpt-oss).
    """

    memory: Memory | Source  # only where a model writes; see `lensjax.models.memory`

    def __init__(
        self,
        width: int,
        heads: int,
        options: Options,
        rngs: nnx.Rngs,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = True,
        bias: bool = False,
        out_bias: bool | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        qk_norm: Callable[[int], nnx.Module] | None = None,
        norm_heads: bool = True,
        gated: bool = False,
        sinks: bool = False,
        std: float = 0.02,
    ) -> None:
        self.head_dim = width // heads if head_dim is None else head_dim
        self.causal, self.softcap, self.norm_heads = causal, softcap, norm_heads
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.implementation, self.mesh = options.attention, options.mesh
        inner, kv_inner = heads * self.head_dim, (heads if kv_heads is None else kv_heads) * self.head_dim
        self.q = Linear(width, inner, options, rngs, bias=bias, std=std)
        self.k = Linear(width, kv_inner, options, rngs, bias=bias, std=std)
        self.v = Linear(width, kv_inner, options, rngs, bias=bias, std=std)
        self.o = Linear(inner, width, options, rngs, bias=bias if out_bias is None else out_bias, std=std)
        self.gate = Linear(width, inner, options, rngs, bias=bias, std=std) if gated else None
        self.sinks = nnx.Param(jnp.zeros(heads, options.param_dtype)) if sinks else None
        self.q_norm = None if qk_norm is None else qk_norm(self.head_dim if norm_heads else inner)
        self.k_norm = None if qk_norm is None else qk_norm(self.head_dim if norm_heads else kv_inner)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        mask: Bool[Array, "#batch #heads #time #source"] | Sight | None = None,
        *,
        angles: Angles | None = None,
        bias: Float[Array, "#batch heads time source"] | None = None,
        source: Float[Array, "batch source width"] | Lent | None = None,
    ) -> Float[Array, "batch time width"]:
        """Attend where `mask` (and causality) allow, onto `source` where given, else onto x.

        `angles` rotate queries and keys; `bias` is added to the scaled scores.
        """
        memory, causal = source if isinstance(source, Lent) else getattr(self, "memory", None), self.causal
        writing = isinstance(memory, Memory | Source | Lent)
        q = self._heads(self.q(x), self.q_norm)
        if isinstance(memory, Source | Lent):
            k, v = memory.keys[...], memory.values[...]
        else:
            assert not isinstance(source, Lent)
            k, v = self.keys_and_values(x if source is None else source)
        if angles is not None:
            q, k = rotate(q, angles), k if isinstance(memory, Lent) else rotate(k, angles)
            q = q if len(angles) == 2 else q * angles[2][:, :, None, None].astype(q.dtype)
        if isinstance(memory, Memory | Lent):
            before = mask.dense(x.shape[1]) if isinstance(mask, Sight) else mask
            mask, causal = both(before, seen(memory, x.shape[1])), False
        if isinstance(memory, Memory):
            k, v = memory.extended(k, v)
        sinks = None if self.sinks is None else self.sinks[...]
        way = Way(self.implementation, self.scale, self.softcap, self.mesh)
        y = attend(way, q, k, v, mask, causal=causal, bias=bias, sinks=sinks, writing=writing)
        y = y.reshape(*x.shape[:-1], -1)
        return self.o(y if self.gate is None else y * jax.nn.sigmoid(self.gate(x)))

    def keys_and_values(self, x: Float[Array, "batch source width"]) -> tuple[Array, Array]:
        """Of every head, [batch, source, heads, dim], before anything rotates them."""
        return self._heads(self.k(x), self.k_norm), self._heads(self.v(x), None)

    def _heads(self, x: Float[Array, "batch time inner"], norm: Any) -> Float[Array, "batch time heads dim"]:
        if norm is not None and not self.norm_heads:
            x = norm(x)
        x = x.reshape(*x.shape[:-1], -1, self.head_dim)
        return norm(x) if norm is not None and self.norm_heads else x


class Stack(nnx.Module):
    """Equal blocks one after another: parameters have a leading axis of layers, and the forward pass is a scan.

    Compile time does not grow with depth. `options.remat` says what the backward pass recomputes.
    """

    def __init__(
        self, make_block: Callable[[nnx.Rngs], nnx.Module], depth: int, options: Options, rngs: nnx.Rngs
    ) -> None:
        self.options = options
        self.blocks = nnx.split_rngs(splits=depth)(nnx.vmap(make_block))(rngs)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        *shared: PyTree,
        kinds: Int[Array, " layers"] | None = None,
        each: PyTree = None,
    ) -> Float[Array, "batch time width"]:
        """Pass x through every block, called as block(x, *shared), or block(x, *shared, own) where there is `each`.

        Where layers are of several kinds, every array in `shared` has a leading axis of kinds, and layer i gets the
        entry numbered kinds[i]. Arrays in `each` have a leading axis of layers.
        """
        graphdef, state = nnx.split(self.blocks)

        def step(x: Array, layer: PyTree) -> tuple[Array, PyTree]:
            params, kind, extra = layer
            own = shared if kind is None else jax.tree.map(lambda choices: choices[kind], shared)
            x = constrain_activations(x, self.options.mesh)
            block = nnx.merge(graphdef, params)
            y = through(block, x, *own) if extra is None else through(block, x, *own, extra)
            return y, nnx.state(block, Slot)

        x, kept = jax.lax.scan(rematerialised(step, self.options.remat), x, (state, kinds, each))
        nnx.update(self.blocks, kept)  # see `lensjax.models.memory`
        return x


class LanguageModel(nnx.Module):
    """The end that all models share: a head, which is the embedding itself where `head` is None.

    A model says what its head reads; see `lensjax.models.vocabulary` for why the two are apart.

    Attributes:
      takes_segments: Whether the model keeps examples apart that lie in one row, as `segment_ids` numbers them.
    """

    takes_segments = False
    embed: Embedding
    head: Linear | None
    mesh: Mesh | None

    def __call__(self, batch: Mapping[str, Array]) -> Float[Array, "batch time vocabulary"]:
        """Logits of the next token at every position of what the decoder reads."""
        return self.logits(self.hidden(batch))

    def hidden(self, batch: Mapping[str, Array]) -> Float[Array, "batch time width"]:
        """What the head reads at every position."""
        raise NotImplementedError

    def logits(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time vocabulary"]:
        """Scores of every token, given the output of the last block or norm."""
        y = self.embed.logits(x) if self.head is None else self.head(x)
        return constrain_activations(y, self.mesh, "tensor")


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(jnp.promote_types(dtype, jnp.float32))


def _widen(x: Array) -> Array:
    return x.astype(_wide(x.dtype))
