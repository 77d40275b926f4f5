from dataclasses import dataclass, replace

import numpy as np
import pytest

from lensjax.curves.simulated import simulated
from lensjax.fit.joint.moments import JointMoments
from lensjax.fit.joint.recent import joint_fit
from lensjax.fit.posterior import Z90, CurvePosterior, Losses
from lensjax.fit.stacked.learned import COMPONENTS, LEARNED, Learned, Record, shares
from lensjax.fit.stacked.posterior import StackedPosterior
from lensjax.fit.stacked.weights import backtest, largest, stack

TARGET = 1_638_400
TABLE = simulated(models=8).up_to(12_800)
EVEN = Learned((0.0,) * 4, 0.0, 1.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Straight(CurvePosterior):
    """Two curves that fall by .1 and .2 per octave from 0 at 100 examples, with Gaussian errors, all shared."""

    models: tuple[str, ...] = ("slow", "fast")
    unit: int = 100
    horizon: int = 6400
    widening: float = 1.0
    centre: float = 0.5

    def _mean_sd(self, examples):
        octaves = np.log2(self._within(examples) / 100)
        return -np.array([[0.1], [0.2]]) * octaves, 0.02 * (1 + octaves) + np.zeros((2, 1))

    def predict(self, examples):
        mean, sd = self._mean_sd(examples)
        ends = (np.exp(mean + z * sd) for z in (0, -Z90, Z90))
        return Losses(self.models, np.atleast_1d(examples), *ends)

    def sample(self, examples, draws=4000, seed=0):
        mean, sd = self._mean_sd(examples)
        return np.exp(mean[:, 0] + sd[:, 0] * np.random.default_rng(seed).standard_normal((draws, 1)))

    def moments(self, target, model, examples):
        (mean, sd), (each, each_sd) = self._mean_sd(target), self._mean_sd(examples)
        points = np.arange(len(model))
        of_points, their_sd = each[model, points], each_sd[model, points]
        covariance = their_sd[:, None] * sd[:, 0]
        parts = mean[:, 0] - self.centre, sd[:, 0] ** 2, of_points - self.centre, their_sd**2, covariance
        return JointMoments(*(part[None] for part in parts))

    def law_parameters(self):
        return {}


@pytest.fixture
def stacked():
    """The joint fit and a second component, by which nothing falls, half and half, from 400 examples on."""
    last, half = np.array([400.0, 400.0]), np.array([0.5, 0.5])
    return StackedPosterior(Straight(), last, half, half, np.zeros((1, 2)), 1.5, 1.0, 0.0)


def test_falls_beyond_the_largest_size_are_averaged_and_widths_tell_of_disagreement(stacked):
    sizes = np.array([100, 400, 401, 1600])
    found, joint = stacked.predict(sizes), Straight().predict(sizes)
    np.testing.assert_allclose(found.loss[:, :2], joint.loss[:, :2])
    np.testing.assert_allclose(found.loss[:, 2], joint.loss[:, 1], rtol=1e-3)  # it is continuous
    np.testing.assert_allclose(np.log(found.loss[:, 3]), [-0.3, -0.6])
    np.testing.assert_allclose(found.log_sd[:, 1], 1.5 * 0.06)
    np.testing.assert_allclose(found.log_sd[:, 3], np.hypot(1.5 * 0.1, [0.1, 0.2]))


def test_falls_grow_with_octaves_from_the_largest_size_on_and_widths_do_not(stacked):
    sizes = np.array([200, 400, 800, 1600])
    plain, grown = stacked.predict(sizes), replace(stacked, growth=0.1).predict(sizes)
    fall = np.log(plain.loss[:, 1:2] / plain.loss)
    assert (fall[:, 2:] > 0).all()
    np.testing.assert_allclose(np.log(grown.loss), np.log(plain.loss) - [0, 0, 0.1, 0.2] * fall)
    np.testing.assert_allclose(grown.log_sd, plain.log_sd)


@pytest.mark.parametrize("growth", [0.0, 0.3])
def test_draws_and_moments_are_of_the_distribution_whose_quantiles_are_predicted(stacked, growth):
    stacked = replace(stacked, growth=growth)
    draws, found = np.log(stacked.sample(1600, 20_000)), stacked.predict(1600)
    np.testing.assert_allclose(np.quantile(draws, 0.95, axis=0), np.log(found.upper[:, 0]), atol=0.01)
    assert np.corrcoef(draws.T)[0, 1] > 0.999  # errors that models share are still shared
    moments = JointMoments(*map(np.asarray, stacked.moments(1600, np.array([1, 0]), np.array([800, 200]))))
    np.testing.assert_allclose(moments.target_mean[0] + stacked.centre, draws.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(moments.target_variance[0], draws.var(axis=0), rtol=0.05)
    of_fast = np.log(stacked.sample(800, 20_000))[:, 1]
    np.testing.assert_allclose(moments.point_mean[0, 0] + stacked.centre, of_fast.mean(), atol=0.01)
    np.testing.assert_allclose(moments.covariance[0, 0, 0], np.cov(of_fast, draws[:, 0])[0, 1], rtol=0.05)


def test_weights_follow_the_back_test_and_few_points_tell_no_slopes_apart():
    worse = np.array([0.0, 1.0, -1.0, 0.0, 0.0])
    equal, tested = (EVEN.weights(Record(8, worse, errors)) for errors in (0, 40))
    np.testing.assert_allclose(equal, 0.2)
    assert tested.sum() == pytest.approx(1)
    assert tested[2] > tested[0] > tested[1]
    many, few = (LEARNED.weights(Record(points, 0 * worse, 0)) for points in (8, 2))
    assert few[3:].sum() > 2 * many[3:].sum()
    widths = [replace(EVEN, sparse=0.5).width(Record(points, worse, 40)) for points in (2, 8, 30)]
    np.testing.assert_allclose(widths, [2, 1, 1])


def test_where_models_are_many_the_joint_fit_says_how_they_differ():
    weights = np.array([0.5, 0.5])
    few, many = (np.stack([np.linspace(0.1, 1, count), np.full(count, 0.4)]) for count in (20, 80))
    np.testing.assert_allclose(shares(weights, few), weights)
    found = shares(weights, many) @ many
    mean, typical = weights @ many, np.median(weights @ many / many[0])
    np.testing.assert_allclose(found, mean / 4 + typical * many[0] * 3 / 4)
    assert abs(np.median(found / many[0]) - typical) < 1e-9  # which leaves how far a typical one falls
    np.testing.assert_allclose(shares(weights, 0 * many), weights / 4 + [0.75, 0])  # curves that have ended
    steep = np.stack([np.full(80, 1e-4), np.full(80, 0.4)])
    np.testing.assert_allclose(shares(weights, steep), weights / 4 + [1.5, 0])  # the joint fit sees next to no fall
    table = simulated(models=40, families=4).up_to(12_800)
    found = stack(table, joint_fit(table, TARGET), TARGET)
    np.testing.assert_allclose(found.shares[1:], found.weights[1:] / 2)
    assert found.shares[0] > found.weights[0]


def test_the_back_test_tells_which_components_foresee_the_largest_sizes():
    slopes = np.linspace(0.02, 0.4, 8)[:, None]  # straight lines, each of its own
    straight = replace(TABLE, loss=3 * np.exp(-slopes * np.log2(TABLE.sizes / 200)))
    record = backtest(straight, joint_fit(straight, TARGET))
    assert (record.points, record.errors) == (7, 8)
    lines, common, none = (record.worse[COMPONENTS.index(name)] for name in ("last_three", "common", "none"))
    assert lines < common < none
    assert lines < 0.1  # the joint fit is no better than what is exact


def test_stacking_lies_between_its_components_grown_and_never_rises():
    joint = joint_fit(TABLE, TARGET)
    assert joint_fit(replace(TABLE), TARGET) is joint  # equal losses are fitted once
    found = stack(TABLE, joint, TARGET)
    sizes = np.geomspace(12_800, TARGET, 9)
    losses, of_joint, last = found.predict(sizes).loss, joint.predict(sizes).loss, largest(TABLE)[1]
    assert (np.diff(losses, axis=1) < 1e-9).all()
    log_fall = np.log(losses[:, :1] / losses[:, -1:])[:, 0]
    falls = (1 + 7 * found.growth) * np.stack([np.log(of_joint[:, 0] / of_joint[:, -1]), *(7 * found.rates)])
    assert (log_fall >= falls.min(axis=0) - 1e-9).all()
    assert (log_fall <= falls.max(axis=0) + 1e-9).all()
    np.testing.assert_allclose(np.log(losses[:, 0]), last, atol=0.1)
    short = stack(TABLE, joint_fit(TABLE, 12_800), 12_800)  # where there is nothing to extrapolate
    np.testing.assert_allclose(short.predict(12_800).loss, joint_fit(TABLE, 12_800).predict(12_800).loss)
    assert set(found.law_parameters()) == {"B", "D_l", "beta", "E"}
