"""Low-rank adapters as parts of a pytree of parameters: taking them apart, joining and merging them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lensjax.core.pytrees import Params, PyTree

ADAPTERS = ("lora_a", "lora_b")


def split_trainable(params: Params) -> tuple[Params, Params]:
    """Take the trainable parameters of a model from those that stay frozen.

    Args:
      params: Parameters, nested dicts.

    Returns:
      The adapters, and all other parameters; of a model without adapters, all parameters and {}. Both are nested dicts,
      from which `join` makes `params` again.
    """
    adapters, others = _split(params)
    return (adapters, others) if adapters else (others, adapters)


def join(trainable: Params, frozen: Params) -> Params:
    """Nested dicts with the leaves of both; the inverse of `split_trainable`."""
    joined = dict(frozen)
    for key, value in trainable.items():
        joined[key] = join(value, frozen[key]) if isinstance(value, dict) and key in frozen else value
    return joined


def merge_adapters(params: Params, shardings: PyTree, scale: float) -> Params:
    """The parameters without adapters, whose kernels are kernel + scale · lora_a @ lora_b.

    Args:
      params: Parameters with adapters.
      shardings: How the parameters without adapters lie on devices.
      scale: alpha / rank.
    """
    merged = {
        key: merge_adapters(value, shardings[key], scale) if isinstance(value, dict) else value
        for key, value in params.items()
        if key not in ADAPTERS
    }
    if "lora_a" in params:
        merge = jax.jit(_merged_kernel, out_shardings=shardings["kernel"])
        merged["kernel"] = merge(params["kernel"], params["lora_a"], params["lora_b"], scale)
    return merged


def _split(params: Params) -> tuple[Params, Params]:
    """Adapters and other parameters, without branches that have none."""
    adapters: Params = {}
    others: Params = {}
    for key, value in params.items():
        if not isinstance(value, dict):
            (adapters if key in ADAPTERS else others)[key] = value
            continue
        for side, branch in zip((adapters, others), _split(value), strict=True):
            if branch:
                side[key] = branch
    return adapters, others


def _merged_kernel(
    kernel: Float[Array, "*stacked inputs outputs"],
    a: Float[Array, "*stacked inputs rank"],
    b: Float[Array, "*stacked rank outputs"],
    scale: float,
) -> Float[Array, "*stacked inputs outputs"]:
    wide = jnp.promote_types(jnp.promote_types(kernel.dtype, a.dtype), jnp.float32)
    product = jnp.matmul(a.astype(wide), b.astype(wide), precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(wide) + scale * product).astype(kernel.dtype)
