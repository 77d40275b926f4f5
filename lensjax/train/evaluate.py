"""The loss of a model on a set of examples, and its standard error."""

import math
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float

from lensjax.models.model import Params
from lensjax.tasks.batches import Lengths, evaluation_batches
from lensjax.tasks.tokens import Tokens
from lensjax.train.placement import BatchPlacement
from lensjax.train.step import Programs

_IN_FLIGHT = 16  # batches handed to the devices before their losses are fetched


@dataclass(frozen=True)
class Evaluation:
    """A loss over examples.

    Attributes:
      loss: Mean over all target tokens, in nats.
      standard_error: Of the loss, over other draws of the examples; NaN for a single example.
      examples: Number of examples.
      tokens: Number of target tokens.
    """

    loss: float
    standard_error: float
    examples: int
    tokens: int


def evaluate(
    programs: Programs,
    params: Params,
    frozen: Params,
    tokens: Tokens,
    lengths: Lengths,
    placement: BatchPlacement,
    padding: int,
) -> Evaluation:
    """The loss on all examples; all processes must call it, and all get it.

    Args:
      programs: Of the model.
      params, frozen: Its parameters, as `Programs.losses` takes them.
      tokens: The examples.
      lengths: Shape of the batches.
      placement: How batches lie on the devices.
      padding: Token that fills rows up.
    """
    fetched: list[np.ndarray] = []
    in_flight: list[tuple[jax.Array, jax.Array]] = []

    def fetch() -> None:
        fetched.extend(np.stack([np.asarray(part, np.float64) for part in pair]) for pair in in_flight)
        in_flight.clear()

    for batch in evaluation_batches(tokens, lengths, placement.rows, placement.local_rows(), padding):
        in_flight.append(programs.losses(params, frozen, placement.to_devices(batch)))
        if len(in_flight) == _IN_FLIGHT:
            fetch()
    fetch()
    sums, counts = np.concatenate(fetched, axis=1)[:, : len(tokens)]
    return summarise(sums, counts)


def summarise(sums: Float[np.ndarray, " examples"], counts: Float[np.ndarray, " examples"]) -> Evaluation:
    """The ratio of total loss to total tokens, with the standard error of a ratio estimator over examples."""
    n, total = len(sums), counts.sum()
    loss = float(sums.sum() / total)
    spread = np.square(sums - loss * counts).sum()
    error = math.sqrt(n / (n - 1) * spread) / float(total) if n > 1 else math.nan
    return Evaluation(loss, error, n, int(total))
