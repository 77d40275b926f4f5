from dataclasses import replace

import numpy as np

from lensjax.curves.table import curve_table
from lensjax.fit.joint.fitting import fit_joint
from lensjax.fit.thinning import MANY, PER_OCTAVE, thinned

DENSE = np.unique(np.geomspace(200, 51_200, 120).round().astype(int))
LADDER = 200 * 2 ** np.arange(9)


def lines(sizes, slopes=(0.05, 0.1)):
    return [[3 * (size / 200) ** -(slope / np.log(2)) for size in sizes] for slope in slopes]


def test_curves_of_a_usual_number_of_points_stay_as_they_are():
    table = curve_table("ab", LADDER, lines(LADDER))
    assert thinned(table) is table
    table = curve_table("ab", DENSE[:MANY], lines(DENSE[:MANY]))
    assert thinned(table) is table


def test_points_of_a_straight_curve_lie_on_it_and_single_wild_ones_do_not_move_them():
    losses = np.array(lines(DENSE))
    losses[0, 7::12] *= 3
    found = thinned(curve_table("ab", DENSE, losses))
    np.testing.assert_allclose(found.loss, lines(found.sizes), rtol=4e-3)  # half a step, at most
    assert len(found.sizes) <= PER_OCTAVE * np.log2(51_200 / 200) + 1
    assert 0.55 < found.seeds.sum() / losses.size < 0.75  # about 2 / π, in whole runs


def test_a_sparse_model_and_the_losses_before_fine_tuning_stay_beside_a_dense_one():
    sizes = np.union1d([0], np.union1d(DENSE, LADDER))
    sparse = np.where(np.isin(sizes, [0, *LADDER]), 2.0, np.nan)
    table = curve_table("ab", sizes, [np.linspace(4, 3, len(sizes)), sparse], families=["x", "y"])
    table = replace(table, seeds=3 * table.seeds)
    found = thinned(table)
    own = found.measured[1]
    np.testing.assert_array_equal(found.sizes[own], [0, *LADDER])
    np.testing.assert_array_equal(found.seeds[1, own], 3)
    assert found.column(0)[0] == 4.0
    assert found.families == ("x", "y")
    assert len(found.models) == 2
    np.testing.assert_array_equal(thinned(found).loss, found.loss)


def test_the_joint_fit_of_dense_curves_is_close_to_that_of_all_their_points(monkeypatch):
    rng = np.random.default_rng(0)
    losses = np.array(lines(DENSE[:72])) * np.exp(0.01 * rng.normal(size=(2, 72)))
    table = curve_table("ab", DENSE[:72], losses)
    fast = fit_joint(table, 51_200)
    assert fast.observations.x.shape[1] < 72 / 2
    monkeypatch.setattr("lensjax.fit.joint.fitting.thinned", lambda table: table)
    whole = fit_joint(table, 51_200)
    at = [DENSE[71], 51_200]
    far = np.log(fast.predict(at).loss / whole.predict(at).loss)
    assert np.all(np.abs(far) < 0.5 * whole.predict(at).log_sd)
