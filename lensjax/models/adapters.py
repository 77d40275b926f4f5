"""Low-rank adapters as parts of a pytree of parameters: taking them apart, joining and merging them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lensjax.core.pytrees import Params
from lensjax.models.linear import adapted, column_norms
from lensjax.models.options import Options, Quantisation
from lensjax.models.quantised import kernel_of

ADAPTERS = ("lora_a", "lora_b", "lora_m")


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


def at(params: Params, path: str) -> Params:
    """The part of nested dicts at a path, keys with slashes between."""
    for part in path.split("/"):
        params = next(value for key, value in params.items() if str(key) == part)
    return params


def merge_adapters(params: Params, plain: Params, options: Options, path: str = "") -> Params:
    """The parameters without adapters, whose kernels are what each kernel and its adapter compute together.

    Args:
      params: Parameters with adapters, or quantised kernels.
      plain: Shapes, types and shardings of those without.
      options: Of the model with them.
      path: Of `params` within the model's.
    """
    scales = {} if options.lora is None else options.lora.scales
    merged: Params = {}
    for key, like in plain.items():
        if isinstance(like, dict):
            merged[key] = merge_adapters(params[key], like, options, f"{path}/{key}" if path else str(key))
        elif key == "kernel" and not params.keys().isdisjoint(("kernel_scales", *ADAPTERS)):
            how = {"kind": options.quantise, "inputs": like.shape[-2], "dtype": like.dtype, "scale": scales.get(path)}
            merged[key] = jax.jit(partial(_merged_kernel, **how), out_shardings=like.sharding)(params)
        else:
            merged[key] = params[key]
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
    part: Params, kind: Quantisation | None, inputs: int, dtype: np.dtype[Any], scale: float | None
) -> Float[Array, "*stacked inputs outputs"]:
    if scale is None:
        return kernel_of(part, kind, inputs, dtype)
    wide = jnp.promote_types(part["lora_a"].dtype, jnp.float32)
    kernel = adapted(kernel_of(part, kind, inputs, wide), part["lora_a"], part["lora_b"], scale)
    if "lora_m" in part:
        kernel = kernel * (part["lora_m"] / column_norms(kernel))[..., None, :]
    return kernel.astype(dtype)
