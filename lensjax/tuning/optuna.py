"""An Optuna pruner that ends trials by the joint fit of all their curves.

    study = optuna.create_study(pruner=JointPruner(horizon=100))

There is no sampler beside it: the fit knows curves, and nothing of what a trial's parameters do to them.
"""

import optuna
from optuna.trial import FrozenTrial, TrialState

from lensjax.core.errors import InputError
from lensjax.tuning.rule import Rule


class JointPruner(optuna.pruners.BasePruner):
    """Ends trials that are unlikely to end below the best other one; see `lensjax.tuning.rule`.

    Objectives report losses, which are above 0 and minimised, after steps that count from 1:
    `trial.report(loss, step)`, then `trial.should_prune()`.

    Args:
      horizon: The last step of a trial that is not ended.
      below: Probability of ending below the best other trial, under which a trial is ended.
      trials: Number of trials with three steps or more from which one may be ended.

    Raises:
      InputError: a number is out of range; in a search, that it maximises or what see `Rule.ends`.
    """

    def __init__(self, horizon: int, *, below: float = 0.05, trials: int = 4) -> None:
        self._rule = Rule(horizon, below, trials)

    def prune(self, study: "optuna.Study", trial: FrozenTrial) -> bool:
        """Whether a trial ends now; Optuna calls this for `trial.should_prune()`."""
        if study.direction != optuna.study.StudyDirection.MINIMIZE:
            raise InputError("The study maximises; report a loss, and minimise it.")
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = study.get_trials(deepcopy=False, states=states)
        curves = {str(one.number): one.intermediate_values for one in trials}
        curves[str(trial.number)] = trial.intermediate_values
        return self._rule.ends(curves, str(trial.number))
