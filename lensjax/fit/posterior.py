"""Posteriors over curves: losses at any size, law parameters, and which model to choose."""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from lensjax.core.errors import InputError, listing
from lensjax.core.tabular import Columns, Tabular
from lensjax.curves.table import MIN_LOSS, CurveTable, curve_table
from lensjax.fit.calibration import FEWEST

DRAWS = 4000
FEWEST_DRAWS = 1000
SHOWN = 30  # sizes of a curve
SHOWN_OF_MANY = 12  # where thousands of models are ranked
MOST_NUMBERS = 4_000_000  # drawn losses that are held at once, to bound memory and time
Z90 = 1.6448536269514722  # half-width of a central 90 % interval, in standard deviations


@dataclass(frozen=True, repr=False)
class Losses(Tabular):
    """Predicted test losses of M models at G sizes, in the unit of the table: medians and central 90 % intervals.

    Attributes:
      models: M names.
      examples: G sizes.
      loss, lower, upper: medians, and ends of intervals.
    """

    models: tuple[str, ...]
    examples: Float[np.ndarray, " G"]
    loss: Float[np.ndarray, "M G"]
    lower: Float[np.ndarray, "M G"]
    upper: Float[np.ndarray, "M G"]

    @property
    def headline(self) -> str:
        """Of how many models and sizes, in a line."""
        sizes = f"{len(self.examples)} size{'s' * (len(self.examples) != 1)}"
        return f"Predicted losses of {len(self.models)} models at {sizes}, with 90 % intervals"

    def as_columns(self) -> Columns:
        """A row for each model and size."""
        names = np.repeat(np.array(self.models, object), len(self.examples)).tolist()
        sizes = np.tile(self.examples, len(self.models))
        ends = {name: part.ravel() for name, part in zip(("loss", "lower", "upper"), self.parts, strict=True)}
        return {"model": names, "examples": sizes, **ends}

    @property
    def parts(self) -> tuple[Float[np.ndarray, "M G"], Float[np.ndarray, "M G"], Float[np.ndarray, "M G"]]:
        """Medians, lower and upper ends."""
        return self.loss, self.lower, self.upper

    @property
    def log_sd(self) -> Float[np.ndarray, "M G"]:
        """Standard deviations of log losses, if those are Gaussian."""
        return (np.log(self.upper) - np.log(self.lower)) / (2 * Z90)


def curve_sizes(unit: int, horizon: int, models: int) -> Int[np.ndarray, " G"]:
    """Sizes at which curves are shown and laws fitted to them, evenly on a logarithmic scale.

    They are up to 30, or 12 from 4,000 models on.
    """
    shown = SHOWN if draws_for(models) > FEWEST_DRAWS else SHOWN_OF_MANY
    return np.unique(np.geomspace(unit, horizon, shown).round().astype(np.int64))


