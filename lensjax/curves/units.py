"""Units of losses. A table of curves is in one of them, and whatever is fitted, predicted, and said of it is too."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lensjax.core.errors import InputError, shorten


@dataclass(frozen=True)
class Unit:
    """A unit of losses.

    Attributes:
      name: In sentences and on axes, such as "bits per byte".
      column: Of a CSV file with a row per measurement, as fine-tuning writes it.
      any_tokenizer: Whether losses of models with different tokenizers can be compared in it.
    """

    name: str
    column: str
    any_tokenizer: bool

    @property
    def key(self) -> str:
        """The name as programs and options have it, such as "bits_per_byte"."""
        return self.name.replace(" ", "_")

    def __str__(self) -> str:
        return self.name


NATS_PER_TOKEN = Unit("nats per token", "loss", any_tokenizer=False)
BITS_PER_BYTE = Unit("bits per byte", "bits_per_byte", any_tokenizer=True)
NATS_PER_EXAMPLE = Unit("nats per example", "nats_per_example", any_tokenizer=True)
ERRORS_PER_EXAMPLE = Unit("errors per example", "errors_per_example", any_tokenizer=True)

# By key; where a file has several, the first one is read that all its losses are known in.
UNITS: Mapping[str, Unit] = MappingProxyType(
    {unit.key: unit for unit in (BITS_PER_BYTE, NATS_PER_TOKEN, NATS_PER_EXAMPLE, ERRORS_PER_EXAMPLE)}
)


def unit_named(name: str) -> Unit:
    """The unit of a name or key, such as "bits per byte" or "bits_per_byte".

    Raises:
      InputError: there is none.
    """
    key = "_".join(name.lower().replace("_", " ").split())
    if key not in UNITS:
        raise InputError(f"There is no unit '{shorten(name)}'; choose one of {', '.join(UNITS)}.")
    return UNITS[key]
