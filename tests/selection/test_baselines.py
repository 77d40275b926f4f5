import numpy as np

from lensjax.curves.table import curve_table
from lensjax.selection import METHODS

NAN = np.nan
TABLE = curve_table(
    ["a", "b", "c"],
    [0, 200, 400, 800],
    [[9.0, 3.0, 2.5, 2.0], [8.0, 3.5, 2.8, NAN], [NAN, NAN, NAN, NAN]],
    parameters=[1e6, 1e9, NAN],
)


def score(method):
    return METHODS[method].predict(TABLE, 1600).score


def test_zero_shot_is_the_pretrained_loss():
    np.testing.assert_array_equal(score("zero_shot"), [9.0, 8.0, NAN])
    assert np.isnan(METHODS["zero_shot"].predict(TABLE.up_to(0).select([2]), 1600).score).all()


def test_model_size_prefers_the_larger_and_predicts_no_loss():
    prediction = METHODS["model_size"].predict(TABLE, 1600)
    assert not prediction.is_loss
    np.testing.assert_allclose(prediction.score, [-np.log(1e6), -np.log(1e9), NAN])


def test_sub_tuning_is_the_loss_at_the_largest_size_of_each_model():
    np.testing.assert_array_equal(score("sub_tuning"), [2.0, 2.8, NAN])


def test_laws_and_joint_judge_what_has_two_points():
    for method in ("vanilla_law", "rectified_law", "joint"):
        predicted = score(method)
        assert np.isfinite(predicted[:2]).all()
        assert np.isnan(predicted[2])
        assert (predicted[:2] < [2.0, 2.8]).all()


def test_joint_gives_intervals_around_its_prediction():
    prediction = METHODS["joint"].predict(TABLE, 1600)
    assert (prediction.lower[:2] < prediction.score[:2]).all()
    assert (prediction.score[:2] < prediction.upper[:2]).all()


def test_every_method_has_a_summary():
    assert all(method.summary and method.name == name for name, method in METHODS.items())
