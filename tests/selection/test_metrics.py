import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from lensjax.selection import metrics
from lensjax.selection.prediction import Prediction

losses = arrays(np.float64, st.integers(3, 12), elements=st.floats(0.1, 10).map(lambda x: round(x, 3)))


@given(losses, st.randoms(use_true_random=False))
def test_correlations_are_scipys(true, random):
    predicted = np.array([x + random.uniform(-1, 1) for x in true])
    assume(np.ptp(true) > 0.01)
    assert metrics.pearson(predicted, true) == pytest.approx(stats.pearsonr(predicted, true)[0], abs=1e-9)
    assert metrics.spearman(predicted, true) == pytest.approx(stats.spearmanr(predicted, true)[0], abs=1e-9)


@given(losses)
def test_the_truth_scores_perfectly(true):
    found = metrics.evaluate(Prediction(true, lower=true, upper=true), true)
    assert found["relative_accuracy"] == 1
    assert found["regret"] == found["rmse"] == found["log_rmse"] == 0
    assert found["coverage90"] == 1


def test_hand_computed_values():
    predicted, true = np.array([1.0, 2.0, 3.0]), np.array([2.0, 1.0, 4.0])
    assert metrics.regret(0, true) == 1.0
    assert metrics.relative_accuracy(0, true) == pytest.approx(2 / 3)
    assert metrics.rmse(predicted, true) == pytest.approx(1.0)
    assert metrics.log_rmse(predicted, true) == pytest.approx(np.sqrt((2 * np.log(2) ** 2 + np.log(4 / 3) ** 2) / 3))


def test_choosing_the_worst_scores_zero_and_equal_losses_one():
    assert metrics.relative_accuracy(1, np.array([1.0, 2.0])) == 0
    assert metrics.relative_accuracy(1, np.array([1.0, 1.0])) == 1


def test_the_choice_is_the_least_expected_regret_s_not_the_lowest_median_s():
    draws = np.array([[1.0, 2.0, 1.5], [1.0, 2.0, 2.5], [90.0, 2.0, 2.5]])  # the first is the lowest, or a disaster
    prediction = Prediction(np.median(draws, axis=0), draws=draws)
    assert prediction.order.tolist() == [1, 2, 0]
    found = metrics.evaluate(prediction, np.array([1.0, 3.0, 4.0]))
    assert found["regret"] == 2.0
    assert found["relative_accuracy"] == pytest.approx(1 / 3)
    assert found["spearman"] == pytest.approx(-0.5)  # of the order
    assert found["log_rmse"] == pytest.approx(metrics.log_rmse(prediction.score, np.array([1.0, 3.0, 4.0])))
    without = metrics.evaluate(prediction, np.array([1.0, np.nan, 4.0]))  # the choice is among those that are known
    assert without["regret"] == 3.0


def test_coverage_counts_intervals_that_hold_the_truth():
    prediction = Prediction(np.ones(4), lower=np.full(4, 0.9), upper=np.full(4, 1.1))
    assert metrics.evaluate(prediction, np.array([1.0, 1.05, 1.2, 0.5]))["coverage90"] == 0.5


def test_an_order_has_no_errors_and_is_correlated_by_quality():
    found = metrics.evaluate(Prediction(np.array([-3.0, -2.0, -1.0]), is_loss=False), np.array([1.0, 2.0, 3.0]))
    assert found["pearson"] == pytest.approx(-1)
    assert found["regret"] == 0
    assert np.isnan([found["rmse"], found["log_rmse"], found["coverage90"]]).all()


def test_a_method_pays_for_a_model_it_cannot_judge():
    found = metrics.evaluate(Prediction(np.array([np.nan, 2.0, 3.0])), np.array([1.0, 2.0, 3.0]))
    assert found["regret"] == 1.0
    assert found["rmse"] == 0.0


def test_models_without_a_true_loss_are_not_scored():
    found = metrics.evaluate(Prediction(np.array([0.5, 2.0, 3.0])), np.array([np.nan, 2.0, 3.0]))
    assert found["regret"] == 0.0


def test_nothing_judged_is_nothing_scored():
    assert np.isnan(list(metrics.evaluate(Prediction(np.full(3, np.nan)), np.ones(3)).values())).all()
