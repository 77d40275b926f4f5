"""How good a prediction was, once the losses at the target are known: fractions, and errors of losses or their logs."""

import numpy as np
from jaxtyping import Float
from scipy.stats import pearsonr, rankdata

from lensjax.selection.prediction import Prediction

METRICS = ("pearson", "relative_accuracy", "spearman", "rmse", "log_rmse", "regret", "coverage90")
LOSSES = ("rmse", "regret")  # those that are in the unit of the losses


def pearson(predicted: Float[np.ndarray, " M"], true: Float[np.ndarray, " M"]) -> float:
    """Pearson correlation of predicted and true losses; NaN where either does not vary."""
    varies = len(true) > 1 and np.ptp(predicted) > 0 and np.ptp(true) > 0
    return float(pearsonr(predicted, true).statistic) if varies else float("nan")


def spearman(predicted: Float[np.ndarray, " M"], true: Float[np.ndarray, " M"]) -> float:
    """Pearson correlation of ranks, ties sharing their mean rank."""
    return pearson(rankdata(predicted), rankdata(true))


def regret(choice: int, true: Float[np.ndarray, " M"]) -> float:
    """Loss of the chosen model above the best one's, in the unit of the losses."""
    return float(true[choice] - true.min())


def relative_accuracy(choice: int, true: Float[np.ndarray, " M"]) -> float:
    """(worst - chosen) / (worst - best): 1 for the best choice, 0 for the worst; 1 if all are equal."""
    span = float(np.ptp(true))
    return 1.0 - regret(choice, true) / span if span > 0 else 1.0


def rmse(predicted: Float[np.ndarray, " M"], true: Float[np.ndarray, " M"]) -> float:
    """Root mean square error of the loss, in its unit."""
    return float(np.sqrt(np.mean((predicted - true) ** 2)))


def log_rmse(predicted: Float[np.ndarray, " M"], true: Float[np.ndarray, " M"]) -> float:
    """Root mean square error of log loss."""
    return rmse(np.log(predicted), np.log(true))


def evaluate(prediction: Prediction, true: Float[np.ndarray, " M"]) -> dict[str, float]:
    """All of `METRICS`, over the models with both a score and a true loss.

    The choice is the first model of `Prediction.order`, and its ranks are Spearman's; errors and Pearson's correlation
    are those of the score.

    NaN where a metric does not apply: errors of a method that predicts no loss, coverage of one that gives no
    interval, anything of a method that could judge no model. A method that predicts no loss is correlated by its
    quality, which is large where the score is small, as published for ModelSize: a perfect one has -1. Regret and
    relative accuracy look for the best among all models with a true loss, so a method pays for a model it cannot
    judge.
    """
    known = np.isfinite(true)
    judged = known & prediction.choosable
    result = dict.fromkeys(METRICS, float("nan"))
    if not judged.any():
        return result
    score, loss = prediction.score[judged], true[judged]
    compared = score if prediction.is_loss else -score
    key = prediction.score if prediction.expected_regret is None else prediction.expected_regret
    ranked = key[judged] if prediction.is_loss else -key[judged]
    result["pearson"], result["spearman"] = pearson(compared, loss), spearman(ranked, loss)
    chosen = int(known[: next(i for i in prediction.order if judged[i])].sum())
    result["regret"] = regret(chosen, true[known])
    result["relative_accuracy"] = relative_accuracy(chosen, true[known])
    if prediction.is_loss:
        result["rmse"], result["log_rmse"] = rmse(score, loss), log_rmse(score, loss)
    if prediction.lower is not None and prediction.upper is not None:
        inside = (prediction.lower[judged] <= loss) & (loss <= prediction.upper[judged])
        result["coverage90"] = float(inside.mean())
    return result
