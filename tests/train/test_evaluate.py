"""The loss on a set of examples, the task metrics, and their standard errors."""

import math

import numpy as np
import pytest

from lensjax.tasks.target_bytes import UNKNOWN
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


def test_metrics_are_ratios_over_examples():
    sums, counts, hits = np.array([2.0, 4.0, 9.0]), np.array([1.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0])
    size = np.array([3, 10, 7])
    found = summarise(sums, counts, hits, np.zeros(3, bool), size)
    assert found.bits_per_byte.value == pytest.approx(15 / 20 / math.log(2), rel=1e-12)
    residuals = sums / math.log(2) - found.bits_per_byte.value * size
    assert found.bits_per_byte.standard_error == pytest.approx(math.sqrt(3 / 2 * (residuals**2).sum()) / 20, rel=1e-12)
    assert found.bytes == 20
    assert found.nats_per_example.value == 5.0
    assert found.nats_per_example.standard_error == pytest.approx(np.std(sums, ddof=1) / math.sqrt(3), rel=1e-12)
    assert found.token_accuracy.value == 6 / 8
    assert found.exact_match.value == 2 / 3
    assert found.exact_match.standard_error == pytest.approx(np.std([1, 1, 0], ddof=1) / math.sqrt(3), rel=1e-12)
    assert (found.loss, found.standard_error) == (summarise(sums, counts).loss, summarise(sums, counts).standard_error)


def test_cut_targets_are_no_match_and_their_examples_have_no_whole_loss():
    sums, counts, cut = np.array([2.0, 4.0]), np.array([2.0, 4.0]), np.array([True, False])
    found = summarise(sums, counts, counts, cut, np.array([3, 5]))
    assert found.exact_match.value == 0.5
    assert found.nats_per_example is None
    assert found.bits_per_byte.value == pytest.approx(6 / 8 / math.log(2))
    unknown = summarise(sums, counts, counts, cut, np.array([UNKNOWN, 5]))
    assert (unknown.bits_per_byte, unknown.bytes, unknown.loss) == (None, None, found.loss)
