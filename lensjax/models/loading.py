"""Making models: from a checkpoint, or at random from a configuration."""

import copy
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array
from numpy.typing import DTypeLike

from lensjax.core.errors import InputError
from lensjax.core.pytrees import Params
from lensjax.models.family import Family, ends, family_of
from lensjax.models.gguf.header import is_gguf
from lensjax.models.gguf.tensors import GGUFTensors, names_in_files
from lensjax.models.hub import find_folder, read_config
from lensjax.models.model import Model, abstract_model
from lensjax.models.options import AttentionImplementation, Quantisation, Remat, make_options
from lensjax.models.quantised import quantised
from lensjax.models.safetensors_files import TensorFiles
from lensjax.models.weights import Stored, check_names, read_params


def load(
    source: str | Path,
    *,
    dtype: DTypeLike = "float32",
    param_dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    remat: Remat = "cheap",
    attention: AttentionImplementation | Literal["auto"] = "xla",
    revision: str | None = None,
    quantise: Quantisation | None = None,
) -> Model:
    """Load a model from a folder or the Hugging Face hub.

    Args:
      source: Folder with config.json and safetensors, a GGUF file, whose weights are dequantised, or a hub id such as
        "openai-community/gpt2"; a hub id is looked up in the hub's cache first, and fetched where it is not there.
      dtype: Type that the model computes in, whatever type is stored.
      param_dtype: Type that parameters are held in; `dtype` where not given.
      mesh: Devices to spread the parameters over (see `make_mesh`); each reads its own slices only.
      remat: What the backward pass recomputes: "none", "cheap", "dots" or "full"; see `Options`.
      attention: "xla", or for faster training "splash" on TPUs and "cudnn" on NVIDIA GPUs, or "auto"; see `Options`.
      revision: Branch, tag or commit on the hub.
      quantise: "int8" or "nf4" to hold the kernels of blocks in so few bits, under adapters; see `Options`. They are
        quantised one after another as they are read.

    Returns:
      The model, whose parameters lie on their devices.

    Raises:
      InputError: there is no such model, it is not one that LensJAX has, its weights are not those that its
        configuration describes, or the mesh does not divide it.
    """
    options = make_options(dtype, param_dtype, remat, attention, mesh, quantise)
    folder = find_folder(source, revision)
    config = read_config(folder)
    files = weights_of(folder, config)
    model = abstract_model(_as_stored(config, files), options.plain, folder)
    family = family_in(folder, model.config)
    wanted = check_names(
        family.tensors(model.config, model.params),
        files,
        family.prefix,
        family.passed_over(model.config),
        family.repeated(model.config),
        family.zeros(model.config),
    )
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(model.params)]
    leaves = read_params(wanted, files, dtypes, jax.tree.leaves(model.shardings))
    if quantise is None:
        return model.with_params(jax.tree.unflatten(jax.tree.structure(model.params), leaves))
    return _quantised(model, leaves, quantise)


def quantise(model: Model, kind: Quantisation) -> Model:
    """The model with the kernels of its blocks held in 8 or 4 bits, as `load` makes it.

    Args:
      model: In floating point, and without adapters.
      kind: "int8" or "nf4"; see `lensjax.models.quantised`.

    Raises:
      InputError: it is neither, or the model has adapters or is quantised already.
    """
    if model.options != model.options.plain:
        raise InputError("The model has adapters or is quantised already; quantise it first, and then add adapters.")
    return _quantised(model, jax.tree.leaves(model.params), kind)


def _quantised(model: Model, leaves: Iterable[Array], kind: Quantisation) -> Model:
    """A model with quantised kernels, from its parameters in floating point, of which one at a time is needed."""
    options = model.options
    made = make_options(options.dtype, options.param_dtype, options.remat, options.attention, options.mesh, kind)
    target = abstract_model(model.config, made, model.folder)
    params: Params = {}
    for (path, _), leaf in zip(jax.tree_util.tree_leaves_with_path(model.params), leaves, strict=True):
        held, like = params, target.params
        for entry in path[:-1]:
            held, like = held.setdefault(entry.key, {}), like[entry.key]
        name = path[-1].key
        if name == "kernel" and "kernel_scales" in like:
            lie = like["kernel"].sharding, like["kernel_scales"].sharding
            held["kernel"], held["kernel_scales"] = jax.jit(partial(quantised, kind=kind), out_shardings=lie)(leaf)
        else:
            held[name] = leaf
    return target.with_params(params)


def from_config(
    config: Any,
    *,
    dtype: DTypeLike = "float32",
    param_dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    remat: Remat = "cheap",
    attention: AttentionImplementation | Literal["auto"] = "xla",
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


def weights_of(folder: Path, config: Any) -> TensorFiles:
    """The tensors of a folder with safetensors or of a GGUF file, under the names of the former.

    Args:
      folder: See `find_folder`.
      config: Its Hugging Face configuration.

    Raises:
      InputError: there are none, or a file is cut short or malformed.
    """
    family = family_in(folder, config)
    if not is_gguf(folder):
        files = TensorFiles.of_folder(folder).of_text()
        bare = not any(name.startswith(family.prefix) for name in files.shapes)
        constants = family.constants(config).items()
        return files.supplied({name.removeprefix(family.prefix) if bare else name: value for name, value in constants})
    return GGUFTensors(folder, config, family.parameter_names(config))


def family_in(folder: Path, config: Any) -> Family:
    """The family of a model, with the names that parameters have in its folder or GGUF file."""
    family = family_of(config.model_type)
    if not is_gguf(folder):
        return family
    return replace(family, parameter_names=lambda config: names_in_files(family.parameter_names(config)))


def _as_stored(config: Any, files: TensorFiles) -> Any:
    """The configuration, with what only the tensors tell, as `transformers` reads them.

    It is untied if the checkpoint's head differs from the embedding, which T5's configurations hide; encoder and
    decoder share an embedding that there is one of; and logits have a bias where a constant of the family is not 0.
    """
    family = family_of(config.model_type)
    told: dict[str, Any] = {}
    if not config.tie_word_embeddings:
        if family.two_embeddings and not family.scales_tied and not _held(family.copies, family, files):
            told["one_embedding"] = True
    else:
        copies = family.repeated(config)
        entries = ends(family.parameter_names(config))
        embed, head = (f"{entry.name if isinstance(entry, Stored) else entry}.weight" for entry in entries)
        first = next(iter(_held((embed, *(name for name in copies if name != head)), family, files)), None)
        may_differ = any(re.search(pattern, head) for pattern in family.ignored)
        if may_differ and first and head in files.shapes and not files.same(first, head):
            told |= {"tie_word_embeddings": False, "one_embedding": True}
    constants = family.zeros(config)
    if any(files.shapes.get(name) == shape and not files.is_zero(name) for name, shape in constants.items()):
        told["has_logits_bias"] = True
    if not told:
        return config
    changed = copy.copy(config)
    for name, value in told.items():
        setattr(changed, name, value)
    return changed


def _held(names: Iterable[str], family: Family, files: TensorFiles) -> list[str]:
    """Those of some tensors that a checkpoint holds, as it names them."""
    both = ((name, name.removeprefix(family.prefix)) for name in names)
    return [next(name for name in pair if name in files.shapes) for pair in both if {*pair} & files.shapes.keys()]
