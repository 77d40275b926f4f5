"""From what was measured to an order of the candidates."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from lensjax.curves import CurveTable
from lensjax.selection.methods import Prediction


@dataclass(frozen=True)
class Curves:
    """Fitted curves of M models at G sizes, with a 90 % band, in nats per token."""

    sizes: Int[np.ndarray, " G"]
    loss: Float[np.ndarray, "M G"]
    lower: Float[np.ndarray, "M G"]
    upper: Float[np.ndarray, "M G"]


@dataclass(frozen=True)
class Ranking:
    """M candidates in order of predicted loss after fine-tuning on `target` examples.

    All arrays follow `table.models`; `order` holds their positions, best first.

    Attributes:
      table: the ranked models with everything in the file, sizes above `budget` included.
      budget: largest size the methods saw, in examples.
      target: size predicted for, in examples.
      method: name of the method that ranks.
      prediction: what that method says.
      order: positions in `table.models`, best first; models it cannot judge come last.
      baselines: what the other methods say, by name.
      probability_best: P(this model has the lowest loss at the target), where the method knows.
      expected_regret: expected loss above the best candidate if this one is chosen, nats per token.
      curves: fitted curves from the smallest measured size to the target, where the method fits any.
      parameters: per-model law parameters by name, where the method has any.
      left_out: (model, why) of candidates that could not be ranked.
      warnings: sentences a user must read before trusting the ranking.
      assumptions: sentences saying what the method assumed and how it was fitted.
    """

    table: CurveTable
    budget: int
    target: int
    method: str
    prediction: Prediction
    order: Int[np.ndarray, " M"]
    baselines: dict[str, Prediction] = field(default_factory=dict)
    probability_best: Float[np.ndarray, " M"] | None = None
    expected_regret: Float[np.ndarray, " M"] | None = None
    curves: Curves | None = None
    parameters: dict[str, Float[np.ndarray, " M"]] = field(default_factory=dict)
    left_out: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
