"""Models without weights, and TPUs that are not attached: what compiling needs to say what a program takes."""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from lensjax.core.errors import InputError, one_line, shorten
from lensjax.models.lora import add_lora, join, split_trainable
from lensjax.models.model import Model, Params, abstract, placement
from lensjax.models.options import Options

# Published memory of one of JAX's devices, in GB of 10^9 bytes; of 7x they are the two halves of a chip.
CHIP_GB = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32, "tpu7x": 96}


def topology_devices(name: str) -> list[Any]:
    """The devices of a TPU topology, such as "v5e:16x16", that need not be attached; programs are compiled for them.

    Raises:
      InputError: there is no such topology, or its compiler is not installed.
    """
    chip, _, shape = name.partition(":")
    if chip not in CHIP_GB or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise InputError(
            f"'{shorten(name)}' is no TPU topology; write chip and shape as in v5e:16x16, the chip one of "
            f"{', '.join(CHIP_GB)}."
        )
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("Compiling for a TPU that is not attached needs its compiler; pip install libtpu.")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not look for a TPU's metadata server
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # whatever the compiler says of shapes that are not made
        raise InputError(
            f"The TPU compiler does not know the topology {shorten(name)} ({one_line(error, 200)}); take one that is "
            "offered, such as v5e:16x16."
        ) from error


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
