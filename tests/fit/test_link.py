"""The link from losses to a metric, on measurements drawn from known ones."""

import numpy as np
import pytest
from scipy.special import expit

from lensjax.fit.link import NotLinked, fit_link

EXAMPLES = 1000


def curves(seed, models=5, sizes=6):
    """Losses that fall, and offsets of the models."""
    random = np.random.default_rng(seed)
    log = random.normal(0, 0.2, (models, 1)) - np.linspace(0, 1.2, sizes) * random.uniform(0.7, 1.3, (models, 1))
    return np.exp(log), random.normal(0, 0.15, (models, 1)), random


def measured(rates, random):
    value = random.binomial(EXAMPLES, rates) / EXAMPLES
    return value, np.sqrt(value * (1 - value) / EXAMPLES)


def fit(loss, value, error, by_chance=False, **settings):
    return fit_link(loss, value, error, by_chance=by_chance, **settings)


LINKS = {
    "sigmoid of log loss": lambda loss, offset: expit(0.5 + offset - 2.5 * np.log(loss)),
    "sigmoid of loss": lambda loss, offset: expit(0.5 + offset - 3 * (loss - 0.6)),
    "product over tokens": lambda loss, offset: np.exp(-1.5 * loss * np.exp(offset)),
}


@pytest.mark.parametrize("kind", LINKS)
def test_intervals_hold_at_lower_losses_than_were_measured(kind):
    inside, errors = [], []
    for seed in range(4):
        loss, offset, random = curves(seed)
        value, error = measured(LINKS[kind](loss, offset), random)
        link = fit(loss[:, :5], value[:, :5], error[:, :5], draws=1000)
        assert link.examples == pytest.approx(EXAMPLES, rel=1e-6)
        draws = link.measured(np.repeat(loss[None, :, 5], 1000, 0), np.arange(1000))
        low, middle, high = np.quantile(draws, (0.05, 0.5, 0.95), axis=0)
        inside.append((low <= value[:, 5]) & (value[:, 5] <= high))
        errors.append(abs(middle - value[:, 5]))
        assert (high - low).max() < 0.5
    assert np.mean(inside) >= 0.75
    assert np.mean(errors) < 0.06


def test_what_models_get_right_by_chance_is_learned():
    loss, offset, random = curves(1, sizes=8)
    value, error = measured(0.25 + 0.75 * LINKS["sigmoid of log loss"](3 * loss, offset), random)
    link = fit(loss, value, error, by_chance=True, draws=1000)
    assert abs(np.median(link.chance) - 0.25) < 0.06
    assert (fit(loss, value, error, draws=10).chance == 0).all()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (lambda loss: np.where(np.arange(loss.size).reshape(loss.shape) < 3, 0.5, np.nan), "known at 3 points"),
        (np.zeros_like, "it is near 0 everywhere, from 0.000 to 0.000"),
        (np.ones_like, "it is near 1 everywhere"),
        (lambda loss: np.full_like(loss, 0.3), "it is near 0.30 everywhere"),
        (lambda loss: expit(np.log(loss)), "does not clearly rise as the loss of a model falls"),
        (lambda loss: np.random.default_rng(0).uniform(0.2, 0.8, loss.shape), "does not clearly rise"),
        (lambda loss: np.linspace(0.2, 0.8, len(loss))[:, None] + 0 * loss, "does not clearly rise"),
    ],
)
def test_what_losses_do_not_tell_is_not_linked(value, why):
    loss, *_ = curves(0)
    with pytest.raises(NotLinked, match=why):
        fit(loss, value(loss), np.full(loss.shape, 0.01))
