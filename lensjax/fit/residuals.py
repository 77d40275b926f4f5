"""Residuals F_i(t) of training linearised by each model's kernel, with one t for all models."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from lensjax.core.errors import InputError

_BEFORE, _AFTER = 0.05, 5.0  # of the time that a direction takes
_SHARE, _SLOWEST = 1e-3, 1e-9  # of the squared residual, and of the fastest rate: directions below do not count


class Residuals(NamedTuple):
    """F_i(t) = Σ_k weights_ik exp(−2 rates_ik t) of M models, each of K directions; weights of padding are 0.

    Attributes:
      rates: how fast each direction is learnt, η times the eigenvalues of Θ_i / N.
      weights: squared residual along each direction, over N; NaN for models without a kernel.
    """

    rates: Float[np.ndarray, "M K"]
    weights: Float[np.ndarray, "M K"]

    def log_f(self, t: Float[ArrayLike, ""]) -> Float[Array, " M"]:
        """log F_i(t)."""
        return jax.nn.logsumexp(-2 * self.rates * t, b=self.weights, axis=1)

    def check(self, models: int) -> None:
        """Raise InputError where these are residuals of another number of models."""
        if len(self.rates) != models:
            raise InputError(
                f"The residuals are of {len(self.rates)} models, the table has {models}; give one for each, None "
                "where it is not known."
            )


def stack_residuals(
    modes: Sequence[tuple[Float[ArrayLike, " K"], Float[ArrayLike, " K"]] | None], eta: float = 1.0
) -> Residuals:
    """The residuals of M models from the eigenvalues and weights of each (see `dynamics.residual_modes`).

    Args:
      modes: eigenvalues of Θ / N, and squared residuals over N along the eigenvectors; None where unknown.
      eta: learning rate of all.

    Raises:
      InputError: no model's are known, or a model's numbers are not finite, negative, or all 0.
    """
    width = max((np.size(known[0]) for known in modes if known is not None), default=0)
    if not width:
        raise InputError("No model has a kernel; measure it of two models at least, or leave residuals out.")
    rates, weights = np.zeros((len(modes), width)), np.full((len(modes), width), np.nan)
    for i, known in enumerate(modes):
        if known is None:
            continue
        values, squares = (np.asarray(x, np.float64) for x in known)
        good = values.shape == squares.shape and np.isfinite(values).all() and np.isfinite(squares).all()
        if not (good and (values >= 0).all() and (squares >= 0).all() and squares.sum() > 0):
            raise InputError(
                f"The residual of model {i} (counted from 0) needs as many eigenvalues as weights, all finite and from "
                "0 up, and a weight above 0; measure its kernel again."
            )
        rates[i, : values.size], weights[i] = eta * values, 0.0
        weights[i, : values.size] = squares
    return Residuals(rates, weights)


def candidate_times(residuals: Residuals, count: int) -> Float[np.ndarray, " count"]:
    """Times from before a typical model has learnt anything to after it has learnt nearly all, evenly spaced in log t.

    Raises:
      InputError: all kernels are 0.
    """
    known = [(r, w) for r, w in zip(residuals.rates, residuals.weights, strict=True) if np.isfinite(w).all()]
    learnt = [rates[(weights > _SHARE * weights.sum()) & (rates > _SLOWEST * rates.max())] for rates, weights in known]
    fastest, slowest = ([pick(rates) for rates in learnt if rates.size] for pick in (np.max, np.min))
    if not fastest:
        raise InputError("All kernels are 0, so that no time is learnt from them; leave residuals out.")
    return np.geomspace(_BEFORE / np.median(fastest), _AFTER / np.median(slowest), count)
