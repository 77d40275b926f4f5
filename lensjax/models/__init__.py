"""Language models in Flax that load Hugging Face checkpoints and compute as pure functions of their parameters.

model = lensjax.models.load("HuggingFaceTB/SmolLM2-135M", dtype="bfloat16", mesh=make_mesh("fsdp=8"))
logits = jax.jit(model.apply)(model.params, batch)
loss, gradient = jax.value_and_grad(model.loss)(model.params, batch)
"""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from numpy.typing import DTypeLike

from lensjax.models.family import Family, family_of, supported
from lensjax.models.hub import find_folder, read_config
from lensjax.models.model import Batch, Model, Params, initialise, read
from lensjax.models.options import AttentionImplementation, Options, Remat, make_options
from lensjax.models.sharding import make_mesh

__all__ = [
    "Batch",
    "Family",
    "Model",
    "Options",
    "Params",
    "family_of",
    "from_config",
    "load",
    "make_mesh",
    "supported",
]


def load(
    source: str | Path,
    *,
    dtype: DTypeLike = "float32",
    param_dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    remat: Remat = "none",
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
      remat: What the backward pass recomputes: "none", "dots" or "full".
      attention: "xla", or "cudnn" for faster training on NVIDIA GPUs.
      revision: Branch, tag or commit on the hub.

    Raises:
      InputError: the model cannot be found or is not one that LensJAX has, its weights are not those its
        configuration describes, or the mesh does not divide it.
    """
    options = make_options(dtype, param_dtype, remat, attention, mesh)
    folder = find_folder(source, revision)
    return read(read_config(folder), options, folder)


def from_config(
    config: Any,
    *,
    dtype: DTypeLike = "float32",
    param_dtype: DTypeLike | None = None,
    mesh: Mesh | None = None,
    remat: Remat = "none",
    attention: AttentionImplementation = "xla",
    seed: int = 0,
) -> Model:
    """A model with random parameters from a Hugging Face configuration, such as `transformers.GPT2Config()`.

    Parameters depend on `seed` alone, not on the mesh. Other arguments and errors are those of `load`.
    """
    return initialise(config, make_options(dtype, param_dtype, remat, attention, mesh), seed)
