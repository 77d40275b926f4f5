"""Measurements of models besides their fine-tuning curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Evidence:
    """Measured values by the measurement's name, such as "ntk", and then by the model's name.

    Attributes:
      values: of "ntk", rates and weights of the kernel's residual (see `lensjax.curvature.dynamics.residual_modes`); of
        "weights", NLPmetrics' score, lower is better; of "transferability", a mapping with "logme" and "h_score", where
        higher is better; of others, whatever the methods that need them take.
    """

    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, measurement: str, models: Sequence[str]) -> list[Any]:
        """One measurement's value of every model; None where it was not measured."""
        known = self.values.get(measurement, {})
        return [known.get(model) for model in models]
