"""Low-rank adapters (LoRA, arXiv 2106.09685): a few new parameters are trained, and those of the model stay frozen.

model = add_lora(model, rank=8)
trainable, frozen = split_trainable(model.params)
gradient = jax.grad(lambda trainable: model.loss(join(trainable, frozen), batch))(trainable)
model.with_params(join(trainable, frozen)).merged()  # as `model.save` does
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from lensjax.core.errors import InputError, shorten
from lensjax.core.pytrees import Params, path_name
from lensjax.core.specs import pattern as checked_pattern
from lensjax.models.adapters import at, join, split_trainable
from lensjax.models.linear import abstract_param, adaptable, column_norms
from lensjax.models.model import Model, placed
from lensjax.models.options import Adapter, LoRA
from lensjax.models.quantised import kernel_of

__all__ = ["TARGETS", "add_lora", "join", "linear_maps", "split_trainable", "with_constant_norms"]

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


def add_lora(
    model: Model,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] | None = None,
    seed: int = 0,
    *,
    ranks: Mapping[str, int] | None = None,
    alphas: Mapping[str, float] | None = None,
    rslora: bool = False,
    dora: bool = False,
) -> Model:
    """The model with adapters lora_a [inputs, rank] and lora_b [rank, outputs] beside kernels [inputs, outputs].

    A linear map becomes x @ kernel + alpha / rank · (x @ lora_a) @ lora_b. As lora_b starts at zero, the model first
    computes what it did before. Each lora_a is uniform within ±1/√inputs, depends on `seed` and not on the mesh,
    and is made on the devices that hold it. Layers are stacked as those of the kernels are, and every expert has
    adapters of its own. Adapters are held in float32 or wider, also where the kernels are in a half precision.

    A linear map is meant by its name, such as q, or by a regular expression that its path, such as
    layers/blocks/attention/q, ends with: attention/(q|v), mlp/.*, encoder/.*.

    Args:
      model: A model without adapters, whose parameters are shared, not copied.
      rank: Size between the two factors.
      alpha: The adapters' output is multiplied by alpha / rank.
      targets: The linear maps that get adapters; where not given, those named q, k, v, o, gate, up and down.
        Embeddings, routers and the head get none.
      seed: Of the random start.
      ranks, alphas: Other ranks and alphas, by name or regular expression.
      rslora: Multiply by alpha / √rank instead (rsLoRA, arXiv 2312.03732).
      dora: Train the norms of kernels' columns, lora_m [outputs], apart from their direction, which has the adapters
        (DoRA, arXiv 2402.09353). Here derivatives are those of the function itself; in fine-tuning the norms that
        lora_m replaces are constants, as in section 4.3 there (`with_constant_norms`).

    Returns:
      The model with adapters; an abstract model (see `abstract_model`) gets abstract adapters.

    Raises:
      InputError: the model has adapters already, or a target is none of its linear maps, which the message names, or a
        rank or alpha is out of range.
    """
    if model.options.lora is not None:
        raise InputError("The model has LoRA adapters already; merge them with its merged() before adding others.")
    shapes = linear_maps(model)
    every = dict.fromkeys(path for path in shapes if _name(path) in TARGETS)
    chosen = [*every] if targets is None else _selected("targets", targets, [*shapes])
    own_rank, own_alpha = _by_path("ranks", ranks, chosen), _by_path("alphas", alphas, chosen)
    adapters = []
    for path in chosen:
        size = _checked_rank(own_rank.get(path, rank), min(shapes[path][-2:]), path if path in own_rank else "")
        adapters.append(Adapter(path, size, _checked_alpha(own_alpha.get(path, alpha))))
    return with_adapters(model, LoRA(tuple(adapters), rslora, dora), seed)


def with_adapters(model: Model, lora: LoRA, seed: int = 0) -> Model:
    """The model with those adapters as they are before training; see `add_lora`."""
    module = nnx.merge(model.graphdef, model.without_params().params)
    linears = dict(adaptable(module))
    dtype = jnp.promote_types(model.options.param_dtype, jnp.float32)
    for adapter in lora.adapters:
        linear = linears[adapter.path]
        *stacked, inputs, outputs = linear.shape
        linear.lora_a = abstract_param((*stacked, inputs, adapter.rank), dtype)
        linear.lora_b = abstract_param((*stacked, adapter.rank, outputs), dtype)
        linear.lora_m = abstract_param((*stacked, outputs), dtype) if lora.dora else None
        linear.lora_scale = lora.scales[adapter.path]
    graphdef, state = nnx.split(module)
    options = replace(model.options, lora=lora)
    shapes, _ = split_trainable(nnx.to_pure_dict(state))
    adapters = placed(shapes, model.family, model.config, options)
    if not model.is_abstract:
        adapters = _initial(adapters, model, seed)
    return replace(model, options=options, params=join(adapters, model.params), graphdef=graphdef)


def with_constant_norms(model: Model) -> Model:
    """The model whose derivatives take the norms that DoRA divides by for constants; it computes the same."""
    if model.options.lora is None or not model.options.lora.dora:
        return model
    module = nnx.merge(model.graphdef, model.without_params().params)
    for _, linear in adaptable(module):
        linear.constant_norms = True
    return replace(model, graphdef=nnx.split(module)[0])


def linear_maps(model: Model) -> dict[str, tuple[int, ...]]:
    """The shapes of the kernels, [*stacked, inputs, outputs], that may have adapters, by the map's path."""
    module = nnx.merge(model.graphdef, model.without_params().params)
    return {path: linear.shape for path, linear in adaptable(module)}


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _selected(field: str, patterns: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The paths that some patterns mean, in the order of `paths`."""
    if isinstance(patterns, str) or not patterns:
        raise InputError(f"{field} is '{shorten(patterns)}'; give a list of names out of {_names(paths)}.")
    found = {path for pattern in patterns for path in _some(field, pattern, paths)}
    return [path for path in paths if path in found]


def _some(field: str, pattern: str, paths: Sequence[str]) -> list[str]:
    """The paths that a pattern means, which are not none."""
    try:
        end = re.compile(rf"(.*/)?({checked_pattern(pattern)})")
    except ValueError as error:
        raise InputError(f"{field} has '{shorten(pattern)}': {error}.") from error
    matching = [path for path in paths if end.fullmatch(path)]
    if not matching:
        raise InputError(
            f"{field} has '{shorten(pattern)}', which is none of the linear maps that may have it: {_names(paths)}; "
            f"give one of these names, or a regular expression on paths such as {shorten(paths[0])}."
        )
    return matching


def _by_path(field: str, given: Mapping[str, Any] | None, paths: Sequence[str]) -> dict[str, Any]:
    """The values that patterns give to paths."""
    values: dict[str, Any] = {}
    by: dict[str, str] = {}
    for pattern, value in (given or {}).items():
        for path in _some(field, pattern, paths):
            if path in by:
                raise InputError(
                    f"{field} has '{shorten(by[path])}' and '{shorten(pattern)}', which both mean {shorten(path)}; "
                    "make them exclude each other."
                )
            by[path], values[path] = pattern, value
    return values


def _names(paths: Sequence[str]) -> str:
    known = dict.fromkeys(map(_name, paths))
    return ", ".join(sorted(known, key=lambda name: (TARGETS.index(name) if name in TARGETS else len(TARGETS), name)))


def _checked_rank(rank: int, largest: int, path: str) -> int:
    if not isinstance(rank, Integral) or isinstance(rank, bool) or not 1 <= rank <= largest:
        of = f" of {shorten(path)}" if path else ""
        raise InputError(
            f"rank{of} is {shorten(rank)}; give a whole number from 1 to {largest}, the smallest side of that kernel."
        )
    return int(rank)


def _checked_alpha(alpha: float) -> float:
    if not isinstance(alpha, Real) or isinstance(alpha, bool) or not 0 < alpha < math.inf:
        raise InputError(f"alpha is {shorten(alpha)}; give a positive number, such as twice the rank.")
    return float(alpha)


def _initial(shapes: Params, model: Model, seed: int) -> Params:
    """Adapters before training, each made on its devices."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
    kernels = linear_maps(model)

    def make(index: int, path: Sequence[Any], leaf: jax.ShapeDtypeStruct) -> Array:
        above, _, name = path_name(path).rpartition("/")
        if name == "lora_b":
            return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
        if name == "lora_m":
            how = {"kind": model.options.quantise, "inputs": kernels[above][-2], "dtype": leaf.dtype}
            return jax.jit(partial(_norms, **how), out_shardings=leaf.sharding)(at(model.params, above))
        draw = jax.jit(_uniform, static_argnames=("shape", "dtype"), out_shardings=leaf.sharding)
        return draw(jax.random.fold_in(jax.random.key(seed), index), shape=leaf.shape, dtype=leaf.dtype)

    return jax.tree.unflatten(structure, [make(index, path, leaf) for index, (path, leaf) in enumerate(leaves)])


def _norms(part: Params, **how: Any) -> Array:
    return column_norms(kernel_of(part, **how))


def _uniform(key: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)
