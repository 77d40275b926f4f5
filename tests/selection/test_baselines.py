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


def test_successive_halving_drops_the_worse_half_at_every_rung():
    # "late" would win at the largest size but is dropped before it; "gap" is compared by what was measured before
    models = ["late", "steady", "good", "gap", "bad"]
    loss = [
        [5.0, 5.0, 4.9, 0.1],
        [3.0, 2.8, 2.6, 2.4],
        [3.1, 2.7, 2.5, 2.3],
        [3.2, 2.9, NAN, 2.0],
        [9.0, 8.0, 7.0, 6.0],
    ]
    table = curve_table([*models, "none"], [100, 200, 400, 800], [*loss, [NAN] * 4])
    prediction = METHODS["successive_halving"].predict(table, 1600)
    assert not prediction.is_loss
    order = [models[i] for i in np.argsort(prediction.score)[:5]]
    assert order == ["good", "steady", "gap", "late", "bad"]
    assert np.isnan(prediction.score[5])
