"""How far components say that curves fall, and how well they would have foreseen a table's own largest sizes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lensjax.curves.table import CurveTable
from lensjax.fit.calibration import FEWEST, hold_out
from lensjax.fit.joint.fitting import JointSettings, fit_joint, teachers
from lensjax.fit.joint.posterior import JointPosterior
from lensjax.fit.lines import accepted, fit_lines, last_three
from lensjax.fit.stacked.learned import COMPONENTS, LEARNED, Learned, Record, shares
from lensjax.fit.stacked.posterior import StackedPosterior
from lensjax.fit.thinning import thinned

MOST = 3  # sizes that the back-test leaves out
SHARED = 0.3  # weight of the square of an error that all models share
LEAST = 1e-3  # of log loss: no component is known to be better
FARTHEST = 3.0  # of log loss: errors beyond count as this


@dataclass(frozen=True)
class Falls:
    """How far the log loss of M models falls from each one's largest measured size to another, by C components.

    Attributes:
      level: log loss at the largest measured size, as the joint fit has it.
      octaves: from there to the other size.
      fall: of `COMPONENTS`: the joint fit; the lines, where they fall; its median fall per octave for all
        models alike; and 0, which is SubTuning.
      log_sd: of the joint fit's prediction.
    """

    level: Float[np.ndarray, " M"]
    octaves: Float[np.ndarray, " M"]
    fall: Float[np.ndarray, "C M"]
    log_sd: Float[np.ndarray, " M"]


def stack(table: CurveTable, joint: JointPosterior, target: int, learned: Learned = LEARNED) -> StackedPosterior:
    """The joint posterior of a table's models, stacked with simpler components for a target."""
    table = thinned(table)
    last, _ = largest(table)
    ahead = falls(table, joint, np.clip(2 * last, target, joint.horizon))
    record = backtest(table.select(teachers(len(table.models))), joint)
    weights = learned.weights(record)
    return StackedPosterior(
        joint=joint,
        last=last,
        weights=weights,
        shares=shares(weights, ahead.fall),
        rates=_per_octave(ahead.fall[1:], ahead.octaves),
        width=learned.width(record),
        disagreement=learned.disagreement,
        growth=learned.growth,
    )


def largest(table: CurveTable) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Largest measured size of each model, and the log loss there; NaN where none is above 0."""
    measured = table.measured & (table.sizes > 0)
    place = measured.shape[1] - 1 - np.argmax(measured[:, ::-1], axis=1)
    known, rows = measured.any(axis=1), np.arange(len(place))
    return np.where(known, table.sizes[place], np.nan), np.where(known, np.log(table.loss[rows, place]), np.nan)


def _at(posterior: JointPosterior, sizes: Float[np.ndarray, " M"]) -> tuple[np.ndarray, np.ndarray]:
    """Median log loss of each model at a size of its own, and its standard deviation."""
    different, place = np.unique(sizes, return_inverse=True)
    losses, rows = posterior.predict(different), np.arange(len(sizes))
    return np.log(losses.loss[rows, place]), losses.log_sd[rows, place]


def _per_octave(fall: Float[np.ndarray, "*C M"], octaves: Float[np.ndarray, " M"]) -> Float[np.ndarray, "*C M"]:
    """Falls by octave; 0 where there are no octaves to fall in."""
    rate: Float[np.ndarray, "*C M"] = fall / np.where(octaves > 0, octaves, np.inf)
    return rate


def falls(table: CurveTable, posterior: JointPosterior, sizes: Float[np.ndarray, " M"]) -> Falls:
    """Falls from each model's largest measured size in the table to a size of its own, no smaller."""
    last, _ = largest(table)
    posterior.predict(np.union1d(last, sizes))  # at once, and remembered
    (level, _), (median, log_sd) = _at(posterior, last), _at(posterior, sizes)
    octaves = np.log2(sizes / last)
    joint = np.where(octaves > 0, level - median, 0.0)
    rates, own = [], _per_octave(joint, octaves)
    for count in (last_three, accepted):
        per_octave = -np.log(2) * fit_lines(table, count).slope
        rates.append(np.where(np.isfinite(per_octave), np.maximum(per_octave, 0.0), own))
    common = np.median(own[octaves > 0]) if (octaves > 0).any() else 0.0
    fall = np.stack([joint, *(rate * octaves for rate in rates), common * octaves, 0 * octaves])
    return Falls(level, octaves, fall, log_sd)


def backtest(table: CurveTable, joint: JointPosterior) -> Record:
    """How well each component foresees the largest sizes of a table's models from the others.

    A typical model loses three sizes, or as many as leave it two; one with too few for that loses none and counts not.
    """
    points = float(np.median(table.points()))
    unknown = Record(points, np.zeros(len(COMPONENTS)), 0)
    step = min(MOST, int(points) - FEWEST)
    if step < 1:
        return unknown
    seen, held = hold_out(table, step)
    size, log_loss = largest(held)
    tested = np.isfinite(log_loss)
    if tested.sum() < 2:
        return unknown
    fitted = fit_joint(seen, joint.horizon, settings=JointSettings(widen=False), start=joint)
    last, _ = largest(seen)
    ahead = falls(seen, fitted, np.where(tested, size, last))
    errors = np.clip((log_loss - ahead.level + ahead.fall)[:, tested], -FARTHEST, FARTHEST)
    shared = np.median(errors, axis=1, keepdims=True)
    own = np.abs(errors - shared)
    own = np.minimum(own, 6 * np.median(own[0]) + LEAST)  # one outlier does not decide
    log_error = np.log(np.mean(own**2, axis=1) + SHARED * shared[:, 0] ** 2 + LEAST**2) / 2
    return Record(points, log_error - log_error[0], errors.shape[1])
