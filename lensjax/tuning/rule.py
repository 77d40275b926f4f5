"""When a trial of a search ends early: where it is unlikely to end below the one that is expected to end lowest.

The loss of a trial against its steps is a curve like that of a model against its examples, and trials of one search are
alike as models of one task are, so the joint fit of them all (`lensjax.fit.joint.fitting.fit_joint`) says how they go
on. Unlike successive halving this compares trials at the last step, not at the step that they have come to.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from lensjax.core.errors import InputError, shorten
from lensjax.curves.table import curve_table
from lensjax.selection.methods import METHODS

MOST = 32  # trials in a fit: those of the longest curves, the lowest first
FEWEST = 3  # steps of a trial before it is judged

Curve = Mapping[int, float]  # loss by step; a step of 0 is before training, and no part of the fit


@dataclass(frozen=True)
class Rule:
    """When trials end early.

    Attributes:
      horizon: Step at which trials are compared, the last one of a trial that is not ended.
      below: Probability of ending below the best other trial, under which a trial is ended.
      trials: Number of trials with enough steps, this one among them, from which one may be ended.
    """

    horizon: int
    below: float = 0.05
    trials: int = 4

    def __post_init__(self) -> None:
        for name in ("horizon", "trials"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise InputError(f"{name} is {shorten(value)}; give a whole number.")
        if self.horizon < 1:
            raise InputError(f"horizon is {self.horizon}; give the last step of a trial, 1 or more.")
        if not 0 < self.below < 1:
            raise InputError(f"below is {self.below}; give a probability between 0 and 1.")
        if self.trials < 2:
            raise InputError(f"trials is {self.trials}; give 2 or more.")

    def ends(self, curves: Mapping[str, Curve], name: str) -> bool:
        """Whether a trial ends now: judged after its third step, and then whenever its steps have doubled.

        Args:
          curves: Losses of all trials so far, those that ended too, by the trial's name.
          name: Of a trial that has just made a step.

        Raises:
          InputError: a loss is not above 0, or a step is beyond the horizon.
        """
        steps = sorted(step for step in curves[name] if step > 0)
        if not steps:
            return False
        if not math.isfinite(curves[name][steps[-1]]):
            return True
        due = len(steps) == FEWEST or (len(steps) > FEWEST and steps[-1].bit_length() > steps[-2].bit_length())
        chance = self.chance(curves, name) if due and steps[-1] < self.horizon else None
        return chance is not None and chance < self.below

    def chance(self, curves: Mapping[str, Curve], name: str) -> float | None:
        """P(a trial ends below the other that is expected to end lowest); None while there are too few trials.

        Args, Raises: See `ends`.
        """
        known = {one: _checked(one, curve, self.horizon) for one, curve in curves.items()}
        known = {one: curve for one, curve in known.items() if len(curve) >= FEWEST}
        if name not in known or len(known) < self.trials:
            return None
        others = sorted((one for one in known if one != name), key=lambda one: _place(known[one]))[: MOST - 1]
        names, sizes = [name, *others], sorted({step for one in (name, *others) for step in known[one]})
        loss = [[known[one].get(step, np.nan) for step in sizes] for one in names]
        draws = METHODS["joint"].predict(curve_table(names, sizes, loss), self.horizon).draws
        if draws is None:
            return None
        best = 1 + int(draws[:, 1:].mean(axis=0).argmin())
        return float((draws[:, 0] < draws[:, best]).mean())


def _checked(name: str, curve: Curve, horizon: int) -> dict[int, float]:
    """The finite losses of a trial after its steps above 0."""
    known = {step: loss for step, loss in curve.items() if step > 0 and math.isfinite(loss)}
    for step, loss in known.items():
        if loss <= 0:
            raise InputError(
                f"Trial {shorten(name)} reported {loss:g} at step {step}; report a loss above 0, which is lower for a "
                "better trial."
            )
        if step > horizon:
            raise InputError(f"Trial {shorten(name)} reported step {step}, beyond the horizon {horizon}; raise that.")
    return known


def _place(curve: Curve) -> tuple[int, float]:
    """Where a trial stands among those of which some are left out."""
    return -len(curve), curve[max(curve)]
