"""A table of a model's parameters, how they lie on a mesh, and their memory, from its configuration alone."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from numpy.typing import DTypeLike
from rich import filesize

from lensjax.core.pytrees import path_name
from lensjax.core.version import __version__
from lensjax.models.family import of_all_layers
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options
from lensjax.models.sharding import abstract_mesh

LARGE = 2**20  # values; a parameter of so many had better be split over devices

_FACTS = (
    ("layers", "num_hidden_layers"),
    ("decoder_layers", "num_decoder_layers"),
    ("decoder_layers", "decoder_layers"),
    ("width", "hidden_size"),
    ("heads", "num_attention_heads"),
    ("kv_heads", "num_key_value_heads"),
    ("vocabulary", "vocab_size"),
    ("context", "max_position_embeddings"),
)


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
      path: Its path, keys with slashes between.
      shape: Its shape; stacked layers and experts are leading axes.
      spec: The mesh axis, or axes, that each dimension is split over.
      shard: Shape of the slice that one device holds.
      shard_bytes: Size of that slice.
      whole: Whether every device holds all of it, although it has at least `LARGE` values and the mesh is to split
        parameters.
    """

    path: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    shard: tuple[int, ...]
    shard_bytes: int
    whole: bool


@dataclass(frozen=True)
class ParameterTable:
    """The parameters of a model on a mesh.

    Attributes:
      model_type: Its family's name in Hugging Face's config.json.
      facts: Layers, width, heads and the like, as far as the configuration names them.
      dtype: Type that the parameters are held in.
      mesh: Size of every mesh axis.
      rows: The parameters, in the order of the pytree.
    """

    model_type: str
    facts: dict[str, int]
    dtype: np.dtype[np.generic]
    mesh: dict[str, int]
    rows: tuple[Parameter, ...]

    @property
    def parameters(self) -> int:
        """Number of values."""
        return sum(math.prod(row.shape) for row in self.rows)

    @property
    def device_bytes(self) -> int:
        """Bytes of parameters on each device."""
        return sum(row.shard_bytes for row in self.rows)

    @property
    def warnings(self) -> list[str]:
        """A sentence for every large parameter that lies whole on every device."""
        return [
            f"{row.path} ({filesize.decimal(row.shard_bytes)}) is not split by this mesh: every device holds all of it."
            for row in self.rows
            if row.whole
        ]

    def to_json(self) -> str:
        """The whole table as JSON text, for other programs."""
        rows = [
            {
                "path": row.path,
                "shape": row.shape,
                "spec": list(row.spec),
                "shard_shape": row.shard,
                "bytes_per_device": row.shard_bytes,
                "whole": row.whole,
            }
            for row in self.rows
        ]
        content = {
            "lensjax": __version__,
            "model_type": self.model_type,
            "facts": self.facts,
            "dtype": self.dtype.name,
            "mesh": self.mesh,
            "parameters": self.parameters,
            "bytes": self.parameters * self.dtype.itemsize,
            "bytes_per_device": self.device_bytes,
            "warnings": self.warnings,
            "table": rows,
        }
        return json.dumps(content, indent=2) + "\n"


def parameter_table(config: Any, mesh: Mapping[str, int], dtype: DTypeLike = "float32") -> ParameterTable:
    """Tabulate the parameters that a Hugging Face configuration describes; none of them is made.

    Args:
      config: Hugging Face configuration.
      mesh: Size of the axes `data`, `fsdp` and `tensor`; no such devices need be there.
      dtype: Type that the parameters are held in.

    Returns:
      The table, in the order of the pytree.

    Raises:
      InputError: the configuration is not of a model that LensJAX has, or the tensor axis does not divide its heads.
    """
    model = abstract_model(config, make_options(dtype, mesh=abstract_mesh(mesh)))
    splits = mesh["fsdp"] * mesh["tensor"] > 1
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
        shard = leaf.sharding.shard_shape(leaf.shape)
        whole = splits and shard == leaf.shape and leaf.size >= LARGE
        size = math.prod(shard) * leaf.dtype.itemsize
        rows.append(Parameter(path_name(path), leaf.shape, leaf.sharding.spec, shard, size, whole))
    facts = {name: value for name, field in _FACTS if isinstance(value := of_all_layers(config, field), int)}
    return ParameterTable(model.family.model_type, facts, model.options.param_dtype, dict(mesh), tuple(rows))
