"""Task metrics: shares of a test set that models get right, which curve tables hold beside losses."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lensjax.core.errors import InputError, shorten


@dataclass(frozen=True)
class Metric:
    """A metric between 0 and 1, of which more is better.

    Attributes:
      name: In sentences, such as "exact match".
      column: Of a CSV file with a row per measurement, as fine-tuning writes it; that of its standard error has _error
        after it.
      by_chance: Whether a model that knows nothing gets some right, as where it chooses among given answers.
    """

    name: str
    column: str
    by_chance: bool = False

    def __str__(self) -> str:
        return self.name


class Shares(NamedTuple):
    """Measured values of a metric for M models at S sizes; NaN where not measured.

    Attributes:
      value: mean over seeds.
      error: standard error of the value over other draws of the test examples; NaN where unknown.
    """

    value: Float[np.ndarray, "M S"]
    error: Float[np.ndarray, "M S"]


ENDS = ("", "_error")  # of the columns of a metric's value and error

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.column: metric
        for metric in (
            Metric("exact match", "exact_match"),
            Metric("token accuracy", "token_accuracy"),
            Metric("choice accuracy", "choice_accuracy", by_chance=True),
            Metric("choice accuracy per byte", "choice_accuracy_per_byte", by_chance=True),
        )
    }
)


def metric_named(name: str) -> Metric:
    """The metric of a name or column, such as "exact match" or "exact_match".

    Raises:
      InputError: there is none.
    """
    key = "_".join(name.lower().replace("_", " ").split())
    if key not in METRICS:
        raise InputError(f"There is no metric '{shorten(name)}'; choose one of {', '.join(METRICS)}.")
    return METRICS[key]
