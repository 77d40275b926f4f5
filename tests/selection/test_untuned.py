"""Whether fine-tuning is worth it: gains over the same model before, and over the best one before."""

import numpy as np
import pytest

from lensjax.curves.table import curve_table
from lensjax.selection.prediction import Prediction
from lensjax.selection.untuned import untuned, untuned_warnings

NAN = float("nan")


@pytest.fixture
def table():
    return curve_table(["a", "b", "c"], [0, 200, 400], [[2.0, 2.2, 1.9], [3.0, 2.5, 2.0], [NAN, 2.4, 2.3]])


def test_gains_are_of_the_draws_of_the_ranking(table):
    draws = np.array([[1.9, 1.8, 1.0], [2.1, 1.7, NAN], [1.8, 2.1, 1.0], [1.9, 1.9, 1.0]])
    found = untuned(table, Prediction(np.median(draws, axis=0), draws=draws))
    np.testing.assert_allclose(found.gain, [0.1, 1.15, NAN])
    np.testing.assert_allclose(
        found.lower[:2], np.quantile([[0.1, -0.1, 0.2, 0.1], [1.2, 1.3, 0.9, 1.1]], 0.05, axis=1)
    )
    np.testing.assert_allclose(found.probability, [0.75, 1.0, NAN])
    assert found.best == 0
    np.testing.assert_allclose(found.over_best, [0.75, 0.75, NAN])
    assert untuned_warnings(table, found, 1) == [
        "Fine-tuning on few examples made 1 of 3 models worse than they were before: a at 200 (2.200, before 2.000). "
        "At those sizes they are better as they are.",
        "Fine-tuning may not be worth it: b is better at the target than a before fine-tuning (2.000) with probability "
        "0.75 only.",
    ]


def test_models_that_may_not_be_chosen_are_no_reference(table):
    found = untuned(table.barring({"a": "it is too large"}), Prediction(np.array([1.9, 1.8, 1.7])))
    assert found.best == 1
    assert found.probability is found.over_best is found.lower is None
    np.testing.assert_allclose(found.gain, [0.1, 1.2, NAN])


def test_nothing_is_said_where_nothing_was_measured_before(table):
    prediction = Prediction(np.array([1.9, 1.8, 1.7]))
    later = curve_table(["a", "b", "c"], [200, 400], table.loss[:, 1:])
    assert untuned(later, prediction) is None
    assert untuned(table, Prediction(prediction.score, is_loss=False)) is None
    assert untuned_warnings(later, None, 0) == []
