"""Low-rank adapters (LoRA, arXiv 2106.09685): a few new parameters are trained, and those of the model stay frozen.

model = add_lora(model, rank=8)
trainable, frozen = split_trainable(model.params)
gradient = jax.grad(lambda trainable: model.loss(join(trainable, frozen), batch))(trainable)
merge_lora(model.with_params(join(trainable, frozen)))  # as `model.save` does
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from lensjax.core.errors import InputError, shorten
from lensjax.core.pytrees import Params, PyTree
from lensjax.models.adapters import join, merge_adapters, split_trainable
from lensjax.models.layers import Linear
from lensjax.models.model import Model, abstract_model, placed
from lensjax.models.options import LoRA

__all__ = ["TARGETS", "add_lora", "join", "merge_lora", "split_trainable"]

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


def add_lora(
    model: Model, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] | None = None, seed: int = 0
) -> Model:
    """The model with adapters lora_a [inputs, rank] and lora_b [rank, outputs] beside kernels [inputs, outputs].

    A linear map becomes x @ kernel + alpha / rank · (x @ lora_a) @ lora_b. As lora_b starts at zero, the model first
    computes what it did before. Each lora_a is uniform within ±1/√inputs, depends on `seed` and not on the mesh,
    and is made on the devices that hold it. Layers are stacked as those of the kernels are, and every expert of a
    Switch Transformer has adapters of its own. Adapters are held in float32 or wider, also where the kernels are in a
    half precision.

    Args:
      model: A model without adapters, whose parameters are shared, not copied.
      rank: Size between the two factors.
      alpha: The adapters' output is multiplied by alpha / rank.
      targets: Names of the linear maps within blocks that get adapters: q, k, v, o, gate, up and down; all that the
        model has where not given. Embeddings, routers and the head get none.
      seed: Of the random start.

    Returns:
      The model with adapters; an abstract model (see `abstract_model`) gets abstract adapters.

    Raises:
      InputError: the model has adapters already, or no linear map of a name in `targets`, or rank or alpha is out of
        range.
    """
    if model.options.lora is not None:
        raise InputError("The model has LoRA adapters already; merge them with merge_lora before adding others.")
    module = nnx.merge(model.graphdef, model.without_params().params)
    linears = dict(_linears(module))
    lora = _checked(linears, rank, alpha, targets)
    dtype = jnp.promote_types(model.options.param_dtype, jnp.float32)
    for path, linear in linears.items():
        if path[-1] in lora.targets:
            *stacked, inputs, outputs = linear.kernel.shape
            linear.lora_a = _abstract_param((*stacked, inputs, lora.rank), dtype)
            linear.lora_b = _abstract_param((*stacked, lora.rank, outputs), dtype)
            linear.lora_scale = lora.scale
    graphdef, state = nnx.split(module)
    options = replace(model.options, lora=lora)
    shapes, _ = split_trainable(nnx.to_pure_dict(state))
    adapters = placed(shapes, model.family, model.config, options)
    if not model.is_abstract:
        adapters = _initial(adapters, seed)
    return replace(model, options=options, params=join(adapters, model.params), graphdef=graphdef)


def merge_lora(model: Model) -> Model:
    """The model without adapters whose kernels are kernel + alpha / rank · lora_a @ lora_b.

    Kernel and product are summed in float32 or wider, then rounded to the type of the kernel, and lie on devices as
    kernels do. A model without adapters is returned unchanged.
    """
    if model.options.lora is None:
        return model
    plain = abstract_model(model.config, replace(model.options, lora=None), model.folder)
    return plain.with_params(merge_adapters(model.params, plain.shardings, model.options.lora.scale))


def _linears(module: nnx.Module) -> Iterator[tuple[tuple[Any, ...], Linear]]:
    """The linear maps that may have adapters, by path."""
    for path, node in nnx.iter_graph(module):
        if isinstance(node, Linear) and path[-1] in TARGETS:
            yield path, node


def _checked(linears: dict[tuple[Any, ...], Linear], rank: int, alpha: float, targets: Sequence[str] | None) -> LoRA:
    """The settings, if they fit the linear maps of those paths."""
    names = {path[-1] for path in linears}
    known = [name for name in TARGETS if name in names]
    wanted = known if targets is None else targets
    if isinstance(wanted, str) or not wanted:
        raise InputError(f"targets is '{shorten(wanted)}'; give a list of names out of {', '.join(known)}.")
    for name in wanted:
        if name not in known:
            raise InputError(f"targets has '{shorten(name)}'; this model's linear maps are {', '.join(known)}.")
    chosen = tuple(name for name in known if name in wanted)
    largest = min(min(linear.kernel.shape[-2:]) for path, linear in linears.items() if path[-1] in chosen)
    if not isinstance(rank, Integral) or isinstance(rank, bool) or not 1 <= rank <= largest:
        raise InputError(
            f"rank is {shorten(rank)}; give a whole number from 1 to {largest}, the smallest side of these kernels."
        )
    if not isinstance(alpha, Real) or isinstance(alpha, bool) or not 0 < alpha < math.inf:
        raise InputError(f"alpha is {shorten(alpha)}; give a positive number, such as twice the rank.")
    return LoRA(int(rank), float(alpha), chosen)


def _abstract_param(shape: tuple[int, ...], dtype: np.dtype[Any]) -> PyTree:
    values: PyTree = jax.ShapeDtypeStruct(shape, dtype)
    return nnx.data(nnx.Param(values))


def _initial(shapes: Params, seed: int) -> Params:
    """Adapters before training, each made on its devices."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)

    def make(index: int, name: str, leaf: jax.ShapeDtypeStruct) -> Array:
        if name == "lora_b":
            return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
        draw = jax.jit(_uniform, static_argnames=("shape", "dtype"), out_shardings=leaf.sharding)
        return draw(jax.random.fold_in(jax.random.key(seed), index), shape=leaf.shape, dtype=leaf.dtype)

    return jax.tree.unflatten(structure, [make(index, path[-1].key, leaf) for index, (path, leaf) in enumerate(leaves)])


def _uniform(key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)
