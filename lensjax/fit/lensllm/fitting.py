"""The LensLLM method: rectified laws of all models of a task, tied to the NTK's residuals by a shared time.

LensLLM (arXiv 2505.03793) replaces D_l of the rectified law by F(Θ, t), the squared error that linearised training at
the pretrained weights leaves after a time t. With a t for every model that claims nothing: F is one positive number of
each model, as D_l is. It is a claim once t is shared::

    L_i(D) = B_i / (D_l,i + D^β_i) + E_i,    log D_l,i = a + b log F_i(t) + ε_i

with t, a and b learned from all curves at once. Four variants assume more or less of this, which separates the effect
of the NTK from that of sharing (see `lensjax.selection.ablation`)::

    tied          t, a, b and the spread of ε learned
    published     a = 0, b = 1, ε = 0: the paper's law, with one t for all models
    hierarchical  b = 0: models share a population of D_l, and kernels say nothing
    free          each model's D_l by itself, under a weak prior

In all of them B (by way of the loss at the middle of the measured sizes), β and E come from a population with learned
means and spreads, and noise is Student-t. `lensjax.fit.lensllm.law_hierarchy` integrates single models out; t is
integrated out on a grid, since its posterior has several modes. Few curves of few points leave much open, and then
intervals are wide.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float
from scipy.special import expit, logsumexp, softmax
from scipy.stats import t as student

from lensjax.core.errors import InputError, listing, shorten
from lensjax.curves.table import CurveTable
from lensjax.fit.joint.shapes import USUAL_SLOPE
from lensjax.fit.joint.slopes import NOISE
from lensjax.fit.lensllm.law_hierarchy import (
    COORDINATES,
    D_L,
    DOF,
    NUMBERS,
    Feature,
    Mode,
    PaddedCurves,
    Prior,
    draw_coordinates,
    find_mode,
    natural,
    prior_mode,
)
from lensjax.fit.linalg import float64_on_cpu
from lensjax.fit.posterior import DRAWS, CurvePosterior, Losses, check_fit
from lensjax.fit.residuals import Residuals, candidate_times

Variant = Literal["tied", "published", "hierarchical", "free"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
NEEDS_KERNELS = ("tied", "published")

TIMES = 24  # of the grid of t
POPULATIONS = 500  # that are drawn, with DRAWS // POPULATIONS sets of models' parameters each
POINTS, MODELS = 8, 4  # curves and models are padded to multiples of so many, so that few shapes are compiled

# Prior of log L at the middle of the measured sizes less its mean over models, log β, log D_l and logit E / L there:
# sd of the population's mean, and median and log-sd of its spread. Medians of β, D_l and E are those of the joint
# fitter's law; see `_prior`. Wider priors of means let curves that are concave at first end in too high an E: twice
# these had larger errors 8 and 16 times beyond budgets of 1,600 to 25,600 examples of the public curves.
MEAN_SD = np.array([1.0, 0.5, 1.0, 0.5])
SPREAD = np.array([0.3, 0.3, 0.5, 0.5])
LOG_SPREAD_SD = np.array([1.0, 0.8, 0.8, 0.8])
FREE_SPREAD = 2.0  # of a log D_l that is its model's own
B_SD = 1.0  # around 0, so that 1, the paper's, is as likely as not
LOG_NOISE_SD = 0.8
USUAL_SHARES = (0.7, -0.7)  # logits of the shares of the transition that is behind us and of the loss that stays


_stack = partial(jax.tree.map, lambda *leaves: np.stack(leaves))  # of trees, along a new first axis


class CredibleInterval(NamedTuple):
    """Medians and central 90 % intervals, of a shared number or of one of each of M models."""

    value: Float[np.ndarray, "*M"]
    lower: Float[np.ndarray, "*M"]
    upper: Float[np.ndarray, "*M"]


@dataclass(frozen=True, repr=False)
class LensLLMPosterior(CurvePosterior):
    """Posterior over the curves of M models, as S equally probable draws of all that is unknown.

    Made by `fit_lensllm`. Predictions are of a loss that would be measured: they include the noise of a fine-tuning
    run that has not happened yet.

    Attributes:
      models: M names.
      unit: smallest measured size.
      horizon: largest size that can be asked about.
      variant: which of `VARIANTS` was fitted.
      evidence: log marginal likelihood of the measured log losses, by Laplace's method.
      law: draws of B, D_l, beta and E of the rectified law, in examples and the unit of losses.
      noise: draws of the scale of a single run's log loss.
      intercept, slope: draws of a and b.
      times: draws of t; None where kernels were not used.
    """

    models: tuple[str, ...]
    unit: int
    horizon: int
    variant: Variant
    evidence: float
    law: dict[str, Float[np.ndarray, "S M"]]
    noise: Float[np.ndarray, " S"]
    intercept: Float[np.ndarray, " S"]
    slope: Float[np.ndarray, " S"]
    times: Float[np.ndarray, " S"] | None = None

    @property
    def parameters(self) -> dict[str, CredibleInterval]:
        """B, D_l, beta and E of every model's rectified law, in examples and the unit of losses."""
        return {name: _interval(draws) for name, draws in self.law.items()}

    def law_parameters(self) -> dict[str, Float[np.ndarray, " M"]]:
        """See `CurvePosterior.law_parameters`; medians."""
        return {name: interval.value for name, interval in self.parameters.items()}

    @property
    def a(self) -> CredibleInterval:
        """log D_l where log F is 0, in units of D^β; held at 0 in the variant "published"."""
        return _interval(self.intercept)

    @property
    def b(self) -> CredibleInterval:
        """Change of log D_l with log F: held at 1 in the variant "published", at 0 where kernels are not used."""
        return _interval(self.slope)

    @property
    def time(self) -> CredibleInterval | None:
        """The shared t, in steps of gradient descent at the residuals' learning rate; None where there is none."""
        return None if self.times is None else _interval(self.times)

    def predict(self, examples: int | Float[np.ndarray, " G"]) -> Losses:
        """See `CurvePosterior.predict`."""
        sizes = self._within(examples)
        noise = self.noise[:, None] * np.random.default_rng(0).standard_t(DOF, (len(self.noise), len(self.models)))
        intervals = [_interval(self._log_loss(size) + noise) for size in sizes]
        parts = np.exp(np.array(intervals).reshape(len(sizes), 3, len(self.models)))
        return Losses(self.models, sizes, *np.moveaxis(parts, 0, -1))

    def sample(self, examples: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draws M"]:
        """See `CurvePosterior.sample`."""
        (size,) = self._within(examples)
        rng = np.random.default_rng(seed)
        rows = rng.choice(len(self.noise), draws, replace=draws > len(self.noise))
        noise = self.noise[rows, None] * rng.standard_t(DOF, (draws, len(self.models)))
        return np.exp(self._log_loss(size)[rows] + noise)

    def log_density(self, table: CurveTable) -> Float[np.ndarray, "M S"]:
        """Log predictive density of each measured log loss of a table, in nats; NaN where nothing was measured.

        Args:
          table: losses of the same models at any sizes D > 0; means over k seeds are as precise as k runs.

        Raises:
          InputError: a size is outside the fitted range, or the models are others.
        """
        if table.models != self.models:
            raise InputError(f"The losses are of other models than the {len(self.models)} fitted; give those.")
        density = np.full(table.loss.shape, np.nan)
        for column in np.flatnonzero(table.measured.any(axis=0) & (table.sizes > 0)):
            (size,) = self._within(int(table.sizes[column]))
            scale = self.noise[:, None] / np.sqrt(np.maximum(table.seeds[:, column], 1))
            each = student.logpdf(np.log(table.loss[:, column]), DOF, self._log_loss(size), scale)
            density[:, column] = logsumexp(each, axis=0) - np.log(len(each))
        return density

    def _log_loss(self, size: float) -> Float[np.ndarray, "S M"]:
        """Draws of the curves, without noise."""
        return np.log(self.law["B"] / (self.law["D_l"] + size ** self.law["beta"]) + self.law["E"])


def fit_lensllm(
    table: CurveTable, horizon: int, residuals: Residuals | None = None, variant: Variant = "tied"
) -> LensLLMPosterior:
    """Fit one variant of the LensLLM law to all curves of a table at once.

    Points at D = 0 are not used: a pretrained model's loss is not on its fine-tuning curve. The law has one there,
    B / D_l + E, but with it earlier points of the public curves predicted later ones worse on FLAN, better on Gigaword,
    and a little worse in the mean. Sizes may differ between models and points may be missing. Losses averaged over k
    seeds count as k times as precise. A model without a kernel has an unknown log F, distributed as the others' are.
    Intervals are those of the law: they hold where curves follow it. Deterministic; runs in float64 on the CPU,
    whatever JAX's defaults are.

    Args:
      table: curves of M models with at least two sizes D > 0 each.
      horizon: largest number of examples to predict for.
      residuals: of linearised training under each model's kernel; variants that are not in `NEEDS_KERNELS` ignore them.
      variant: which numbers are learned and which are held.

    Returns:
      The posterior over all curves up to the horizon.

    Raises:
      InputError: there is no such variant, a model has fewer than two points, the horizon lies below a measured size,
        or residuals are needed and are missing, of another number of models, or known of fewer than two.
    """
    if variant not in VARIANTS:
        raise InputError(f"There is no variant '{shorten(variant)}' of LensLLM; choose from {listing(VARIANTS)}.")
    used = check_fit(table, horizon, "LensLLM")
    times, log_f = None, np.zeros((1, len(table.models)))
    if variant in NEEDS_KERNELS:
        times, log_f = _log_f(residuals, len(table.models), variant)
    means = np.nanmean(log_f, axis=1)
    with float64_on_cpu():
        curves, centre = _observe(table, used)
        priors = [_prior(variant, float(curves.middle), mean) for mean in means]
        features = [_feature(row, len(curves.y)) for row in log_f]
        modes: list[Mode] = []
        for given in zip(features, priors, strict=True):  # times are close, and so are modes
            modes.append(find_mode(curves, *given, modes[-1] if modes else prior_mode(len(curves.y))))
        evidences, roots = zip(*map(_laplace, modes), strict=True)
        rng = np.random.default_rng(0)
        # As many populations of each time as its share of the evidence; the fraction left over is drawn.
        places = (np.arange(POPULATIONS) + rng.random()) / POPULATIONS
        chosen = np.searchsorted(np.cumsum(softmax(evidences))[:-1], places)
        scores = [modes[k].u + roots[k] @ rng.standard_normal(NUMBERS) for k in chosen]
        of = _stack(*(priors[k] for k in chosen)).population(np.stack(scores))
        each = DRAWS // POPULATIONS
        noise = jnp.asarray(rng.standard_normal((POPULATIONS, each, len(curves.y), COORDINATES)))
        given, start = _stack(*((features[k], modes[k].models) for k in chosen))
        theta = draw_coordinates(curves, given, of, start, noise)
        law = natural(theta[:, :, : len(table.models)].reshape(-1, len(table.models), COORDINATES), curves.middle)
    of = jax.tree.map(np.asarray, of)
    shared = {"noise": of.noise, "intercept": of.mean[:, D_L] - of.b * means[chosen], "slope": of.b}
    if times is not None:
        shared["times"] = times[chosen]
    units = {"B": np.exp(centre), "E": np.exp(centre)}
    return LensLLMPosterior(
        models=table.models,
        unit=int(table.sizes[used].min()),
        horizon=horizon,
        variant=variant,
        evidence=float(logsumexp(evidences) - np.log(len(evidences))),
        law={name: units.get(name, 1.0) * np.asarray(draws) for name, draws in law.items()},
        **{name: np.repeat(draws, each) for name, draws in shared.items()},
    )


def _log_f(residuals: Residuals | None, models: int, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """Times, and log F of all models at each."""
    if residuals is None:
        raise InputError(f"The variant '{variant}' needs the residuals of the models' kernels; give them.")
    residuals.check(models)
    known = int(np.isfinite(residuals.weights).all(axis=1).sum())
    if known < 2:
        raise InputError(f"Kernels are known of {known} model; measure those of two at least, or leave residuals out.")
    times = candidate_times(residuals, TIMES)
    with float64_on_cpu():
        log_f = np.stack([np.asarray(residuals.log_f(t)) for t in times])
    return times, log_f


def _observe(table: CurveTable, used: Bool[np.ndarray, " S"]) -> tuple[PaddedCurves, float]:
    """The used columns of the table as padded arrays, less the mean log loss, which is returned too."""
    log_d, log_loss = np.log(table.sizes[used]), np.log(table.loss[:, used])
    present = np.isfinite(log_loss)
    centre = float(np.nanmean(np.nanmean(log_loss, axis=1)))
    padding = (0, -len(log_loss) % MODELS), (0, -len(log_d) % POINTS)

    def padded(values: np.ndarray) -> Array:
        return jnp.asarray(np.pad(values, padding))

    curves = PaddedCurves(
        log_d=padded(np.broadcast_to(log_d, log_loss.shape)),
        y=padded(np.where(present, log_loss - centre, 0.0)),
        present=padded(present),
        seeds=jnp.maximum(padded(table.seeds[:, used].astype(np.float64)), 1.0),
        middle=jnp.asarray((log_d[0] + log_d[-1]) / 2),
    )
    return curves, centre


def _feature(log_f: Float[np.ndarray, " M"], width: int) -> Feature:
    """log F less its mean, padded; that of a model without a kernel is as uncertain as the others vary."""
    known = np.isfinite(log_f)
    mean = np.where(known, log_f - log_f[known].mean(), 0.0)
    spread = np.where(known, 0.0, log_f[known].std())
    padding = (0, width - len(log_f))
    return Feature(jnp.asarray(np.pad(mean, padding)), jnp.asarray(np.pad(spread, padding)))


def _prior(variant: Variant, middle: float, log_f: float) -> Prior:
    """The variant as a prior, in which held numbers have no spread.

    Args:
      middle: log of the size in the middle of those measured.
      log_f: mean log F over models.
    """
    logit_s, logit_rho = USUAL_SHARES
    beta = USUAL_SLOPE / (np.log(2) * expit(logit_s) * expit(-logit_rho))
    mean, mean_sd = np.array([0.0, np.log(beta), beta * middle - logit_s, logit_rho]), MEAN_SD.copy()
    log_spread, log_spread_sd = np.log(SPREAD), LOG_SPREAD_SD.copy()
    b, b_sd = 0.0, 0.0
    if variant == "tied":
        b_sd = B_SD
    elif variant == "published":
        mean[D_L], log_spread[D_L], b = log_f, -np.inf, 1.0
    elif variant == "free":
        log_spread[D_L] = np.log(FREE_SPREAD)
    if variant in ("published", "free"):
        mean_sd[D_L] = log_spread_sd[D_L] = 0.0
    centre = np.concatenate([mean, log_spread, [b, np.log(NOISE)]])
    sd = np.concatenate([mean_sd, log_spread_sd, [b_sd, LOG_NOISE_SD]])
    return Prior(jnp.asarray(centre), jnp.asarray(sd))


def _laplace(mode: Mode) -> tuple[float, Float[np.ndarray, "N N"]]:
    """Log evidence, and a root of the covariance about the mode, which is at most that of the prior."""
    values, vectors = np.linalg.eigh(np.asarray(mode.hessian))
    values = np.maximum(values, 1.0)
    # The symmetric root, since the signs of vectors are arbitrary: like posteriors have like draws.
    return -float(mode.energy) - np.log(values).sum() / 2, (vectors / np.sqrt(values)) @ vectors.T


def _interval(draws: Float[np.ndarray, "S ..."]) -> CredibleInterval:
    return CredibleInterval(*np.quantile(draws, (0.5, 0.05, 0.95), axis=0))
