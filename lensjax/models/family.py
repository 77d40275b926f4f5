"""What LensJAX knows of each family of models, and which family a configuration belongs to.

A family is a file of `lensjax.models.families`, named after Hugging Face's model_type, that registers a `Family`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from lensjax.core.errors import InputError, one_line, shorten
from lensjax.core.pytrees import PyTree
from lensjax.core.registry import Registry
from lensjax.models.options import Options
from lensjax.models.sharding import RULES, Rules
from lensjax.models.weights import ParameterNames, Stored, Tensor, tensors

if TYPE_CHECKING:  # Flax is slow to import
    from flax import nnx


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
      copies: Tensors that checkpoints may hold besides or in place of the one whose values they repeat, by name.
      zeros: Shapes of constants that checkpoints hold, by name, given the configuration: 0 in nearly all of them, and
        in all where the model has no parameter for them.
      unused: The same as `ignored`, given the configuration.
      constants: What parameters are that checkpoints may lack, by name, given the configuration.
      rules: How its parameters lie on a mesh.
      by_layer: Fields of the configuration in which layers may differ, by its `per_layer_config`.
      two_embeddings: Whether encoder and decoder have an embedding each in models that are not tied.
      scales_tied: Whether models that say they are tied scale what their head reads, even if its values are its own.
      encoder_decoder: Whether targets have a decoder of their own.
      starts_with_last: Whether that starts with the last token of a target, and not with one that all targets share.
      examples: Well-known checkpoints.
    """

    model_type: str
    architecture: str
    module: "Callable[[Any, Options, nnx.Rngs], nnx.Module]"
    parameter_names: Callable[[Any], ParameterNames]
    prefix: str = "model."
    ignored: tuple[str, ...] = (r"^lm_head\.weight$",)
    copies: dict[str, str] = field(default_factory=dict)
    zeros: Callable[[Any], Mapping[str, tuple[int, ...]]] = lambda config: {}
    unused: Callable[[Any], tuple[str, ...]] = lambda config: ()
    constants: Callable[[Any], Mapping[str, NDArray[Any]]] = lambda config: {}
    rules: Rules = RULES
    by_layer: tuple[str, ...] = ()
    two_embeddings: bool = False
    scales_tied: bool = False
    encoder_decoder: bool = False
    starts_with_last: bool = False
    examples: tuple[str, ...] = ()

    def repeated(self, config: Any) -> Mapping[str, str]:
        """Tensors that may stand in a checkpoint beside or in place of the one whose values they have, by name."""
        copies = {} if embeds_apart(config) else dict(self.copies)
        if config.tie_word_embeddings:
            names = self.parameter_names(config)
            embed, head = (f"{entry if isinstance(entry, str) else entry.name}.weight" for entry in ends(names))
            copies[head] = embed
        return copies

    def passed_over(self, config: Any) -> tuple[str, ...]:
        """Regular expressions for tensors that checkpoints hold and the model does not need."""
        shared = (r"(^|\.)shared\.weight$",) if self.two_embeddings and embeds_apart(config) else ()
        return (*self.ignored, *self.unused(config), *shared)

    def written_twice(self, config: Any) -> Mapping[str, str]:
        """Tensors that `transformers` looks for in a checkpoint besides those with their values, by name."""
        if not (self.two_embeddings and embeds_apart(config)):
            return {}
        return {first: name for name, first in reversed(self.copies.items())}

    def tensors(self, config: Any, params: PyTree) -> list[Tensor]:
        """Every parameter, or its shape, with its tensors in a checkpoint, in the order of the pytree's leaves."""
        return tensors(params, self.parameter_names(config))


def embeds_apart(config: Any) -> bool:
    """Whether an encoder and a decoder have an embedding each, as in untied BARTs and Switch Transformers."""
    return not (config.tie_word_embeddings or getattr(config, "one_embedding", False))


def check_layers(config: Any, family: Family) -> None:
    """Refuse a configuration whose layers differ in what LensJAX has the same in all of them.

    Raises:
      InputError: they do.
    """
    if not getattr(config, "is_heterogeneous", False):
        return
    fields = {name for own in (config.to_dict().get("per_layer_config") or {}).values() for name in own}
    if strange := sorted(fields - {*family.by_layer}):
        raise InputError(
            f"per_layer_config in config.json gives layers a {shorten(strange[0])} of their own, which LensJAX has for "
            f"all layers of {family.model_type} together; take a model whose layers have the same."
        )


@contextmanager
def building(config: Any) -> Iterator[None]:
    """A context in which a model is built, whose errors are those of a configuration that describes none.

    Configuration classes look at the types of few fields, and modules believe them.

    Raises:
      InputError: the model cannot be built.
    """
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
        raise InputError(
            f"config.json describes no {config.model_type} model that can be built ({type(error).__name__}: "
            f"{one_line(error)}); take the config.json that came with the weights."
        ) from error


def of_all_layers(config: Any, name: str) -> Any:
    """A field of a configuration; None where it has none, or layers differ in it."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # which transformers raises of a field that `per_layer_config` has
        return None


def ends(names: ParameterNames) -> tuple[str | Stored, str | Stored]:
    """What a checkpoint calls the embedding and the head."""
    return names["embed"], names["head"]


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