def draws_for(models: int) -> int:
    """How many joint draws rank so many models: 4,000, from 1,000 models on fewer, and 1,000 from 4,000 on."""
    return max(FEWEST_DRAWS, min(DRAWS, MOST_NUMBERS // max(models, 1)))


def probability_best(losses: Float[np.ndarray, "draws M"]) -> Float[np.ndarray, " M"]:
    """Share of the draws in which each model has the lowest loss."""
    return np.bincount(np.argmin(losses, axis=1), minlength=losses.shape[1]) / len(losses)


def expected_regret(losses: Float[np.ndarray, "draws M"]) -> Float[np.ndarray, " M"]:
    """Mean over the draws of each model's loss above the lowest, in the unit of the losses."""
    return (losses - losses.min(axis=1, keepdims=True)).mean(axis=0)


def chances_and_regrets(
    losses: Float[np.ndarray, "draws M"], eligible: Bool[np.ndarray, " M"]
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """P(best) and expected regret of each eligible model among the eligible ones; NaN for the others.

    Where several have the lowest loss of a draw, that of the least expected regret counts as the best.

    Args:
      losses: Joint draws.
      eligible: Which models may be chosen; one at least.
    """
    chances, regrets = np.full((2, len(eligible)), np.nan)
    regrets[eligible] = expected_regret(losses[:, eligible])
    order = np.argsort(regrets, kind="stable")[: int(eligible.sum())]
    chances[order] = probability_best(losses[:, order])
    return chances, regrets


class CurvePosterior(Tabular):
    """A posterior over the curves of M models.

    Attributes:
      models: M names.
      unit: smallest measured size, in examples.
      horizon: largest size that can be asked about.
      widening: factor by which predictions are wider than modelled.
    """

    models: tuple[str, ...]
    unit: int
    horizon: int
    widening: float = 1.0

    @property
    def headline(self) -> str:
        """Of how many models and up to which size, in a line."""
        kind = type(self).__name__.removesuffix("Posterior")
        return (
            f"{kind} posterior over the curves of {len(self.models)} models, {self.unit:,} to {self.horizon:,} examples"
        )

    def as_columns(self) -> Columns:
        """What is predicted of each model at the horizon: loss, 90 % interval, P(best) and expected regret."""
        columns = self.predict(self.horizon).as_columns()
        draws = self.sample(self.horizon)
        return {**columns, "probability_best": probability_best(draws), "expected_regret": expected_regret(draws)}

    @abstractmethod
    def predict(self, examples: int | Float[np.ndarray, " G"]) -> Losses:
        """Losses that would be measured at one size or at G sizes, from `unit` to `horizon`.

        Raises:
          InputError: a size is outside that range.
        """

    @abstractmethod
    def sample(self, examples: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draws M"]:
        """Joint draws of all models' losses at one size, in the unit of the table.

        Raises:
          InputError: the size is outside the fitted range.
        """

    def law_parameters(self) -> dict[str, Float[np.ndarray, " M"]]:
        """B, D_l, beta and E of each model's rectified law L = B / (D_l + D^β) + E, for L in the unit of the table.

        It is the law closest to the median curve, from `unit` to the horizon, where the fit is of something else.
        """
        from lensjax.fit.per_model import fit_per_model  # slow to import

        sizes = curve_sizes(self.unit, self.horizon, len(self.models))
        curves = np.maximum(self.predict(sizes).loss, MIN_LOSS)
        return fit_per_model(curve_table(self.models, sizes, curves), "rectified").parameters

    def probability_best(self, examples: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, " M"]:
        """Probability that each model has the lowest loss at one size."""
        return probability_best(self.sample(examples, draws, seed))

    def expected_regret(self, examples: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, " M"]:
        """Expected loss above the best model's if this one is chosen, in the unit of the table."""
        return expected_regret(self.sample(examples, draws, seed))

    def _within(self, examples: int | Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
        """Sizes as an array, each checked to be in the fitted range."""
        sizes = np.atleast_1d(np.asarray(examples, dtype=np.float64))
        outside = sizes[~((sizes >= self.unit) & (sizes <= self.horizon * (1 + 1e-12)))]
        if outside.size:
            raise InputError(
                f"Losses at {outside[0]:.0f} examples were asked for, outside the fitted range {self.unit} "
                f"to {self.horizon}; fit with a larger horizon."
            )
        return sizes


def check_fit(table: CurveTable, horizon: int, fit: str) -> Bool[np.ndarray, " S"]:
    """Check that a table's curves can be fitted up to a horizon.

    Args:
      table: measured curves.
      horizon: largest number of examples to predict for.
      fit: name of the fit in messages.

    Returns:
      Which sizes are above 0 and measured.

    Raises:
      InputError: a model has fewer than two sizes above 0, or the horizon lies below a measured size.
    """
    short = [model for model, points in zip(table.models, table.points(), strict=True) if points < FEWEST]
    if short or not table.models:
        raise InputError(f"The {fit} fit needs at least two sizes above 0 of every model; mend {listing(short)}.")
    measured = table.measured.any(axis=0)
    largest = int(table.sizes[measured].max())
    if horizon < largest:
        raise InputError(f"The horizon of {horizon} examples lies below the measured {largest}; raise it.")
    return measured & (table.sizes > 0)
