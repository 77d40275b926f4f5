"""Settings that a new study proposes."""

import pytest

from lensjax.study.proposals import propose_ladder


@pytest.mark.parametrize("available", [900, 3200, 40_000, 10**6])
def test_a_study_costs_at_most_half_where_it_can(available):
    ladder = propose_ladder(available)
    assert ladder.budget <= max(available // 8, 400)
    assert ladder.share <= (0.5 if available > 1000 else 0.7)
    assert f"{ladder.total:,} training steps" in ladder.sentence


def test_large_data_keep_the_search_and_long_small_runs():
    ladder = propose_ladder(100_000)
    assert (ladder.budget, len(ladder.rates), ladder.min_steps) == (6400, 3, 500)


def test_a_budget_that_is_given_stays():
    assert propose_ladder(3200, budget=1600).budget == 1600
    assert "smaller budget" in propose_ladder(3200, budget=1600).sentence


def test_too_little_data_is_said():
    ladder = propose_ladder(400)
    assert (ladder.rates, ladder.min_steps) == ((1e-4,), 0)
    assert "So little data is cheaper to fine-tune every candidate on" in ladder.sentence
