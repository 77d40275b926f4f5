"""The loss on a set of examples, and its standard error."""

import math

import numpy as np

from lensjax.train.evaluate import summarise


def test_loss_is_the_mean_over_tokens_and_its_error_that_over_examples():
    random = np.random.default_rng(0)

    def draw(n):
        counts = random.integers(1, 30, n).astype(float)
        return counts * random.gamma(4, 0.5, n), counts

    estimates = [summarise(*draw(200)) for _ in range(2000)]
    truth = np.std([found.loss for found in estimates])
    assert abs(np.mean([found.standard_error for found in estimates]) / truth - 1) < 0.05
    assert abs(np.mean([found.loss for found in estimates]) - 2.0) < 0.01


def test_counts_and_a_single_example():
    found = summarise(np.array([2.0, 4.0]), np.array([1.0, 3.0]))
    assert (found.loss, found.examples, found.tokens) == (1.5, 2, 4)
    assert math.isnan(summarise(np.array([2.0]), np.array([4.0])).standard_error)
