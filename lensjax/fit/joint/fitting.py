"""The joint fitter: all curves of a task at once.

Per-model fits of a four-parameter law lose to a straight line, because five to eleven points do not identify
four parameters. Here all models are fitted together: see `lensjax.fit.joint.hierarchy` for the model,
`lensjax.fit.joint.shapes` for its priors. Slopes are positive functions of Gaussian coefficients, whose posterior is
Gaussian to first order about its mode (Gauss and Newton's method). In turn with it, amplitudes, noise and jumps are
learned by maximum marginal likelihood under weak priors (Optax's L-BFGS, with gradients by Fisher's identity), and the
weights that make noise and level jumps Student-t. The same fit without the largest sizes predicts them, which shows
whether its intervals are wide enough; if not, they are widened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from lensjax.core.errors import InputError, listing, shorten
from lensjax.curves.table import CurveTable
from lensjax.fit.calibration import hold_out, widenings
from lensjax.fit.joint.curves import Fitted
from lensjax.fit.joint.descent import Descent
from lensjax.fit.joint.hierarchy import (
    Observations,
    Scales,
    Slopes,
    Weights,
    condition,
    gradient,
    last_size,
    model_mean,
    sensitivity,
    times,
    update_weights,
)
from lensjax.fit.joint.posterior import JointPosterior
from lensjax.fit.joint.shapes import SHAPES
from lensjax.fit.joint.slopes import NOISE, PRIORS, SlopePrior, linearised, slope_priors, slopes_of
from lensjax.fit.posterior import Z90, check_fit
from lensjax.fit.residuals import Residuals, candidate_times
from lensjax.fit.thinning import thinned

LEAST_NOISE = 1e-4  # of log loss: none is known better
LEARN_FROM = 256  # models at most teach the amplitudes; more would add time, not knowledge
SETTLING = 4  # rounds of learning weights and slopes, in which amplitudes stay as they are
LEARNING = 10  # rounds after these, of learning amplitudes, then weights and slopes
AGAIN = 5  # such rounds where amplitudes start from those of nearly the same curves
EVALUATIONS = 10  # of the evidence in a round, at most
HALVINGS = 8  # of a step of the coefficients, at most
TIMES = 13  # at which log F is tried
REFINEMENTS = 2  # between the best and its neighbours
LOG_F = "log F"


@dataclass(frozen=True)
class JointSettings:
    """The parts of the joint model; `lensjax rank` uses the defaults.

    Attributes:
      priors: slope priors that are averaged, names in `lensjax.fit.joint.shapes.SHAPES`.
      family, size, level: whether a model's family, log size and loss level may explain its slopes.
      jumps: whether levels may jump between sizes.
      widen: whether intervals are widened where those of a fit without the largest sizes were too narrow.
      dof: degrees of freedom of Student's t for noise and jumps, above 2; Gaussian as it grows.
      amplitude_sd: prior standard deviation of the log of every amplitude.
    """

    priors: tuple[str, ...] = PRIORS
    family: bool = True
    size: bool = True
    level: bool = True
    jumps: bool = True
    widen: bool = True
    dof: float = 3.0
    amplitude_sd: float = 0.8

    def __post_init__(self) -> None:
        if not self.priors:
            raise InputError(f"No slope prior is named; choose one or more of {listing(SHAPES.names)}.")
        for name in self.priors:
            SHAPES.check(name)
        if not (self.dof > 2 and self.amplitude_sd > 0):
            raise InputError(
                f"dof is {self.dof} and amplitude_sd {self.amplitude_sd}; give dof above 2 and a positive sd."
            )


class Learned(NamedTuple):
    """Learned under each prior: `parameters`, which `unpack` reads, robust weights, and coefficients of models."""

    parameters: Float[np.ndarray, "P h"]
    weights: Weights
    coefficients: Float[np.ndarray, "P M q"]


def unpack(parameters: Float[np.ndarray, "P h"], prior: SlopePrior, jumps: bool = True) -> Scales:
    """Scales from vectors of log amplitudes, log noise and log jump."""
    amplitudes = np.exp(parameters[:, :-2]).reshape(prior.amplitudes.shape)
    paths = np.repeat(amplitudes[..., -1:], prior.path.shape[-1], axis=-1)
    sd = np.concatenate([amplitudes[..., :-1], paths], axis=-1)
    noise, jump = np.hypot(np.exp(parameters[:, -2:]), LEAST_NOISE).T
    return Scales(model=sd[:, 0], family=sd[:, 1], covariate=sd[:, 2:], noise=noise, jump=jump * jumps)


def _parameters(scales: Scales, prior: SlopePrior) -> Float[np.ndarray, "P h"]:
    """What `unpack` makes these scales of, where there are jumps."""
    rows = np.concatenate([scales.model[:, None], scales.family[:, None], scales.covariate], axis=1)
    amplitudes = rows[..., : prior.centre.shape[1] + 1]
    ends = np.stack([scales.noise, scales.jump], axis=1) ** 2 - LEAST_NOISE**2
    ends = np.sqrt(np.maximum(ends, LEAST_NOISE**2 * 1e-4))
    return np.log(np.concatenate([amplitudes.reshape(len(rows), -1), ends], axis=1))


def _packed(slope: Scales, parameters: Float[np.ndarray, "P h"], prior: SlopePrior) -> Float[np.ndarray, "P h"]:
    """Derivatives by what `unpack` reads from those by the log of every scale."""
    rows = np.concatenate([slope.model[:, None], slope.family[:, None], slope.covariate], axis=1)
    numbers = prior.centre.shape[1]
    amplitudes = np.concatenate([rows[..., :numbers], rows[..., numbers:].sum(axis=-1, keepdims=True)], axis=-1)
    ends = np.exp(2 * parameters[:, -2:])
    ends = np.stack([slope.noise, slope.jump], axis=1) * ends / (ends + LEAST_NOISE**2)
    return np.concatenate([amplitudes.reshape(len(parameters), -1), ends], axis=1)


def fit_joint(
    table: CurveTable,
    horizon: int,
    covariates: Mapping[str, Float[ArrayLike, " M"]] | None = None,
    settings: JointSettings | None = None,
    residuals: Residuals | None = None,
    start: JointPosterior | None = None,
) -> JointPosterior:
    """Fit all curves of a table at once.

    Points at D = 0 are not used: a pretrained model's loss is not on its fine-tuning curve. Sizes may differ between
    models and points may be missing. Known parameters and families, the loss level and the given covariates may explain
    slopes; how much each does is learned. Losses averaged over k seeds count as k times as precise. Curves of very many
    points are thinned first, see `lensjax.fit.thinning`. Deterministic; runs in float64 on the CPU, whatever JAX's
    defaults are.

    Args:
      table: curves of M models with at least two sizes D > 0 each.
      horizon: largest number of examples to predict for.
      covariates: further numbers of each model known before fine-tuning; NaN where unknown.
      settings: parts to leave out or change.
      residuals: of linearised training under each model's kernel. log F_i(t) is one more covariate, at the one t for
        all models that makes the curves most probable (mean of the log evidence over the slope priors).
      start: a fit of nearly the same curves with the same settings and covariates, whose amplitudes are those to start
        from.

    Returns:
      The posterior over all curves up to the horizon.

    Raises:
      InputError: a model has fewer than two points, the horizon lies below a measured size, or a covariate
        is not one number per model.
    """
    settings, table = settings or JointSettings(), thinned(table)
    unit = int(table.sizes[check_fit(table, horizon, "joint")].min())
    octaves = max(1, int(np.ceil(np.log2(horizon / unit) - 1e-9)))
    known, time = dict(covariates or {}), None

    def fit(
        table: CurveTable, known: Mapping[str, Float[ArrayLike, " M"]], start: JointPosterior | None = start
    ) -> JointPosterior:
        obs, centre = _observe(table, unit, known, settings)
        priors = slope_priors(octaves, obs.covariates.shape[1], settings.priors)
        return JointPosterior(
            models=table.models,
            unit=unit,
            horizon=horizon,
            centre=centre,
            observations=obs,
            prior=priors,
            dof=settings.dof,
            fitted=_fit(obs, priors, settings, start),
        )

    if residuals is None:
        posterior = fit(table, known)
    else:
        residuals.check(len(table.models))
        time, posterior = _best_time(lambda t: fit(table, known | {LOG_F: np.asarray(residuals.log_f(t))}), residuals)
        known[LOG_F] = np.asarray(residuals.log_f(time))
    posterior = replace(posterior, time=time)
    seen, last = hold_out(table)
    if not (settings.widen and last.measured.any()):
        return posterior
    common, own = widenings(_errors(fit(seen, known, posterior), last), settings.dof, settings.amplitude_sd)
    return replace(posterior, widening=common, own_widening=own)


def _errors(posterior: JointPosterior, last: CurveTable) -> Float[np.ndarray, " M"]:
    """Errors of predicted log losses, in standard deviations on their side of the median; NaN where none is known."""
    held = np.flatnonzero(last.measured.any(axis=1))
    column = np.argmax(last.measured[held], axis=1)
    sizes, place = np.unique(last.sizes[column], return_inverse=True)
    median, lower, upper = (np.log(part[held, place]) for part in posterior.predict(sizes).parts)
    far = np.log(last.loss[held, column]) - median
    errors = np.full(len(last.models), np.nan)
    errors[held] = Z90 * far / np.where(far > 0, upper - median, median - lower)
    return errors


def _best_time(fit: Callable[[float], JointPosterior], residuals: Residuals) -> tuple[float, JointPosterior]:
    """The time with the largest evidence, on a grid and then between its neighbours; and the fit with it."""
    logs = list(np.log(candidate_times(residuals, TIMES)))
    fits = [fit(float(np.exp(log))) for log in logs]
    for _ in range(REFINEMENTS):
        best = int(np.argmax([one.evidence for one in fits]))
        for between in (best, best + 2):  # the grid grows by the first before the second is placed
            if 0 < between < len(logs):
                logs.insert(between, (logs[between - 1] + logs[between]) / 2)
                fits.insert(between, fit(float(np.exp(logs[between]))))
    best = int(np.argmax([one.evidence for one in fits]))
    return float(np.exp(logs[best])), fits[best]


def _observe(
    table: CurveTable, unit: int, extra: Mapping[str, ArrayLike], settings: JointSettings
) -> tuple[Observations, float]:
    """The table as arrays, less the mean log loss, which is returned too."""
    positive = table.sizes > 0
    octaves = np.log2(table.sizes[positive] / unit)
    log_loss, seeds = np.log(table.loss[:, positive]), table.seeds[:, positive]
    measured = np.isfinite(log_loss)
    points = measured.sum(axis=1)
    width = int(points.max())
    order = np.argsort(~measured, axis=1, kind="stable")  # measured first, by size

    def packed(values: np.ndarray) -> np.ndarray:
        ordered = np.take_along_axis(values, order, axis=1)[:, :width]
        last = np.take_along_axis(ordered, points[:, None] - 1, axis=1)
        return np.where(np.arange(width) < points[:, None], ordered, last)

    x = packed(np.broadcast_to(octaves, log_loss.shape))
    y = packed(np.where(measured, log_loss, 0.0))
    centre = float(y[:, 0].mean())
    fall = np.median((y[:, 0] - y[:, -1]) / (x[:, -1] - x[:, 0]))
    log_parameters = np.log(table.parameters)
    columns = [np.ones(len(points))]
    if settings.size:
        columns.append(_standardised(log_parameters))
    if settings.level:
        columns.append(_standardised(y[:, 0] + fall * x[:, 0]))
    for name, values in extra.items():
        column = np.asarray(values, dtype=np.float64)
        if column.shape != (len(points),) or np.isinf(column).any():
            raise InputError(
                f"The covariate '{shorten(name)}' needs one finite number (or NaN) for each of the "
                f"{len(points)} models."
            )
        columns.append(_standardised(column))
    # A model of unknown family is a family of its own.
    names = [(settings.family and family) or f"\0{i}" for i, family in enumerate(table.families)]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}

    obs = Observations(
        x=x,
        y=y - centre,
        present=np.arange(width) < points[:, None],
        noise=1.0 / np.maximum(packed(seeds.astype(np.float64)), 1.0),
        covariates=np.stack(columns, axis=1),
        family=np.asarray([number[name] for name in names]),
    )
    return obs, centre


def _standardised(values: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    """Mean 0 and standard deviation 1; 0 where unknown, and everywhere if all known values agree."""
    known = np.isfinite(values)
    if not known.any() or np.ptp(values[known]) <= 1e-9 * np.abs(values[known]).max():
        return np.zeros(len(values))
    return np.where(known, (values - values[known].mean()) / values[known].std(), 0.0)


def _fit(obs: Observations, priors: SlopePrior, settings: JointSettings, start: JointPosterior | None = None) -> Fitted:
    models = obs.x.shape[0]
    first = None if start is None else _parameters(start.fitted.scales, priors)
    if models <= LEARN_FROM:
        return _learn(obs, priors, settings, first)[1]
    some = teachers(models)
    taught = Observations(*(part[some] for part in obs))
    taught = taught._replace(family=np.unique(taught.family, return_inverse=True)[1])
    learned, _ = _learn(taught, priors, settings, first)
    return _learn(obs, priors, settings, learned.parameters, known=True)[1]


def teachers(models: int) -> Int[np.ndarray, " L"]:
    """Positions of the models that teach what all share: each, or `LEARN_FROM` spread evenly."""
    return np.unique(np.linspace(0, models - 1, min(models, LEARN_FROM)).round().astype(int))


def _learn(
    obs: Observations,
    prior: SlopePrior,
    settings: JointSettings,
    first: Float[np.ndarray, "P h"] | None = None,
    known: bool = False,
) -> tuple[Learned, Fitted]:
    """Parameters, unless the first ones are known to be right, weights and coefficients under each prior."""
    priors, models = len(prior.names), obs.x.shape[0]
    centre = np.concatenate([np.log(prior.amplitudes).reshape(priors, -1), np.full((priors, 2), np.log(NOISE))], axis=1)
    parameters = centre if first is None else first
    rounds = SETTLING + (LEARNING if first is None else AGAIN)
    coefficients = np.zeros((priors, models, prior.centre.shape[1] + prior.path.shape[-1]))
    weights = Weights(*np.ones((2, priors, *obs.x.shape)))
    descent = Descent(priors, centre.shape[1], settings.amplitude_sd)
    measured = np.arange(prior.path.shape[-1]) < last_size(obs)[:, None]
    change, pace = np.zeros_like(coefficients), np.ones((priors, models, 1))
    for number in range(rounds + 1):  # the last round only evaluates
        slopes = linearised(prior, coefficients)

        if not known and SETTLING <= number < rounds:
            objective = partial(_objective, centre, obs, prior, settings, weights, slopes)
            parameters = descent.lower(objective, parameters, EVALUATIONS)
        scales = unpack(parameters, prior, settings.jumps)
        given = condition(obs, weights, scales, slopes)
        if number == rounds:
            break
        before, change = change, model_mean(obs, scales, given) - coefficients
        # Steps that go back and forth become shorter.
        turned = (
            np.sum(times(slopes.basis, before) * times(slopes.basis, change) * measured, axis=-1, keepdims=True) < 0
        )
        pace = np.where(turned, pace / 2, np.minimum(1.5 * pace, 1.0))
        weights = update_weights(obs, weights, scales, sensitivity(obs, given), settings.dof)
        change = pace * _share(prior, slopes, coefficients, pace * change, measured) * change
        coefficients = coefficients + change
    return Learned(parameters, weights, coefficients), Fitted(scales, slopes, weights, given)


def _share(
    prior: SlopePrior,
    slopes: Slopes,
    coefficients: Float[np.ndarray, "P M q"],
    change: Float[np.ndarray, "P M q"],
    measured: Bool[np.ndarray, "M T"],
) -> Float[np.ndarray, "P M 1"]:
    """Share of a step after which slopes, which are not linear in it, are those of before but for a factor of e.

    Args:
      prior, slopes: the latter are to first order about the coefficients.
      coefficients, change: where the step begins, and the step.
      measured: octaves that count, where curves were measured.
    """
    now = np.maximum(slopes.mean + times(slopes.basis, coefficients), 1e-300)
    factor = np.where(measured, np.abs(times(slopes.basis, change)) / now, 0.0)
    share: np.ndarray = 1 / np.maximum(np.max(factor, axis=-1, keepdims=True), 1.0)
    for _ in range(HALVINGS):
        then = slopes_of(prior, coefficients + share * change)
        away = np.where(measured, np.abs(np.log(np.maximum(then, 1e-300) / now)), 0.0)
        too_far = np.max(away, axis=-1, keepdims=True) > 1.5
        if not too_far.any():
            break
        share = np.where(too_far, share / 2, share)
    return share


def _objective(
    centre: Float[np.ndarray, "P h"],
    obs: Observations,
    prior: SlopePrior,
    settings: JointSettings,
    weights: Weights,
    slopes: Slopes,
    parameters: Float[np.ndarray, "P h"],
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, "P h"]]:
    """Minus the log posterior density of parameters, and its gradient."""
    scales = unpack(parameters, prior, settings.jumps)
    given = condition(obs, weights, scales, slopes)
    rise = _packed(gradient(obs, weights, scales, given, sensitivity(obs, given)), parameters, prior)
    away = (parameters - centre) / settings.amplitude_sd
    return 0.5 * np.sum(away**2, axis=1) - given.evidence, away / settings.amplitude_sd - rise
