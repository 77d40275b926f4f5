"""Low-rank adapters as parts of a pytree of parameters: taking them apart, joining and merging them."""

from collections.abc import Mapping

import jax
from jaxtyping import Array, Float

from lensjax.core.pytrees import Params, PyTree
from lensjax.models.linear import adapted, column_norms

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


def merge_adapters(params: Params, plain: Params, scales: Mapping[str, float], path: str = "") -> Params:
    """The parameters without adapters, whose kernels are what each kernel and its adapter compute together.

    Args:
      params: Parameters with adapters.
      plain: Shapes, types and shardings of those without.
      scales: By path of a linear map, the factor of lora_a @ lora_b.
      path: Of `params` within the model's.
    """
    merged: Params = {}
    for key, like in plain.items():
        if isinstance(like, dict):
            merged[key] = merge_adapters(params[key], like, scales, f"{path}/{key}" if path else str(key))
        elif key == "kernel" and "lora_a" in params:
            merge = jax.jit(_merged_kernel, static_argnames="scale", out_shardings=like.sharding)
            parts = {name: params[name] for name in ("kernel", *ADAPTERS) if name in params}
            merged[key] = merge(parts, scale=scales[path])
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


def _merged_kernel(parts: PyTree, scale: float) -> Float[Array, "*stacked inputs outputs"]:
    kernel = adapted(parts["kernel"], parts["lora_a"], parts["lora_b"], scale)
    if "lora_m" in parts:
        kernel = kernel * (parts["lora_m"] / column_norms(kernel))[..., None, :]
    return kernel.astype(parts["kernel"].dtype)
