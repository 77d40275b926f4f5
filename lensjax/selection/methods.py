"""The interface every selection method implements, and the registry that names them.

A method is one function of what had been measured and of the target size; a new one is::

    @register("my_method", "What it predicts from, in a few words")
    def my_method(table: CurveTable, target: int) -> Prediction: ...
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lensjax.curves.table import CurveTable


@dataclass(frozen=True)
class Prediction:
    """What a method says of each of M models.

    Attributes:
      score: smaller is better; NaN where the method cannot judge the model.
      is_loss: whether `score` is a predicted test loss at the target (nats per token) or only an order.
      lower, upper: ends of the 90 % interval of the loss, where the method gives one.
      widening: how many times wider than modelled that is; see `lensjax.fit.calibration.widening`.
    """

    score: Float[np.ndarray, " M"]
    is_loss: bool = True
    lower: Float[np.ndarray, " M"] | None = None
    upper: Float[np.ndarray, " M"] | None = None
    widening: float = 1.0


Method = Callable[[CurveTable, int], Prediction]


@dataclass(frozen=True)
class RegisteredMethod:
    """A method with the name users type and a line saying what it does."""

    name: str
    summary: str
    predict: Method


METHODS: dict[str, RegisteredMethod] = {}


def register(name: str, summary: str) -> Callable[[Method], Method]:
    """Add the decorated method to `METHODS` under `name`."""

    def add(method: Method) -> Method:
        METHODS[name] = RegisteredMethod(name, summary, method)
        return method

    return add
