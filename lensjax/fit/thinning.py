"""Curves of very many points, as logs of training are, thinned before they are fitted jointly.

The joint fit's curves are straight within an octave of sizes, on logarithmic scales. So a few points near each other
say what one between them says, at the medians of their log sizes and of their log losses: a straight line stays one,
and single wild points hardly move it.
"""

from dataclasses import replace

import numpy as np

from lensjax.curves.table import CurveTable

MANY = 64  # points of a curve, above which it is thinned
PER_OCTAVE = 4  # points that are left
EFFICIENCY = 2 / np.pi  # of the median of Gaussian noise: it is as good as the mean of so many fewer points


def thinned(table: CurveTable) -> CurveTable:
    """The table with at most four points an octave of each model that has more than 64, at sizes between theirs.

    Points at D = 0 stay as they are. A point made of several counts as measured by the seeds of them all, times 2 / π.

    Args:
      table: measured curves of M models; what else was measured beside losses is left out where curves are thinned.
    """
    dense = table.points() > MANY
    if not dense.any():
        return table
    positive = table.sizes > 0
    octave = np.floor(PER_OCTAVE * np.log2(np.where(positive, table.sizes, 1) / table.sizes[positive].min()) + 1e-9)
    points: dict[tuple[int, int], tuple[float, float, int]] = {}
    for i in range(len(table.models)):
        measured = np.flatnonzero(table.measured[i])
        bins = np.where(positive, octave, -1)[measured] if dense[i] else measured
        for part in np.split(measured, np.flatnonzero(np.diff(bins)) + 1):
            size, loss, seeds = (values[part] for values in (table.sizes, table.loss[i], table.seeds[i]))
            if len(part) == 1:
                points[i, int(size[0])] = float(loss[0]), float(table.loss_sd[i, part[0]]), int(seeds[0])
                continue
            middle = int(np.exp(np.median(np.log(size))).round())
            worth = max(1, round(EFFICIENCY * float(np.maximum(seeds, 1).sum())))
            points[i, middle] = float(np.exp(np.median(np.log(loss)))), np.nan, worth
    sizes = np.unique([size for _, size in points])
    shape = (len(table.models), len(sizes))
    loss, loss_sd, seeds = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, np.int64)
    rows, columns = np.array([i for i, _ in points]), np.searchsorted(sizes, [size for _, size in points])
    loss[rows, columns], loss_sd[rows, columns], seeds[rows, columns] = zip(*points.values(), strict=True)
    return replace(table, sizes=sizes, loss=loss, loss_sd=loss_sd, seeds=seeds, metrics={})
