"""Is fine-tuning worth it at all? Models with the same prompts before they are tuned, beside their predictions."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lensjax.core.errors import listing
from lensjax.core.text import number, probability
from lensjax.curves.table import CurveTable
from lensjax.selection.prediction import Prediction

SURE = 0.9  # probability of a gain below which a warning says so


@dataclass(frozen=True)
class Untuned:
    """What M models lose or gain by fine-tuning on the target's examples, on the same test set.

    Attributes:
      loss: measured before fine-tuning (D = 0), in the table's unit; NaN where it was not.
      gain: of fine-tuning: that loss less the predicted one, by the median of the draws.
      lower, upper: ends of its 90 % interval; None without draws.
      probability: P(the model is better after fine-tuning than before); None without draws.
      best: position of the eligible model with the lowest loss before fine-tuning; None where none was measured.
      over: gain of each model over the best one before, by the median of the draws; NaN where that is not known.
      over_best: P(each model, fine-tuned, is better than the best one before); None without draws.
    """

    loss: Float[np.ndarray, " M"]
    gain: Float[np.ndarray, " M"]
    lower: Float[np.ndarray, " M"] | None
    upper: Float[np.ndarray, " M"] | None
    probability: Float[np.ndarray, " M"] | None
    best: int | None
    over: Float[np.ndarray, " M"]
    over_best: Float[np.ndarray, " M"] | None


def untuned(table: CurveTable, prediction: Prediction) -> Untuned | None:
    """Compare predictions with the losses before fine-tuning.

    Args:
      table: with losses at D = 0.
      prediction: of its models at the target.

    Returns:
      None where no loss was measured before fine-tuning, or the method predicts no losses.
    """
    loss = table.column(0)
    if not prediction.is_loss or not np.isfinite(loss).any():
        return None
    may_be_best = np.isfinite(loss) & table.eligible
    best = int(np.argmin(np.where(may_be_best, loss, np.inf))) if may_be_best.any() else None
    draws, reference = prediction.draws, np.nan if best is None else loss[best]
    if draws is None:
        return Untuned(loss, loss - prediction.score, None, None, None, best, reference - prediction.score, None)
    lower, gain, upper = np.quantile(loss - draws, (0.05, 0.5, 0.95), axis=0)
    return Untuned(
        loss=loss,
        gain=gain,
        lower=lower,
        upper=upper,
        probability=_share_below(draws, loss),
        best=best,
        over=reference - np.median(draws, axis=0),
        over_best=None if best is None else _share_below(draws, np.full(len(loss), reference)),
    )


def _share_below(draws: Float[np.ndarray, "S M"], level: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    """Share of each model's draws below a level; NaN where either is unknown."""
    known = np.isfinite(level) & np.isfinite(draws).all(axis=0)
    return np.where(known, (draws < level).mean(axis=0), np.nan)


def gain_sentence(table: CurveTable, found: Untuned, choice: int) -> str:
    """What fine-tuning the chosen model gains, in a sentence; "" where nothing is known.

    Args:
      table: of the ranking.
      found: see `untuned`.
      choice: position of the chosen model.
    """
    if found.best is None:
        return ""
    chosen, reference = table.models[choice], table.models[found.best]
    gains = []
    if np.isfinite(found.gain[choice]):
        ends = ""
        if found.lower is not None and found.upper is not None and found.probability is not None:
            interval = f"90 % interval {number(found.lower[choice])} to {number(found.upper[choice])}"
            ends = f" ({interval}; better with probability {probability(found.probability[choice])})"
        gains.append(f"{number(found.gain[choice])} {table.unit} over its untuned self{ends}")
    if reference != chosen or not gains:
        over = "" if found.over_best is None else f" (better with probability {probability(found.over_best[choice])})"
        gained = number(found.over[choice])
        gains.append(f"{gained} over {reference}, the best untuned model at {number(found.loss[found.best])}{over}")
    return f"Fine-tuning {chosen} is predicted to gain {', and '.join(gains)}."


def untuned_warnings(table: CurveTable, found: Untuned | None, choice: int) -> list[str]:
    """Where fine-tuning made a model worse, or may not be worth it.

    Args:
      table: the losses that the ranking saw.
      found: see `untuned`.
      choice: position of the chosen model.
    """
    warnings = []
    above = (table.loss > table.column(0)[:, None]) & (table.sizes > 0)
    worse = [_worse(table, int(i)) for i in np.flatnonzero(above.any(axis=1))]
    if worse:
        warnings.append(
            f"Fine-tuning on few examples made {len(worse)} of {len(table.models)} models worse than they were before: "
            f"{listing(worse, 3)}. At those sizes they are better as they are."
        )
    if found is None or found.best is None or found.over_best is None or found.over_best[choice] >= SURE:
        return warnings
    if np.isfinite(found.over_best[choice]):
        reference = f"{table.models[found.best]} before fine-tuning ({number(found.loss[found.best])})"
        warnings.append(
            f"Fine-tuning may not be worth it: {table.models[choice]} is better at the target than {reference} with "
            f"probability {probability(found.over_best[choice])} only."
        )
    return warnings


def _worse(table: CurveTable, i: int) -> str:
    """The largest size at which a model is worse than before, with both losses."""
    before = table.column(0)[i]
    j = np.flatnonzero((table.loss[i] > before) & (table.sizes > 0))[-1]
    return f"{table.models[i]} at {table.sizes[j]:,} ({number(table.loss[i, j])}, before {number(before)})"
