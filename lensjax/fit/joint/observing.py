"""A table's curves as the joint model takes them."""

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from lensjax.core.errors import InputError, shorten
from lensjax.curves.table import CurveTable
from lensjax.fit.joint.hierarchy import Observations


def observe(
    table: CurveTable,
    unit: int,
    extra: Mapping[str, ArrayLike],
    *,
    family: bool = True,
    size: bool = True,
    level: bool = True,
) -> tuple[Observations, float]:
    """The table as arrays, less the mean log loss, which is returned too.

    Args:
      table: measured curves of M models with two sizes above 0 at least.
      unit: size of octave 0, in examples.
      extra: further covariates of each model, by name.
      family, size, level: whether those of models may explain their slopes.

    Raises:
      InputError: a covariate is not one number per model.
    """
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
    if size:
        columns.append(_standardised(log_parameters))
    if level:
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
    names = [(family and name) or f"\0{i}" for i, name in enumerate(table.families)]
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
