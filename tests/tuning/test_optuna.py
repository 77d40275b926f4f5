"""The pruner in real searches of Optuna."""

import pytest

from lensjax.core.errors import InputError

optuna = pytest.importorskip("optuna")

from lensjax.tuning.optuna import JointPruner  # noqa: E402  # which needs it

HORIZON = 64
SLOPES = [0.3, 0.1, 0.02]


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def made_steps(trial):
    return max(trial.intermediate_values)


def search(direction="minimize"):
    def objective(trial):
        slope = trial.suggest_categorical("slope", SLOPES)
        for step in range(1, HORIZON + 1):
            loss = 4.0 * step**-slope
            trial.report(loss, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return loss

    study = optuna.create_study(
        direction=direction,
        pruner=JointPruner(HORIZON, trials=3),
        sampler=optuna.samplers.GridSampler({"slope": SLOPES}, seed=0),
    )
    for slope in SLOPES:
        study.enqueue_trial({"slope": slope})
    study.optimize(objective, n_trials=len(SLOPES))
    return study


def test_the_best_trial_is_found_and_hopeless_ones_end_early():
    study = search()
    assert study.best_params["slope"] == 0.3
    steps = {trial.params["slope"]: made_steps(trial) for trial in study.trials}
    assert steps[0.3] == steps[0.1] == HORIZON  # too few to end one of them
    assert steps[0.02] <= 16
    assert study.trials[2].state == optuna.trial.TrialState.PRUNED


def test_a_search_that_maximises_is_refused():
    with pytest.raises(InputError, match="The study maximises; report a loss, and minimise it"):
        search("maximize")
