"""The scheduler with Ray's own classes, and on request in a search on a local cluster."""

import os
from types import SimpleNamespace

import pytest

from lensjax.core.errors import InputError

tune = pytest.importorskip("ray.tune")

from lensjax.tuning.ray_tune import JointScheduler  # noqa: E402  # which needs it

HORIZON = 64
SLOPES = [0.3, 0.1, 0.02]


def fed(scheduler):
    """The last step of each trial, all of them a step at a time."""
    trials, steps = {slope: SimpleNamespace(trial_id=f"t{slope}") for slope in SLOPES}, dict.fromkeys(SLOPES, 0)
    left = list(SLOPES)
    for step in range(1, HORIZON + 1):
        for slope in list(left):
            result = {"training_iteration": step, "loss": 4.0 * step**-slope}
            steps[slope] = step
            if scheduler.on_trial_result(None, trials[slope], result) == scheduler.STOP:
                left.remove(slope)
    return steps


def test_hopeless_trials_end_early_and_the_best_does_not():
    scheduler = JointScheduler(HORIZON, trials=3)
    assert scheduler.set_search_properties("loss", "min")
    steps = fed(scheduler)
    assert steps[0.3] == HORIZON
    assert steps[0.02] <= 16


def test_a_search_that_maximises_or_has_no_metric_is_refused():
    with pytest.raises(InputError, match="The search maximises; report a loss, and set mode to min"):
        JointScheduler(HORIZON).set_search_properties("accuracy", "max")
    scheduler = JointScheduler(HORIZON)
    scheduler.set_search_properties(None, None)
    with pytest.raises(InputError, match="The search has no metric; name that of the loss in TuneConfig"):
        fed(scheduler)


@pytest.mark.parametrize(
    ("reported", "sentence"),
    [
        (
            {"training_iteration": float("nan"), "loss": 1.0},
            "reported nan as training_iteration; name a count of steps",
        ),
        ({"training_iteration": 1.5, "loss": 1.0}, "reported 1.5 as training_iteration; name a count of steps"),
        ({"training_iteration": 1, "loss": "low"}, "reported low as loss; report a number"),
        ({"training_iteration": 1, "loss": None}, "reported None as loss; report a number"),
    ],
)
def test_reports_that_are_no_numbers_are_named(reported, sentence):
    scheduler = JointScheduler(HORIZON)
    scheduler.set_search_properties("loss", "min")
    with pytest.raises(InputError, match=sentence):
        scheduler.on_trial_result(None, SimpleNamespace(trial_id="a"), reported)


@pytest.mark.skipif("LENSJAX_TEST_TUNE" not in os.environ, reason="LENSJAX_TEST_TUNE is not set")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_search_on_a_local_cluster(tmp_path):
    import ray

    def train(config):
        for step in range(1, HORIZON + 1):
            tune.report({"loss": 4.0 * step ** -config["slope"]})

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        tuner = tune.Tuner(
            train,
            param_space={"slope": tune.grid_search(SLOPES)},
            tune_config=tune.TuneConfig(metric="loss", mode="min", scheduler=JointScheduler(HORIZON, trials=3)),
            run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
        )
        results = tuner.fit()
    finally:
        ray.shutdown()
    assert results.get_best_result().config["slope"] == 0.3
    steps = {result.config["slope"]: result.metrics["training_iteration"] for result in results}
    assert steps[0.3] == HORIZON
    assert steps[0.02] < HORIZON
