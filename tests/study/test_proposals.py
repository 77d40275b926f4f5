"""Settings that a new study proposes."""

import pytest

from lensjax.study.proposals import Ladder, propose_ladder, propose_lengths
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import Example


@pytest.mark.parametrize("available", [900, 3200, 40_000, 10**6])
def test_a_study_costs_at_most_half_where_it_can(available):
    held_out = min(available // 10, 1000)
    ladder = propose_ladder(available, validation=held_out, test=held_out)
    assert ladder.budget <= max(available // 8, 400)
    assert ladder.share <= (0.5 if available > 1000 else 0.8)
    assert min(held_out, 100) <= ladder.validation <= held_out
    assert f"roughly {100 * ladder.share:.0f} % of fine-tuning every candidate" in ladder.sentence


def test_validations_and_tests_cost_what_they_do():
    ladder = Ladder(400, 6400, (1e-4, 3e-4), 120, validation=50, test=80)
    assert ladder.passes(0) == 80
    # 120 steps of 32 rows, thrice, and a validation after every seven of them: an epoch
    assert ladder.passes(200) == 3 * 32 * 120 + 18 * 50 + 80
    assert ladder.passes(400) == 3 * 32 * 130 + 10 * 50 + 80
    assert ladder.total == 80 + 2 * ladder.passes(200) + ladder.passes(400)
    assert ladder.share == ladder.total / (3 * 32 * 2000 + 10 * 50 + 80)


def test_short_rows_of_training_cost_less_than_those_of_validations():
    ladder = Ladder(400, 6400, (1e-4,), 120, validation=50, test=80, row=0.5)
    assert ladder.passes(200) == 3 * 16 * 120 + 18 * 50 + 80
    assert "equally long" not in ladder.sentence
    assert "as if all rows were equally long" in Ladder(400, 6400, (1e-4,), 120).sentence


def test_rows_are_as_long_as_the_tokenizers_make_them():
    short, long = Example("a b", " c", "x:1"), Example("a b " * 30, " c", "x:2")
    task = TaskSpec.model_validate({"source": {"files": "x.jsonl"}, "prompt": "{a}", "target": "{b}"})
    found = propose_lengths(task, [short] * 7 + [long], ["pocket:gpt2-0.2m", "pocket:t5-0.4m"])
    assert found.target == 16
    assert found.prompt >= 60
    assert 1 / 8 < found.row < 0.4  # one in eight is as long as the longest
    assert propose_lengths(task, [short] * 8, ["pocket:gpt2-0.2m", "pocket:t5-0.4m"]).row == 1
    assert propose_lengths(task, [short], ["org/not-here"]) is None


def test_validations_are_made_smaller_before_runs_are_made_shorter():
    few, many = (propose_ladder(100_000, validation=some, test=1000) for some in (200, 1000))
    assert (few.validation, many.validation) == (200, 1000)
    small = propose_ladder(7200, validation=900, test=900)
    assert 100 <= small.validation < 900
    assert small.share <= 0.5


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
