"""Per-model fits: every model's own curve, by least squares on log loss.

The laws of `lensjax.curves.laws` are one family, L = (B / (D_l + D^β) + E)^α, and are fitted as one. With D_1 the
smallest measured size above 0, s = log(1 + D_l / D_1^β) and e = E / L(D_1)^(1/α),

    log L(D) = log L(D_1) - α log((1 + ρ) / (1 + e ρ)),    ρ = (D^β - D_1^β) / (D_l + D_1^β),

so a law is a box of shapes (log β, s, e, log α) with equal ends where it has no freedom. In these coordinates
the fit does not depend on the units of data and loss, and log L(D_1) is linear and eliminated.

Given β, s and α, the law is linear in B and E (variable projection), so starts come from a lattice of those
three; the best of each β is refined by a projected Levenberg–Marquardt method. Nothing is random.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from lensjax.core.errors import InputError, listing, shorten
from lensjax.curves.laws import LAWS
from lensjax.curves.table import CurveTable

MIN_BETA, MAX_BETA = 1e-3, 2.0
MIN_ALPHA, MAX_ALPHA = 0.1, 10.0

# The numbers of its shape that each law frees, in this order: n points free n - 1, as the level takes one. The
# rest is 0 (D_l = 0, E = 0, α = 1), so two points are joined by a straight line in log-log.
_SHAPE = ("log_beta", "s", "e", "log_alpha")
_FREED = {
    "power": ("log_beta", "e"),
    "vanilla": ("log_beta", "e", "log_alpha"),
    "rectified": ("log_beta", "s", "e"),
    "lensllm": ("log_beta", "e"),
}

# The lattice of starts, simplest first. A knee is where D^β = D_l, in log D from 0 at the smallest D to 1 at
# the largest.
_BETAS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.2, 2.0)
_KNEES = (-np.inf, 0.0, 0.25, 0.5, 0.75, 1.0, 1.3)
_ALPHAS = (1.0, 0.1, 0.2, 0.4, 0.7, 1.5, 2.5, 5.0, 10.0)
_STEPS = 60

# Models are fitted in blocks and curves padded to a multiple of so many sizes: the lattice stays in cache,
# and one compilation serves all laws and nearly all tables.
_BLOCK, _PADDING = 32, 16


@dataclass(frozen=True)
class PerModelFit:
    """A law fitted to each of M models by itself.

    Attributes:
      law: name of the law in `lensjax.curves.laws.LAWS`.
      models: M names, those of the table.
      parameters: the law's parameters by name (B, D_l or F, beta, E, alpha), with D in examples and L in the
        unit of the table; NaN for a model that was not fitted.
      rmse: root mean square residual of log loss; NaN for a model that was not fitted.
    """

    law: str
    models: tuple[str, ...]
    parameters: dict[str, Float[np.ndarray, " M"]]
    rmse: Float[np.ndarray, " M"]

    def predict(self, examples: ArrayLike) -> Float[np.ndarray, "M ..."]:
        """Test loss after fine-tuning, in the unit of the table; NaN for a model that was not fitted.

        Args:
          examples: a number of training examples, for losses of shape (M,), or G of them, for (M, G).

        Raises:
          InputError: a number of examples is negative or NaN.
        """
        sizes = np.asarray(examples, dtype=np.float64)
        if not np.all(sizes >= 0):
            raise InputError("Losses can be predicted for 0 or more examples only.")
        law = LAWS[self.law]
        with np.errstate(divide="ignore"), jax.enable_x64(True):
            parameters = {name: x.reshape(-1, *[1] * sizes.ndim) for name, x in self.parameters.items()}
            log_loss = jax.jit(law.log_loss)(np.log(sizes)[None], **law.arguments(parameters))
            loss: np.ndarray = np.exp(np.asarray(log_loss))
        return loss


def fit_per_model(
    table: CurveTable, law: str = "rectified", *, log_f: Float[ArrayLike, " M"] | None = None
) -> PerModelFit:
    """Fit a law to every model of a table by least squares on log loss, subject to B, D_l, E ≥ 0.

    Fitted losses are finite and positive at every D > 0 and never increase. Points at D = 0 are left out: a
    pretrained model's loss is not on its fine-tuning curve. Models with fewer than two other points are not
    fitted; with fewer points than the law has parameters, α = 1, E = 0 and then D_l = 0 are assumed. β stays
    within [MIN_BETA, MAX_BETA] and α within [MIN_ALPHA, MAX_ALPHA]. The fit runs in float64 whatever JAX's
    default is.

    Args:
      table: measured curves of M models.
      law: name of a law in `lensjax.curves.laws.LAWS`.
      log_f: for the law "lensllm" only, log F(Θ, t) of each model, F in units of D^β; NaN where unknown, and
        that model is not fitted.

    Raises:
      InputError: there is no such law, or `log_f` is missing, superfluous or not one number per model.
    """
    if law not in LAWS:
        raise InputError(f"There is no law '{shorten(law)}'; choose from {listing(tuple(LAWS))}.")
    if (law == "lensllm") != (log_f is not None):
        raise InputError("The law lensllm, and no other, needs log_f, the log F(Θ, t) of each model.")
    models = len(table.models)
    log_residual = np.full(models, -np.inf) if log_f is None else np.asarray(log_f, dtype=np.float64)
    if log_residual.shape != (models,):
        raise InputError(f"log_f has shape {log_residual.shape}; give one number for each of the {models} models.")

    numbers = {name: np.full(models, np.nan) for name in (*LAWS[law].parameters, "rmse")}
    fitted = np.flatnonzero((table.points() >= 2) & (log_residual < np.inf))
    for start in range(0, len(fitted), _BLOCK):
        rows = np.resize(fitted[start : start + _BLOCK], _BLOCK)  # the last block repeats models to be full
        fits = _fit_block(_curves(table.select(rows), log_residual[rows], law))
        for name, values in numbers.items():
            values[rows] = fits[name]
    return PerModelFit(law, table.models, rmse=numbers.pop("rmse"), parameters=numbers)


class _Curves(NamedTuple):
    """N curves in the coordinates of the fit; one curve inside `vmap`."""

    x: Float[Array, "N S"]  # log(D / D_1), 0 where not measured
    y: Float[Array, "N S"]  # log L less its mean, 0 where not measured
    weight: Float[Array, "N S"]  # 1 where measured, else 0
    mean: Float[Array, " N"]
    log_d1: Float[Array, " N"]
    log_f: Float[Array, " N"]  # -inf (F = 0) except for the law lensllm
    low: Float[Array, "N 4"]
    high: Float[Array, "N 4"]


def _curves(table: CurveTable, log_f: np.ndarray, law: str) -> _Curves:
    sizes = np.flatnonzero(table.sizes > 0)
    padding = (0, -len(sizes) % _PADDING)
    log_d = np.pad(np.log(table.sizes[sizes]), padding)
    log_loss = np.pad(np.log(table.loss[:, sizes]), ((0, 0), padding), constant_values=np.nan)
    measured = np.isfinite(log_loss)
    points = measured.sum(axis=1)
    mean = np.nanmean(log_loss, axis=1)
    log_d1 = np.where(measured, log_d, np.inf).min(axis=1)
    x = np.where(measured, log_d - log_d1[:, None], 0)
    y = np.where(measured, log_loss - mean[:, None], 0)
    # The knee D_l^(1/β) may lie ten times beyond the largest D at the steepest β, and further at others.
    ends: dict[str, tuple[ArrayLike, ArrayLike]] = {
        "log_beta": (np.log(MIN_BETA), np.log(MAX_BETA)),
        "s": (0, MAX_BETA * (x.max(axis=1) + np.log(10))),
        "e": (0, 1),
        "log_alpha": (np.log(MIN_ALPHA), np.log(MAX_ALPHA)),
    }
    low, high = np.zeros((2, len(points), len(_SHAPE)))
    for needed, name in enumerate(_FREED[law], start=2):
        i = _SHAPE.index(name)
        low[:, i], high[:, i] = (np.where(points >= needed, end, 0) for end in ends[name])
    with jax.enable_x64(True):
        arrays = (x, y, measured.astype(np.float64), mean, log_d1, log_f, low, high)
        return _Curves(*map(jnp.asarray, arrays))


def _fit_block(curves: _Curves) -> dict[str, np.ndarray]:
    """Natural parameters of all laws, and the rmse of every curve."""
    with jax.enable_x64(True):
        shape, level, rmse = map(np.asarray, _fit_curves(curves))
    mean, log_d1, log_f = map(np.asarray, (curves.mean, curves.log_d1, curves.log_f))
    beta, s, e, alpha = np.exp(shape[:, 0]), shape[:, 1], shape[:, 2], np.exp(shape[:, 3])
    total = np.exp((mean + level) / alpha)  # B / (D_l + D_1^β) + E
    d_l, f = np.exp(beta * log_d1) * np.expm1(s), np.exp(log_f)
    b = (1 - e) * total * (d_l + f + np.exp(beta * log_d1))
    return {"B": b, "D_l": d_l, "F": f, "beta": beta, "E": e * total, "alpha": alpha, "rmse": rmse}


@jax.jit
@jax.vmap
def _fit_curves(c: _Curves) -> tuple[Float[Array, "4"], Float[Array, ""], Float[Array, ""]]:
    """Shape, level log L(D_1) less `c.mean`, and root mean square residual of the best fit."""
    lattice = jnp.stack(jnp.meshgrid(*map(jnp.asarray, (_BETAS, _KNEES, _ALPHAS)), indexing="ij"), axis=-1)
    starts = jax.vmap(lambda node: _start(node, c))(lattice.reshape(-1, 3))
    squares = jax.vmap(lambda shape: _squares(shape, c))(starts).reshape(len(_BETAS), -1)
    starts = starts.reshape(len(_BETAS), -1, 4)[jnp.arange(len(_BETAS)), _first_least(squares)]
    shapes = jax.vmap(lambda start: _refine(start, c))(starts)
    squares = jax.vmap(lambda shape: _squares(shape, c))(shapes)
    best = _first_least(squares)
    _, level = _residuals(shapes[best], c)
    return shapes[best], level, jnp.sqrt(squares[best] / jnp.sum(c.weight))


def _first_least(squares: Float[Array, "*A N"]) -> Int[Array, "*A"]:
    """Position of the smallest; the first of those that differ by rounding alone, as starts with one optimum do."""
    least = jnp.min(squares, axis=-1, keepdims=True)
    return jnp.argmax(squares <= (1 + 1e-9) * least + 1e-24, axis=-1)


def _rise(log_beta: Array, s: Array, c: _Curves) -> Float[Array, " S"]:
    """ρ = (D^β - D_1^β) / (D_l + D_1^β), D_l being that of s, or F."""
    beta = jnp.exp(log_beta)
    return jnp.expm1(beta * c.x) * jnp.exp(-s) * jax.nn.sigmoid(beta * c.log_d1 - c.log_f)


def _residuals(shape: Float[Array, "4"], c: _Curves) -> tuple[Float[Array, " S"], Float[Array, ""]]:
    """Errors of log loss at the best level, which is returned too."""
    log_beta, s, e, log_alpha = shape
    rise = _rise(log_beta, s, c)
    implied = c.y + jnp.exp(log_alpha) * jnp.log((1 + rise) / (1 + e * rise))
    level = (c.weight @ implied) / jnp.sum(c.weight)
    return c.weight * (implied - level), level


def _squares(shape: Float[Array, "4"], c: _Curves) -> Float[Array, ""]:
    return jnp.sum(_residuals(shape, c)[0] ** 2)


def _start(node: Float[Array, "3"], c: _Curves) -> Float[Array, "4"]:
    """The shape at a node (β, knee, α) of the lattice with the best B, E ≥ 0.

    The two minimise Σ (A p + E q - 1)², A = B / (D_l + D_1^β), the squared relative errors of L^(1/α). Where
    one of them would be negative, the constrained optimum has it at 0.
    """
    beta, knee, alpha = node
    s = jax.nn.softplus(beta * knee * jnp.max(c.x))
    log_beta, s, _, log_alpha = jnp.clip(jnp.stack([jnp.log(beta), s, 0, jnp.log(alpha)]), c.low, c.high)
    q = c.weight * jnp.exp(-c.y / jnp.exp(log_alpha))
    p = q / (1 + _rise(log_beta, s, c))
    columns = jnp.stack([p, q, c.weight])
    (pp, pq, p1), (_, qq, q1), _ = columns @ columns.T
    a = jnp.maximum(p1 * qq - q1 * pq, 0)
    b = jnp.maximum(q1 * pp - p1 * pq, 0)
    e = jnp.where(a + b > 0, b / (a + b), 0)
    return jnp.clip(jnp.stack([log_beta, s, e, log_alpha]), c.low, c.high)


def _refine(start: Float[Array, "4"], c: _Curves) -> Float[Array, "4"]:
    """A local minimum of the squared residuals within the box.

    Levenberg–Marquardt steps are clipped to the box; numbers at an end of their range sit out while the
    gradient points outwards.
    """

    def residuals(shape: Array) -> tuple[Array, Array]:
        values, _ = _residuals(shape, c)
        return values, values

    def step(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        shape, damping = state
        jacobian, errors = jax.jacfwd(residuals, has_aux=True)(shape)
        gradient = errors @ jacobian
        outwards = jnp.where(gradient > 0, shape <= c.low, shape >= c.high)
        free = (c.low < c.high) & ~outwards
        normal = jnp.where(free[:, None] & free[None], jacobian.T @ jacobian, 0)
        normal += jnp.diag(jnp.where(free, damping * jnp.diag(normal) + 1e-30, 1))
        move = jax.scipy.linalg.solve(normal, jnp.where(free, gradient, 0), assume_a="pos")
        candidate = jnp.clip(shape - move, c.low, c.high)
        better = _squares(candidate, c) < errors @ errors
        damping = jnp.maximum(jnp.where(better, damping / 5, damping * 4), 1e-12)
        return jnp.where(better, candidate, shape), damping

    return jax.lax.fori_loop(0, _STEPS, step, (start, jnp.asarray(1e-2)))[0]
