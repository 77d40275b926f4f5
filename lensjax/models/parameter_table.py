"""What a model's parameters are, how they lie on a mesh, and the memory they take: from its configuration alone."""

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

from lensjax import __version__
from lensjax.core.pytrees import path_name
from lensjax.models.model import abstract, check_tensor_axis
from lensjax.models.options import make_options
from lensjax.models.sharding import partition_specs, shard_shape

LARGE = 2**20  # values from which a parameter had better not lie whole on every device

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
      shard: Shape of what one device holds.
      shard_bytes: Its size.
      whole: Whether every device holds all of it, though it has at least `LARGE` values and the mesh could split it.
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
        """Everything a program might want of the table."""
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
    """The parameters that a Hugging Face configuration describes, none of which is made.

    Args:
      config: Hugging Face configuration.
      mesh: Size of the axes `data`, `fsdp` and `tensor`; no such devices need be there.
      dtype: Type that the parameters are held in.

    Raises:
      InputError: the configuration is not of a model that LensJAX has, or the tensor axis does not divide its heads.
    """
    options = make_options(dtype)
    family, _, shapes = abstract(config, options)
    check_tensor_axis(config, mesh["tensor"])
    specs = jax.tree.leaves(partition_specs(shapes, family.rules, mesh), is_leaf=lambda x: isinstance(x, PartitionSpec))
    splits = mesh["fsdp"] * mesh["tensor"] > 1
    rows = []
    for (path, leaf), spec in zip(jax.tree_util.tree_flatten_with_path(shapes)[0], specs, strict=True):
        shard = shard_shape(leaf.shape, spec, mesh)
        whole = splits and shard == leaf.shape and leaf.size >= LARGE
        size = math.prod(shard) * leaf.dtype.itemsize
        rows.append(Parameter(path_name(path), leaf.shape, spec, shard, size, whole))
    facts = {name: value for name, field in _FACTS if isinstance(value := getattr(config, field, None), int)}
    return ParameterTable(family.model_type, facts, options.param_dtype, dict(mesh), tuple(rows))
