"""The joint fitter: all curves of a task at once.

Per-model fits of a four-parameter law lose to a straight line, because five to eleven points do not identify
four parameters. Here all models are fitted together: see `lensjax.fit.joint.hierarchy` for the model,
`lensjax.fit.joint.shapes` for its priors. Slopes are positive functions of Gaussian coefficients, whose posterior is
Gaussian to first order about its mode (Gauss and Newton's method). In turn with it, amplitudes, noise and jumps are
learned by maximum marginal likelihood under weak priors (L-BFGS of Optax), and the weights that make noise and level
jumps Student-t. The same fit without the largest sizes predicts them, which shows whether its intervals are wide
enough; if not, they are widened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from lensjax.core.errors import InputError, listing, shorten
from lensjax.curves.table import CurveTable
from lensjax.fit.calibration import hold_out, widenings
from lensjax.fit.joint.hierarchy import Observations, Scales, Slopes, Weights, condition, model_mean, update_weights
from lensjax.fit.joint.posterior import Fitted, JointPosterior
from lensjax.fit.joint.shapes import SHAPES
from lensjax.fit.joint.slopes import NOISE, PRIORS, SlopePrior, linearised, slope_priors
from lensjax.fit.linalg import float64_on_cpu
from lensjax.fit.posterior import Z90, check_fit
from lensjax.fit.residuals import Residuals, candidate_times

LEAST_NOISE = 1e-4  # of log loss: none is known better
LEARN_FROM = 256  # models at most teach the amplitudes; more would add time, not knowledge
ROUNDS = 14  # of learning amplitudes, then weights and slopes
SETTLING = 4  # first rounds, in which amplitudes stay as they are
EVALUATIONS = 10  # of the evidence in a round, at most
MEMORY = 10  # steps that L-BFGS remembers
ENOUGH = 1e-2  # rise of the log evidence in a step, in nats, that ends a round
TIMES = 13  # at which log F is tried
REFINEMENTS = 2  # between the best and its neighbours
LOG_F = "log F"
PADDING = 8  # points and octaves are padded to a multiple of so many, so that few shapes are compiled
SOME = 256  # models are padded to a power of 2 below so many, above to a multiple


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
    """Learned under one prior: `parameters`, which `unpack` reads, robust weights, and coefficients of models."""

    parameters: Float[Array, " h"]
    weights: Weights
    coefficients: Float[Array, "M q"]


def unpack(parameters: Float[Array, " h"], prior: SlopePrior, jumps: bool = True) -> Scales:
    """Scales from a vector of log amplitudes, log noise and log jump."""
    end = prior.amplitudes.size
    amplitudes = jnp.exp(parameters[:end]).reshape(prior.amplitudes.shape)
    paths = jnp.repeat(amplitudes[:, -1:], prior.path.shape[0], axis=1)
    sd = jnp.concatenate([amplitudes[:, :-1], paths], axis=1)
    noise, jump = jnp.hypot(jnp.exp(parameters[end : end + 2]), LEAST_NOISE)
    return Scales(model=sd[0], family=sd[1], covariate=sd[2:], noise=noise, jump=jump * jumps)


def fit_joint(
    table: CurveTable,
    horizon: int,
    covariates: Mapping[str, Float[ArrayLike, " M"]] | None = None,
    settings: JointSettings | None = None,
    residuals: Residuals | None = None,
) -> JointPosterior:
    """Fit all curves of a table at once.

    Points at D = 0 are not used: a pretrained model's loss is not on its fine-tuning curve. Sizes may differ between
    models and points may be missing. Known parameters and families, the loss level and the given covariates may explain
    slopes; how much each does is learned. Losses averaged over k seeds count as k times as precise. Deterministic;
    runs in float64 on the CPU, whatever JAX's defaults are.

    Args:
      table: curves of M models with at least two sizes D > 0 each.
      horizon: largest number of examples to predict for.
      covariates: further numbers of each model known before fine-tuning; NaN where unknown.
      settings: parts to leave out or change.
      residuals: of linearised training under each model's kernel. log F_i(t) is one more covariate, at the one t for
        all models that makes the curves most probable (mean of the log evidence over the slope priors).

    Returns:
      The posterior over all curves up to the horizon.

    Raises:
      InputError: a model has fewer than two points, the horizon lies below a measured size, or a covariate
        is not one number per model.
    """
    settings = settings or JointSettings()
    unit = int(table.sizes[check_fit(table, horizon, "joint")].min())
    octaves = -(-max(1, int(np.ceil(np.log2(horizon / unit) - 1e-9))) // PADDING) * PADDING
    points, known, time = int(table.points().max()), dict(covariates or {}), None

    def fit(table: CurveTable, known: Mapping[str, Float[ArrayLike, " M"]]) -> JointPosterior:
        with float64_on_cpu():
            obs, centre = _observe(table, unit, known, settings, points)
            priors = slope_priors(octaves, obs.covariates.shape[1], settings.priors)
            fitted = jax.block_until_ready(_fit(obs, priors, replace(settings, widen=False)))  # one program for both
        return JointPosterior(
            models=table.models,
            unit=unit,
            horizon=horizon,
            centre=centre,
            observations=obs,
            prior=priors,
            dof=settings.dof,
            fitted=fitted,
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
    common, own = widenings(_errors(fit(seen, known), last), settings.dof, settings.amplitude_sd)
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
    table: CurveTable, unit: int, extra: Mapping[str, ArrayLike], settings: JointSettings, least: int = 0
) -> tuple[Observations, float]:
    """The table as arrays padded to at least so many points, less the mean log loss, which is returned too."""
    positive = table.sizes > 0
    octaves = np.log2(table.sizes[positive] / unit)
    log_loss, seeds = np.log(table.loss[:, positive]), table.seeds[:, positive]
    measured = np.isfinite(log_loss)
    points = measured.sum(axis=1)
    width = -(-max(least, int(points.max())) // PADDING) * PADDING
    padding = _padded(len(points)) - len(points)
    order = np.argsort(~measured, axis=1, kind="stable")  # measured first, by size

    def packed(values: np.ndarray) -> np.ndarray:
        ordered = np.take_along_axis(values, order, axis=1)
        ordered = np.pad(ordered, ((0, 0), (0, max(0, width - ordered.shape[1]))))[:, :width]
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

    def rows(values: np.ndarray) -> Array:
        """With models that were not measured, of whom nothing follows."""
        return jnp.asarray(np.pad(values, ((0, padding), *[(0, 0)] * (values.ndim - 1))))

    obs = Observations(
        x=rows(x),
        y=rows(y - centre),
        present=rows(np.arange(width) < points[:, None]),
        noise=rows(1.0 / np.maximum(packed(seeds.astype(np.float64)), 1.0)),
        covariates=rows(np.stack(columns, axis=1)),
        family=rows(np.asarray([number[name] for name in names])),
    )
    return obs, centre


def _padded(models: int) -> int:
    """Number of models with those that fill up."""
    if models > SOME:
        return -(-models // SOME) * SOME
    return max(PADDING, 1 << (models - 1).bit_length())


def _standardised(values: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    """Mean 0 and standard deviation 1; 0 where unknown, and everywhere if all known values agree."""
    known = np.isfinite(values)
    if not known.any() or np.ptp(values[known]) <= 1e-9 * np.abs(values[known]).max():
        return np.zeros(len(values))
    return np.where(known, (values - values[known].mean()) / values[known].std(), 0.0)


@partial(jax.jit, static_argnames="settings")
def _fit(obs: Observations, priors: SlopePrior, settings: JointSettings) -> Fitted:
    models = obs.x.shape[0]
    some = np.unique(np.linspace(0, models - 1, min(models, LEARN_FROM)).round().astype(int))
    taught = jax.tree.map(lambda leaf: leaf[some], obs)
    # A family's number is below the number of models, which is now smaller.
    taught = taught._replace(family=jnp.unique(taught.family, return_inverse=True, size=len(some))[1])

    def one(prior: SlopePrior) -> Fitted:
        learned, fitted = _learn(taught, prior, settings)
        if len(some) < models:
            _, fitted = _learn(obs, prior, settings, learned.parameters)
        return fitted

    return jax.lax.map(one, priors)


def _learn(
    obs: Observations, prior: SlopePrior, settings: JointSettings, known: Array | None = None
) -> tuple[Learned, Fitted]:
    """Amplitudes, where they are not known, weights and coefficients under one prior."""
    centre = jnp.concatenate([jnp.log(prior.amplitudes).reshape(-1), jnp.full(2, jnp.log(NOISE))])

    def objective(parameters: Array, weights: Weights, slopes: Slopes) -> Array:
        evidence = condition(obs, weights, unpack(parameters, prior, settings.jumps), slopes).evidence
        return -evidence + 0.5 * jnp.sum(((parameters - centre) / settings.amplitude_sd) ** 2)

    def fit(number: Array | int, learned: Learned) -> tuple[Learned, Fitted]:
        parameters, weights, coefficients = learned
        slopes = linearised(prior, coefficients)
        if known is None:
            evaluations = jnp.where((number >= SETTLING) & (number < ROUNDS), EVALUATIONS, 0)
            parameters = _minimise(lambda p: objective(p, weights, slopes), parameters, evaluations)
        scales = unpack(parameters, prior, settings.jumps)
        given = condition(obs, weights, scales, slopes)
        change = model_mean(obs, scales, given) - coefficients
        # Slopes are not linear in the coefficients: where they were measured they change by a factor of e at most.
        now = slopes.mean + jnp.einsum("mtq,mq->mt", slopes.basis, coefficients)
        seen = jnp.arange(now.shape[1]) < jnp.max(jnp.where(obs.present, obs.x, 0.0), axis=1)[:, None]
        factor = jnp.where(seen, jnp.abs(jnp.einsum("mtq,mq->mt", slopes.basis, change)) / now, 0.0)
        share = 1 / jnp.maximum(jnp.max(factor, axis=1), 1.0)
        following = Learned(
            parameters,
            update_weights(obs, weights, scales, given, settings.dof),
            coefficients + share[:, None] * change,
        )
        return following, Fitted(scales, slopes, weights, given)

    even = Weights(jnp.ones_like(obs.x), jnp.ones_like(obs.x))
    count = prior.amplitudes.shape[-1] - 1 + prior.path.shape[0]
    start = Learned(centre if known is None else known, even, jnp.zeros((obs.x.shape[0], count)))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(fit, 0, start)[1])
    # The last round only evaluates, so that everything is compiled once.
    return jax.lax.fori_loop(0, ROUNDS + 1, lambda number, state: fit(number, state[0]), (start, nothing))


class _Descent(NamedTuple):
    """State of `_minimise`; `step` is the share of `direction` that is tried next."""

    point: Array
    value: Array
    gradient: Array
    memory: optax.OptState
    direction: Array
    step: Array
    gain: Array
    evaluations: Array


def _minimise(objective: Callable[[Array], Array], start: Array, evaluations: Array) -> Array:
    """A few steps of L-BFGS with backtracking.

    One loop makes both steps and backtracking, so that the objective is compiled once: compiling takes most
    of the time of a first fit.
    """
    lbfgs = optax.scale_by_lbfgs(memory_size=MEMORY)
    value_and_grad = jax.value_and_grad(objective)

    def evaluate(s: _Descent) -> _Descent:
        point = s.point - s.step * s.direction
        value, gradient = value_and_grad(point)
        slope = jnp.vdot(s.gradient, s.direction)
        better = value <= s.value - 1e-4 * s.step * slope
        bent = jnp.vdot(gradient - s.gradient, point - s.point) > 0
        memory = jax.tree.map(partial(jnp.where, bent), s.memory, lbfgs.init(point))
        direction, memory = lbfgs.update(gradient, memory, point)
        moved = _Descent(point, value, gradient, memory, direction, jnp.ones(()), s.value - value, s.evaluations + 1)
        stayed = s._replace(step=s.step / 4, evaluations=s.evaluations + 1)
        return jax.tree.map(partial(jnp.where, better), moved, stayed)

    zero, infinite = jnp.zeros_like(start), jnp.asarray(jnp.inf)
    first = _Descent(start, infinite, zero, lbfgs.init(start), zero, jnp.zeros(()), infinite, jnp.asarray(0))
    last = jax.lax.while_loop(lambda s: (s.evaluations < evaluations) & (s.gain > ENOUGH), evaluate, first)
    return last.point
