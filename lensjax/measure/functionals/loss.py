"""The functional "loss"."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Float

from lensjax.measure.functionals import FUNCTIONALS, Example, Functional, OfModel

if TYPE_CHECKING:  # studies name it by default, and most commands on studies compute nothing
    from lensjax.models.model import Model, Params


def loss(model: "Model") -> OfModel:
    """Mean negative log-likelihood of the target tokens, in nats: a scalar.

    Its kernel says how a gradient step on one example changes the loss of another. The target of every loss is 0.
    """

    def f(params: "Params", example: Example) -> Float[Array, ""]:
        return model.loss(params, example)

    return f


FUNCTIONALS.register("loss")(
    Functional(
        description="Of the loss of each example",
        make=lambda model, classes, samples: loss(model),
        targets=lambda batch, classes: np.zeros(len(batch["labels"])),
    )
)
