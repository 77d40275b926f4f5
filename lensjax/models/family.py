"""What is known of each family of models, and which family a configuration belongs to."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from lensjax.core.errors import InputError, shorten
from lensjax.models.options import Options
from lensjax.models.sharding import RULES, Rules
from lensjax.models.weights import Table

# Hugging Face model_type → our module; families that compute alike share one.
_MODULES: Mapping[str, str] = {
    "bart": "bart",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
    "llama": "llama",
    "mistral": "mistral",
    "mt5": "t5",
    "olmo2": "olmo2",
    "opt": "opt",
    "phi": "phi",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "switch_transformers": "switch_transformers",
    "t5": "t5",
}


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
      model_type: Its name in Hugging Face's config.json.
      architecture: The Hugging Face class that opens what we save.
      module: Makes the model from (configuration, options, rngs).
      table: Where its parameters lie in a checkpoint, given the configuration.
      prefix: Start of tensor names that checkpoints of the bare model leave out.
      ignored: Regular expressions for tensors that checkpoints hold and the model does not need.
      copies: Tensors that checkpoints may hold besides the one whose values they repeat, by name.
      zeros: Shapes of constants that checkpoints hold, 0 in all of them, by name, given the configuration.
      rules: How its parameters lie on a mesh.
      encoder_decoder: Whether targets have a decoder of their own.
      examples: Well-known checkpoints.
    """

    model_type: str
    architecture: str
    module: Callable[[Any, Options, nnx.Rngs], nnx.Module]
    table: Callable[[Any], Table]
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    zeros: Callable[[Any], Mapping[str, tuple[int, ...]]] = lambda config: {}
    rules: Rules = RULES
    encoder_decoder: bool = False
    examples: tuple[str, ...] = ()


def supported() -> list[str]:
    """Every model_type that can be loaded, in alphabetical order."""
    return sorted(_MODULES)


def family_of(model_type: str, where: str = "config.json") -> Family:
    """The family of that name.

    Raises:
      InputError: there is none; names those there are.
    """
    if model_type not in _MODULES:
        raise InputError(
            f"{where} says model_type '{shorten(model_type)}', which LensJAX does not have; "
            f"it has {', '.join(supported())}."
        )
    families = importlib.import_module(f"lensjax.models.families.{_MODULES[model_type]}").FAMILIES
    return next(family for family in families if family.model_type == model_type)
