"""Selection methods that look at each model by itself, and the joint one beside them."""

import numpy as np

from lensjax.curves.table import CurveTable
from lensjax.fit.joint.fitting import fit_joint
from lensjax.fit.joint.posterior import JointPosterior
from lensjax.fit.per_model import fit_per_model
from lensjax.selection.methods import Prediction, register


@register("zero_shot", "test loss of the pretrained model (D = 0)")
def zero_shot(table: CurveTable, target: int) -> Prediction:
    """The pretrained loss, unchanged by the target; NaN where it was not measured."""
    return Prediction(table.column(0))


@register("model_size", "bigger is better: -log parameters")
def model_size(table: CurveTable, target: int) -> Prediction:
    """An order, not a loss; NaN where the size is unknown."""
    return Prediction(-np.log(table.parameters), is_loss=False)


@register("sub_tuning", "test loss at the largest measured size")
def sub_tuning(table: CurveTable, target: int) -> Prediction:
    """The loss at each model's largest measured size D > 0, unchanged by the target."""
    measured = table.measured & (table.sizes > 0)
    last = measured.shape[1] - 1 - np.argmax(measured[:, ::-1], axis=1) if measured.size else 0
    losses = table.loss[np.arange(len(table.models)), last] if measured.size else np.nan
    return Prediction(np.where(measured.any(axis=1), losses, np.nan))


@register("vanilla_law", "per-model fit of L = (B / D^β + E)^α")
def vanilla_law(table: CurveTable, target: int) -> Prediction:
    """Least squares in log loss, each model by itself; needs two sizes above 0."""
    return Prediction(fit_per_model(table, "vanilla").predict(target))


@register("rectified_law", "per-model fit of L = B / (D_l + D^β) + E")
def rectified_law(table: CurveTable, target: int) -> Prediction:
    """Least squares in log loss, each model by itself; needs two sizes above 0."""
    return Prediction(fit_per_model(table, "rectified").predict(target))


@register("joint", "all curves at once: law and local-slope priors averaged")
def joint(table: CurveTable, target: int) -> Prediction:
    """The joint fitter of `lensjax.fit.joint.fitting`, over the models with two sizes above 0."""
    fitted = np.flatnonzero(table.points() >= 2)
    found, widening = np.full((3, len(table.models)), np.nan), 1.0
    if fitted.size:
        prediction = joint_prediction(fit_joint(table.select(fitted), target), target)
        found[:, fitted] = prediction.score, prediction.lower, prediction.upper
        widening = prediction.widening
    return Prediction(found[0], lower=found[1], upper=found[2], widening=widening)


def joint_prediction(posterior: JointPosterior, target: int) -> Prediction:
    """What a joint posterior says of the losses at `target` examples."""
    losses = posterior.predict(target)
    lower, upper = losses.lower[:, 0], losses.upper[:, 0]
    return Prediction(losses.loss[:, 0], lower=lower, upper=upper, widening=posterior.widening)
