"""The functional "target_logprob"."""

from jaxtyping import Array, Float

from lensjax.measure.functionals import FUNCTIONALS, Example, Functional, OfModel
from lensjax.models.model import Model, Params


def target_logprob(model: Model) -> OfModel:
    """Log-probability of every target token, in nats: [time], 0 where there is no target.

    Its kernel is summed over target tokens.
    """

    def f(params: Params, example: Example) -> Float[Array, " time"]:
        return -model.token_losses(params, example)[0]

    return f


FUNCTIONALS.register("target_logprob")(
    Functional(
        description="Of the log-probabilities of target tokens, summed over them,",
        make=lambda model, classes, samples: target_logprob(model),
    )
)
