"""The cheapest model that is nearly as good as the best, and the Pareto front of loss and cost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensjax.core.errors import InputError
from lensjax.curves.table import curve_table
from lensjax.selection.cheaper import Preference, choice_sentence, costs_of, on_front, standing_within, too_large
from lensjax.selection.prediction import Prediction

NAN = float("nan")
COSTS = st.lists(st.sampled_from([1.0, 2.0, 3.0, NAN]), min_size=6, max_size=6)


def prediction_of(draws, eligible=None):
    return Prediction(np.median(draws, axis=0), draws=draws, eligible=eligible)


@given(cost=COSTS, regret=st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, NAN]), min_size=6, max_size=6))
def test_the_front_is_of_all_models_that_none_dominates(cost, regret):
    front = on_front(np.array(cost), np.array(regret))
    known = [i for i in range(6) if np.isfinite(cost[i]) and np.isfinite(regret[i])]

    def dominates(j, i):
        """Whether j is as good as i in both, and better in one, or equal and before it."""
        as_good = cost[j] <= cost[i] and regret[j] <= regret[i]
        return as_good and (cost[j], regret[j], j) < (cost[i], regret[i], i)

    wanted = [i in known and not any(dominates(j, i) for j in known) for i in range(6)]
    assert [bool(on) for on in front] == wanted


@given(cost=COSTS, seed=st.integers(0, 9), margin=st.sampled_from([0.01, 0.3, 1.0]), barred=st.integers(0, 5))
def test_no_cheaper_model_is_within_the_margin_and_the_choice_is_on_the_front(cost, seed, margin, barred):
    rng, cost, eligible = np.random.default_rng(seed), np.array(cost), np.arange(6) != barred
    draws = rng.normal(rng.normal(size=6), 0.5, (200, 6))
    prediction, mean = prediction_of(draws, eligible), np.where(eligible, draws.mean(axis=0), np.inf)
    best = int(np.argmin(mean))
    if not np.isfinite(cost[eligible]).any():
        with pytest.raises(InputError, match="The models' parameters are not known, by which the smallest is chosen"):
            Preference(margin).among(prediction, {"parameters": cost})
        return
    found = Preference(margin).among(prediction, {"parameters": cost})
    assert found.best == best == prediction.choice
    assert found.given_up == pytest.approx(mean[found.choice] - mean[best])
    assert found.given_up <= margin
    if np.isnan(cost[best]):
        assert found.choice == best
    else:
        assert not any(cost[i] < cost[found.choice] and mean[i] - mean[best] <= margin - 1e-12 for i in range(6))
        assert on_front(cost, prediction.expected_regret)[found.choice]
    within = draws - draws[:, eligible].min(axis=1, keepdims=True) - margin
    np.testing.assert_allclose(found.probability, np.where(eligible, (within <= 0).mean(axis=0), NAN))
    np.testing.assert_allclose(found.shortfall, np.where(eligible, within.clip(0).mean(axis=0), NAN))


def test_no_margin_gives_the_numbers_of_the_ranking():
    prediction = prediction_of(np.random.default_rng(0).normal(size=(500, 4)), np.array([True, False, True, True]))
    chances, shortfalls = standing_within(prediction, 0.0)
    np.testing.assert_allclose(chances, prediction.probability_best)
    np.testing.assert_allclose(shortfalls, prediction.expected_regret)


def test_without_draws_predicted_losses_decide():
    table = curve_table(["a", "b"], [200, 400], np.ones((2, 2)), parameters=[3e6, 2e6])
    found = Preference(0.06).among(Prediction(np.array([1.0, 1.05])), costs_of(table))
    assert (found.best, found.choice, found.probability) == (0, 1, None)
    assert choice_sentence(table, found, costs_of(table)) == (
        "b (2M parameters) is the smallest that is expected to be within 0.06 nats per token of the best, a "
        "(3M parameters): it gives up 0.05."
    )
    none = Preference(0.01).among(Prediction(np.array([1.0, 1.05])), costs_of(table))
    assert choice_sentence(table, none, costs_of(table)) == (
        "No model that takes fewer parameters is expected to be within 0.01 nats per token of a."
    )
    with pytest.raises(InputError, match="predicts an order of models and no losses"):
        Preference(0.06).among(Prediction(np.array([1.0, 1.05]), is_loss=False), costs_of(table))
    with pytest.raises(InputError, match="to give up is 0; give a positive number"):
        Preference(0)


def test_limits_are_told_in_digits_that_differ():
    table = curve_table(["a", "b", "c"], [200], np.ones((3, 1)), parameters=[124_439_808, NAN, 5e6])
    assert too_large(table, 1e8) == {
        "a": "it has 124M parameters, and at most 100M are allowed",
        "b": "its number of parameters is not known, and at most 100M are allowed",
    }
    told = "it has 124,439,808 parameters, and at most 124,439,807 are allowed"
    assert too_large(table.select([0, 2]), 124_439_807) == {"a": told}
