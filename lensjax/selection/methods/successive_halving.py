"""Successive halving (Jamieson & Talwalkar, AISTATS 2016): the better half of the models goes on to the next size."""

import math

import numpy as np

from lensjax.curves.table import CurveTable
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction


@register("successive_halving", "the better half goes on to the next size, up to the largest", place=4.5)
def successive_halving(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """An order, not a loss: those that went further first, and by their loss where they stopped.

    With M models the last ⌈log2 M⌉ sizes D > 0 are rungs: all models are compared at the first, the better half at the
    next, and two at the largest. A model that was not measured at a rung is compared by its largest size before.
    """
    order: list[int] = []  # worst first
    alive = np.flatnonzero(table.points() > 0)
    rungs = np.flatnonzero((table.sizes > 0) & table.measured.any(axis=0))[
        -max(1, math.ceil(math.log2(max(2, len(alive))))) :
    ]
    for rung in rungs:
        seen = table.loss[alive][:, : rung + 1][:, table.sizes[: rung + 1] > 0]
        known = np.isfinite(seen)
        last = known.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
        loss = np.where(known.any(axis=1), seen[np.arange(len(alive)), last], np.inf)
        best_first = alive[np.argsort(loss, kind="stable")]
        keep = len(alive) if rung == rungs[-1] else math.ceil(len(alive) / 2)
        order += best_first[keep:][::-1].tolist()
        alive = best_first[:keep]
    score = np.full(len(table.models), np.nan)
    score[[*order, *alive[::-1].tolist()]] = -np.arange(len(order) + len(alive), dtype=np.float64)
    return Prediction(score, is_loss=False)
