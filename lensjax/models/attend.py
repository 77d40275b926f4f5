"""Which way attention is computed: by JAX, as plain products, or by the fused kernels of GPUs and TPUs."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from lensjax.models.masks import Sight, both, window_mask
from lensjax.models.options import AttentionImplementation
from lensjax.models.remat import costly
from lensjax.models.sharding import platform_of

LEAST = 128  # tokens of a row, below which the TPU's kernel computes more padding than it saves


@dataclass(frozen=True)
class Way:
    """How an attention computes.

    Attributes:
      implementation: See `lensjax.models.Options`.
      scale: Factor of q · k.
      softcap: Squash scores to ±softcap through tanh.
      mesh: The devices.
    """

    implementation: AttentionImplementation
    scale: float
    softcap: float | None
    mesh: Mesh | None


def attend(
    way: Way,
    q: Float[Array, "batch time heads dim"],
    k: Float[Array, "batch source kv_heads dim"],
    v: Float[Array, "batch source kv_heads dim"],
    mask: Bool[Array, "#batch #heads #time #source"] | Sight | None,
    *,
    causal: bool,
    bias: Float[Array, "#batch #heads time source"] | None = None,
    sinks: Float[Array, " heads"] | None = None,
    writing: bool = False,
) -> Float[Array, "batch time heads dim"]:
    """softmax(scale · q·k + bias) v, where mask and causality allow.

    What cannot be fused is computed otherwise, and a warning says why, once, where that costs time.

    Args:
      way: How it is computed.
      q, k, v: Queries, and keys and values.
      mask: Who may attend to whom.
      causal: Whether a position sees only itself and those before it.
      bias: Added to scores.
      sinks: A score of every head that takes part in softmaxes and adds nothing.
      writing: Whether a text is written, token by token.
    """
    if way.implementation == "splash" and not writing and min(q.shape[1], k.shape[1]) >= LEAST:
        if bias is None and (mask is None or isinstance(mask, Sight)):
            from lensjax.models.fused import fused_attention  # Pallas takes a second to import

            seen = Sight() if mask is None else mask
            return fused_attention(
                q, k, v, seen, causal=causal, scale=way.scale, softcap=way.softcap, sinks=sinks, mesh=way.mesh
            )
        _warn_of_tpu("add biases to scores" if bias is not None else "take the masks of models with other layers")
    _warn_of_gpu(way, q.dtype, sinks)
    mask = mask.dense(q.shape[1], k.shape[1]) if isinstance(mask, Sight) else mask
    if mask is not None and way.implementation == "cudnn":  # cuDNN needs a row of the mask for every query
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], q.shape[1], k.shape[1]))
    plain = way.softcap is None and sinks is None
    if plain and (q.dtype in (jnp.float32, jnp.bfloat16) or way.implementation == "cudnn"):
        by: Literal["cudnn", "xla"] = "cudnn" if way.implementation == "cudnn" else "xla"
        y = jax.nn.dot_product_attention(q, k, v, bias, mask, scale=way.scale, is_causal=causal, implementation=by)
        return y if way.implementation == "cudnn" else costly(y)  # the fused kernel's is kept already
    mask = both(mask, window_mask(q.shape[1], q.shape[1]) if causal else None)
    return costly(_by_products(q, k, v, bias, mask, way.scale, way.softcap, sinks))


def _warn_of_tpu(what: str) -> None:
    warnings.warn(f"Attention runs unfused on this TPU: the fused kernel cannot {what}.", stacklevel=3)


def _warn_of_gpu(way: Way, dtype: np.dtype[Any], sinks: Array | None) -> None:
    """Say that attention on a GPU could be faster; in float32, which curvature needs, it could not."""
    if platform_of(way.mesh) != "gpu" or dtype.itemsize != 2:
        return
    if way.softcap is not None or sinks is not None:
        what = "cap scores" if sinks is None else "have sinks"
        warnings.warn(f"Attention runs unfused on this GPU: the fused kernel cannot {what}.", stacklevel=3)
    elif way.implementation != "cudnn":
        warnings.warn("Attention runs unfused on this GPU; choose attention cudnn.", stacklevel=3)


def _by_products(
    q: Float[Array, "batch time heads dim"],
    k: Float[Array, "batch source kv_heads dim"],
    v: Float[Array, "batch source kv_heads dim"],
    bias: Float[Array, "#batch #heads #time #source"] | None,
    mask: Bool[Array, "#batch #heads #time #source"] | None,
    scale: float,
    softcap: float | None,
    sinks: Float[Array, " heads"] | None,
) -> Float[Array, "batch time heads dim"]:
    """Attention where `jax.nn.dot_product_attention` cannot compute it.

    It cannot cap scores by softcap·tanh(score/softcap), have sinks, stay in float64, or take float16 on CPUs and TPUs.
    """
    batch, time, heads, dim = q.shape
    kv_heads = k.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q = q.reshape(batch, time, kv_heads, heads // kv_heads, dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=wide) * scale
    scores = scores.reshape(batch, heads, time, -1)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    if mask is not None:
        scores = jnp.where(mask, scores, -0.7 * jnp.finfo(scores.dtype).max)
    if sinks is not None:
        beside = jnp.broadcast_to(sinks.astype(scores.dtype)[:, None, None], (*scores.shape[:-1], 1))
        scores = jnp.concatenate([scores, beside], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)[..., : k.shape[1]]
    weights = weights.reshape(batch, kv_heads, -1, time, k.shape[1])
    return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(batch, time, heads, dim)
