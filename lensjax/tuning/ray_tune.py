"""A scheduler of Ray Tune that ends trials by the joint fit of all their curves.

tune.Tuner(train, tune_config=tune.TuneConfig(metric="loss", mode="min", scheduler=JointScheduler(horizon=100)))
"""

import math
from numbers import Real
from typing import Any

from ray.tune.schedulers import FIFOScheduler

from lensjax.core.errors import InputError, shorten
from lensjax.tuning.rule import Rule


class JointScheduler(FIFOScheduler):
    """Begins trials in their order, and ends those that are unlikely to end below the best other one.

    See `lensjax.tuning.rule`. The metric is a loss, which is above 0 and minimised.

    Args:
      horizon: The last step of a trial that is not ended.
      below: Probability of ending below the best other trial, under which a trial is ended.
      trials: Number of trials with three steps or more from which one may be ended.
      time_attr: Name of the steps in results, which count from 1.

    Raises:
      InputError: a number is out of range; in a search, that it maximises, has no metric, or what see `Rule.ends`.
    """

    def __init__(
        self, horizon: int, *, below: float = 0.05, trials: int = 4, time_attr: str = "training_iteration"
    ) -> None:
        super().__init__()
        self._rule, self._time = Rule(horizon, below, trials), time_attr
        self._curves: dict[str, dict[int, float]] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take the metric of the search; Tune calls this before the first trial."""
        if mode == "max":
            raise InputError("The search maximises; report a loss, and set mode to min.")
        self._metric = metric
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether a trial goes on after a result."""
        if self._metric is None:
            raise InputError("The search has no metric; name that of the loss in TuneConfig.")
        if self._metric not in result or self._time not in result:
            return str(self.CONTINUE)
        curve = self._curves.setdefault(trial.trial_id, {})
        curve[self._step(result)] = self._loss(result)
        return str(self.STOP if self._rule.ends(self._curves, trial.trial_id) else self.CONTINUE)

    def _step(self, result: dict[str, Any]) -> int:
        """The step that a result is of."""
        step = result[self._time]
        number = float(step) if isinstance(step, Real) else math.nan
        if not number.is_integer():
            raise InputError(f"A trial reported {shorten(step)} as {self._time}; name a count of steps, from 1.")
        return int(number)

    def _loss(self, result: dict[str, Any]) -> float:
        """The loss in a result."""
        try:
            return float(result[self._metric])  # type: ignore[index]  # arrays of one number, too
        except (TypeError, ValueError, OverflowError) as error:
            loss = shorten(result[self._metric])  # type: ignore[index]
            raise InputError(f"A trial reported {loss} as {self._metric}; report a number.") from error
