"""Making models: from a checkpoint, or at random from a configuration."""

import copy
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from numpy.typing import DTypeLike

from lensjax.core.pytrees import Params
from lensjax.models.family import family_of
from lensjax.models.hub import find_folder, read_config
from lensjax.models.model import Model, abstract_model
from lensjax.models.options import AttentionImplementation, Remat, make_options
from lensjax.models.safetensors_files import TensorFiles
from lensjax.models.weights import Stored, check_names, read_params


def load(
    source: str | Path,
    *,
    dtype: DTypeLike = "float32",
    param_dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    remat: Remat = "cheap",
    attention: AttentionImplementation = "xla",
    revision: str | None = None,
) -> Model:
    """Load a model from a folder or the Hugging Face hub.

    Args:
      source: Folder with config.json and safetensors, or a hub id such as "openai-community/gpt2"; a hub id is looked
        up in the hub's cache first, and fetched where it is not there.
      dtype: Type that the model computes in, whatever type is stored.
      param_dtype: Type that parameters are held in; `dtype` where not given.
      mesh: Devices to spread the parameters over (see `make_mesh`); each reads its own slices only.
      remat: What the backward pass recomputes: "none", "cheap", "dots" or "full"; see `Options`.
      attention: "xla", or "cudnn" for faster training on NVIDIA GPUs.
      revision: Branch, tag or commit on the hub.

    Returns:
      The model, whose parameters lie on their devices.

    Raises:
      InputError: there is no such model, it is not one that LensJAX has, its weights are not those that its
        configuration describes, or the mesh does not divide it.
    """
    options = make_options(dtype, param_dtype, remat, attention, mesh)
    folder = find_folder(source, revision)
    config = read_config(folder)
    files = TensorFiles(folder)
    model = abstract_model(_as_stored(config, files), options, folder)
    family = model.family
    wanted = check_names(
        family.tensors(model.config, model.params),
        files,
        family.prefix,
        family.ignored,
        family.copies,
        family.zeros(model.config),
    )
    leaves = read_params(wanted, files, options.param_dtype, jax.tree.leaves(model.shardings))
    return model.with_params(jax.tree.unflatten(jax.tree.structure(model.params), leaves))


def from_config(
    config: Any,
    *,
    dtype: DTypeLike = "float32",
    param_dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    remat: Remat = "cheap",
    attention: AttentionImplementation = "xla",
    seed: int = 0,
) -> Model:
    """Make a model with random parameters from a Hugging Face configuration.

    Args:
      config: Such as `transformers.GPT2Config()`.
      dtype, param_dtype, mesh, remat, attention: As for `load`; each parameter is made on the devices that hold it.
      seed: On which alone the parameters depend, not on the mesh.

    Returns:
      The model.

    Raises:
      InputError: the configuration is not of a model that LensJAX has, or the mesh does not divide it.
    """
    model = abstract_model(config, make_options(dtype, param_dtype, remat, attention, mesh))

    def make() -> Params:
        return nnx.to_pure_dict(nnx.split(model.family.module(config, model.options, nnx.Rngs(seed)))[1])

    return model.with_params(jax.jit(make, out_shardings=model.shardings)())


def _as_stored(config: Any, files: TensorFiles) -> Any:
    """The configuration, untied if the checkpoint's head differs from the embedding, which T5's configurations hide."""
    family = family_of(config.model_type)
    names = family.parameter_names(config)
    entries = (names["embed"], names["head"])
    embed, head = (f"{entry.name if isinstance(entry, Stored) else entry}.weight" for entry in entries)
    if not config.tie_word_embeddings or head in family.copies:
        return config
    if not {embed, head} <= files.shapes.keys() or files.same(embed, head):
        return config
    untied = copy.copy(config)
    untied.tie_word_embeddings = False
    return untied
