"""Models without weights: what compiling needs to say what a program takes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from lensjax.models.lora import add_lora, join, split_trainable
from lensjax.models.model import Model, Params, abstract, placement
from lensjax.models.options import Options


def abstract_model(config: Any, options: Options, folder: Path | None = None) -> Model:
    """A model with shapes and shardings in place of parameters, for devices that may not be there.

    Args:
      config: Hugging Face configuration.
      folder: Where its tokenizer lies.

    Raises:
      InputError: see `lensjax.models.model.abstract` and `placement`.
    """
    family, graphdef, shapes = abstract(config, options)
    return Model(family, config, options, _placed(shapes, placement(shapes, family, config, options)), graphdef, folder)


def add_abstract_lora(model: Model, rank: int, alpha: float, targets: Sequence[str] | None) -> Model:
    """An abstract model with abstract adapters; see `lensjax.models.lora.add_lora`."""
    made: list[Model] = []  # a trace gives back arrays alone

    def adapters(params: Params) -> Params:
        made.append(add_lora(model.with_params(params), rank, alpha, targets))
        return split_trainable(made[0].params)[0]

    shapes = jax.eval_shape(adapters, model.params)
    adapted = made[0]
    placed = _placed(shapes, placement(shapes, model.family, model.config, adapted.options))
    return adapted.with_params(join(placed, model.params))


def device_bytes(tree: Any) -> int:
    """Bytes that each device holds of arrays, which may be shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _placed(shapes: Params, shardings: Any) -> Params:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
