from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "decisions"
TASKS, RATIOS = ("one", "two", "three"), (8, 64)


@pytest.fixture(scope="module")
def history(imported):
    with imported(FOLDER, "cases", "judging", "report", "history") as modules:
        yield modules["history"]


def outcomes(history, shared, own, seed=0):
    """Errors of 20_000 models, of which a part is the same on all tasks."""
    rng = np.random.default_rng(seed)
    common, found = rng.normal(0, shared, 20_000), {}
    for task in TASKS:
        for ratio in RATIOS:
            predicted = rng.normal(0, 0.2, 20_000)
            error = 0.7 + common + rng.normal(0, own, 20_000)
            found[task, ratio] = history.Outcome(predicted, np.full(20_000, np.hypot(shared, own)), predicted + error)
    return found


@pytest.mark.parametrize("standardised", [False, True])
def test_errors_that_tasks_share_are_foreseen_and_others_are_left_alone(history, standardised):
    def left(shared, own):
        found = outcomes(history, shared, own)
        rest = found["one", 8].true - history.corrected(found, "one", 8, standardised)
        return rest.std() / found["one", 8].error.std()

    # Of an error with correlation ρ to two others that are alike, 1 - 2 ρ² / (1 + ρ) of the variance is left.
    assert left(0.1, 0.1) == pytest.approx(np.sqrt(1 - 2 * 0.25 / 1.5), rel=0.02)
    assert left(0.0, 0.1) == pytest.approx(1, abs=0.02)


def test_the_task_itself_teaches_nothing(history):
    found = outcomes(history, 0.1, 0.1)
    before = history.corrected(found, "one", 8, True)
    true = found["one", 64].true[::-1]
    changed = found | {("one", ratio): found["one", ratio]._replace(true=true) for ratio in RATIOS}
    np.testing.assert_array_equal(history.corrected(changed, "one", 8, True), before)
