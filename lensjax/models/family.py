"""What LensJAX knows of each family of models, and which family a configuration belongs to.

A family is a file of `lensjax.models.families`, named after Hugging Face's model_type, that registers a `Family`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from lensjax.core.errors import InputError, shorten
from lensjax.core.pytrees import PyTree
from lensjax.core.registry import Registry
from lensjax.models.options import Options
from lensjax.models.sharding import RULES, Rules
from lensjax.models.weights import ParameterNames, Tensor, tensors


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
      model_type: Its name in Hugging Face's config.json.
      architecture: The Hugging Face class that opens the checkpoints that we save.
      module: Makes the model from (configuration, options, rngs).
      parameter_names: The names of its parameters in a checkpoint, given the configuration.
      prefix: Start of tensor names that checkpoints of the bare model, without a head, leave out.
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
    parameter_names: Callable[[Any], ParameterNames]
    prefix: str = "model."
    ignored: tuple[str, ...] = (r"^lm_head\.weight$",)
    copies: Mapping[str, str] = field(default_factory=dict)
    zeros: Callable[[Any], Mapping[str, tuple[int, ...]]] = lambda config: {}
    rules: Rules = RULES
    encoder_decoder: bool = False
    examples: tuple[str, ...] = ()

    def tensors(self, config: Any, params: PyTree) -> list[Tensor]:
        """Every parameter, or its shape, with its tensors in a checkpoint, in the order of the pytree's leaves."""
        return tensors(params, self.parameter_names(config))


FAMILIES: Registry[Family] = Registry("family", "lensjax.models.families", "lensjax.families")


def register(family: Family) -> Family:
    """Add a family to those that can be loaded, under its model_type.

    Raises:
      InputError: there is another family of that model_type.
    """
    return FAMILIES.register(family.model_type)(family)


def supported() -> list[str]:
    """Every model_type that can be loaded, in alphabetical order."""
    return list(FAMILIES.names)


def family_of(model_type: str, where: str = "config.json") -> Family:
    """Look up a family.

    Args:
      model_type: Its name in Hugging Face's config.json.
      where: The file that names it, for the message.

    Raises:
      InputError: there is no such family; the message lists the families there are.
    """
    if model_type not in FAMILIES:
        raise InputError(
            f"{where} says model_type '{shorten(model_type)}', which LensJAX does not have; "
            f"it has {', '.join(supported())}."
        )
    return FAMILIES[model_type]
