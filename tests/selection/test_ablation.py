import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from lensjax.core.errors import InputError
from lensjax.curves.table import curve_table
from lensjax.fit.lensllm import fitting as lensllm
from lensjax.fit.lensllm.fitting import fit_lensllm
from lensjax.fit.residuals import stack_residuals
from lensjax.selection.ablation import Comparison, compare_variants

SIZES = np.array([0, 100, 200, 400, 800, 1600])
HORIZON = 12_800
PAIR = ("tied", "hierarchical")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Fewer times and populations, and as many draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lensllm, "TIMES", 4)
        patch.setattr(lensllm, "POPULATIONS", 40)
        yield


@pytest.fixture(scope="module")
def study():
    """Four models at five sizes, as a small study has them; the last two have four and two of them."""
    rng = np.random.default_rng(0)
    residuals = stack_residuals([(np.array([1.0, 0.1]), np.exp(rng.standard_normal(2))) for _ in range(4)])
    d_l, beta = np.exp(rng.uniform(0.5, 2, (4, 1))), rng.uniform(0.2, 0.4, (4, 1))
    loss = 6 / (d_l + SIZES**beta) + 1
    loss *= np.exp(0.004 * rng.standard_t(3, loss.shape))
    loss[2, 5] = np.nan
    loss[3, 3:] = np.nan
    return curve_table("abcd", SIZES, loss), residuals


@pytest.fixture(scope="module")
def comparison(study):
    return compare_variants(study[0], HORIZON, study[1], PAIR)


def made_of(gains):
    """A comparison in which the NTK term adds so much to the log density of each model."""
    zero = np.zeros((len(gains), 2))
    gained = np.stack([gains, gains], axis=1)
    return Comparison(tuple("abcdefgh"[: len(gains)]), {"tied": gained, "hierarchical": zero}, {}, {})


def test_models_are_scored_where_sizes_are_left_to_fit(comparison):
    assert comparison.models == tuple("abcd")
    for values in (comparison.log_density, comparison.log_error):
        assert tuple(values) == PAIR
        for each in values.values():
            np.testing.assert_array_equal(np.isfinite(each), [[True, True]] * 3 + [[False, False]])


def test_the_largest_sizes_are_predicted_from_those_before(study, comparison):
    table, _ = study
    loss = table.loss.copy()
    loss[[0, 1, 2], [5, 5, 4]] = np.nan
    seen = curve_table(table.models, table.sizes, loss)
    posterior = fit_lensllm(seen, HORIZON, variant="hierarchical")
    found = posterior.predict(np.array([800, 1600])).loss
    assert comparison.evidence["hierarchical"] == posterior.evidence
    expected = np.log([found[0, 1] / table.loss[0, 5], found[1, 1] / table.loss[1, 5], found[2, 0] / table.loss[2, 4]])
    np.testing.assert_allclose(comparison.log_error["hierarchical"][:3, 0], expected, rtol=1e-6)
    assert np.all(np.abs(comparison.log_error["hierarchical"][:3]) < 0.1)
    assert np.all(comparison.log_density["hierarchical"][:3] < norm.logpdf(0, scale=1e-4))


def test_scores_are_means_over_models(comparison):
    density, error = comparison.scores["tied"]
    np.testing.assert_allclose(density, comparison.log_density["tied"][:3].mean(axis=0))
    np.testing.assert_allclose(error, np.sqrt((comparison.log_error["tied"][:3] ** 2).mean(axis=0)))


def test_the_difference_is_that_of_means_over_models(comparison):
    each = (comparison.log_density["tied"] - comparison.log_density["hierarchical"])[:3].mean(axis=1)
    assert comparison.difference == pytest.approx((each.mean(), each.std(ddof=1) / np.sqrt(3)))


def test_verdicts():
    gains = np.array([0.5, 0.6, 0.4, 0.5])
    assert made_of(gains).verdict == (
        "The NTK term helped here: it changed the log density of a held-out loss by +0.50 ± 0.04 nats "
        "(mean and standard error over 4 models)."
    )
    assert "term hurt here" in made_of(-gains).verdict
    assert "made no difference here" in made_of(gains - 0.5).verdict
    assert "made no difference here" in made_of(np.zeros(4)).verdict
    assert "cannot be told" in made_of(gains[:1]).verdict
    # Few models need a larger difference, as Student's t has it.
    spread = np.array([-1.0, 0.0, 1.0])
    limit = student.ppf(0.95, 2) * spread.std(ddof=1) / np.sqrt(3)
    assert "made no difference" in made_of(spread + 0.99 * limit).verdict
    assert "helped" in made_of(spread + 1.01 * limit).verdict


def test_too_few_sizes_are_named(study):
    table, residuals = study
    with pytest.raises(InputError, match="needs three sizes above 0"):
        compare_variants(table.up_to(200), HORIZON, residuals)
