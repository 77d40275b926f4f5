import json
from dataclasses import replace

import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curves.simulated import simulated
from lensjax.curves.table import curve_table
from lensjax.selection import DEFAULT_METHOD, METHODS
from lensjax.selection.evidence import Evidence
from lensjax.selection.ranking import find_warnings, rank
from lensjax.selection.records import ranking_json, records

TARGET = 1_638_400
TABLE = simulated(models=8)
MORE = {"lensllm", "nlp_metrics", "logme", "h_score"}  # which need more than curves


@pytest.fixture(scope="module")
def ranking():
    return rank(TABLE, 12_800, TARGET)


def test_order_is_by_expected_regret_and_everything_is_there(ranking):
    assert (np.diff(ranking.expected_regret[ranking.order]) >= 0).all()
    assert set(ranking.baselines) == set(METHODS) - {DEFAULT_METHOD} - MORE
    assert set(ranking.missing) == MORE
    assert ranking.probability_best.sum() == pytest.approx(1)
    assert (ranking.expected_regret >= 0).all()
    assert ranking.curves.sizes[0] == 200
    assert ranking.curves.sizes[-1] == TARGET
    assert (ranking.curves.lower < ranking.curves.loss).all()
    assert (ranking.curves.loss < ranking.curves.upper).all()
    assert set(ranking.parameters) == {"B", "D_l", "beta", "E"}


def test_nothing_above_the_budget_is_looked_at(ranking):
    later = TABLE.loss.copy()
    later[:, TABLE.sizes > 12_800] = 1.0
    blind = rank(replace(TABLE, loss=later), 12_800, TARGET)
    np.testing.assert_array_equal(blind.prediction.score, ranking.prediction.score)
    np.testing.assert_array_equal(blind.probability_best, ranking.probability_best)


def test_progress_counts_every_method():
    seen = []
    rank(TABLE, 12_800, TARGET, "ats", lambda done, total: seen.append((done, total)))
    assert seen == [(k, len(METHODS)) for k in range(1, len(METHODS) + 1)]


def test_models_with_one_point_are_left_out_by_name_and_the_others_ranked():
    loss = TABLE.loss.copy()
    loss[3, 1:] = np.nan
    found = rank(replace(TABLE, loss=loss), 12_800, TARGET, "ats")
    assert [model for model, _ in found.left_out] == ["simulated-03"]
    assert "simulated-03" not in found.table.models
    assert len(found.order) == 7


def test_another_method_ranks_with_the_joint_one_beside_it():
    found = rank(TABLE, 12_800, TARGET, "sub_tuning")
    assert found.table.models[found.order[0]] == TABLE.models[int(np.argmin(TABLE.column(12_800)))]
    assert "joint" in found.baselines
    assert found.probability_best is None


def test_a_method_without_its_evidence_says_so_and_another_may_rank():
    with pytest.raises(InputError, match="method lensllm cannot rank: No model has a kernel"):
        rank(TABLE, 12_800, TARGET, "lensllm")
    found = rank(TABLE, 12_800, TARGET, "lensllm", otherwise="ats")
    assert found.method == "ats"
    assert found.missing["nlp_metrics"].startswith("No model has weight metrics")


def test_evidence_besides_curves_ranks():
    scores = dict(zip(TABLE.models[1:], range(7, 0, -1), strict=True))
    found = rank(TABLE, 12_800, TARGET, "nlp_metrics", evidence=Evidence({"weights": scores}))
    assert [found.table.models[i] for i in found.order] == [*TABLE.models[:0:-1], TABLE.models[0]]
    assert any("cannot judge 1 models" in warning for warning in found.warnings)
    assert set(found.missing) == MORE - {"nlp_metrics"}


def test_a_method_that_can_judge_nothing_says_what_it_needs():
    with pytest.raises(InputError, match=r"zero_shot cannot rank: By test loss .*D = 0.*, none of the models"):
        rank(TABLE, 12_800, TARGET, "zero_shot")


def test_a_weak_fit_is_said_aloud():
    found = rank(TABLE, 400, TARGET)
    said = " ".join(found.warnings)
    assert "fewer than 4 sizes" in said
    assert "wider than the spread" in said
    assert "times beyond the budget" in said


def test_intervals_that_could_not_be_checked_or_were_too_narrow_are_said_aloud(ranking):
    said = "times as wide as modelled"
    assert any("at three sizes" in warning for warning in rank(TABLE, 400, TARGET).warnings)
    assert not any("at three sizes" in warning or said in warning for warning in ranking.warnings)
    loss = TABLE.up_to(12_800).loss.copy()
    loss[:, -1] *= np.exp(0.3 * (-1.0) ** np.arange(8))
    found = rank(replace(TABLE.up_to(12_800), loss=loss), 12_800, TARGET)
    assert found.prediction.widening > 1.2
    assert any(f"{found.prediction.widening:.1f} {said}" in warning for warning in found.warnings)
    by_ats = rank(replace(TABLE.up_to(12_800), loss=loss), 12_800, TARGET, "ats")
    assert not any(said in warning for warning in by_ats.warnings)  # which has no intervals


def test_wide_intervals_do_not_put_a_clear_order_in_doubt():
    found = rank(TABLE, 400, TARGET)
    known = np.eye(len(TABLE.models))[found.order[0]]
    sure = find_warnings(replace(found, probability_best=known), TABLE.up_to(400))
    assert "wider than the spread" not in " ".join(sure)


@pytest.mark.parametrize("method", [DEFAULT_METHOD, "ats"])
def test_what_was_measured_at_the_target_is_taken_as_measured(method):
    loss = TABLE.up_to(12_800).loss.copy()
    loss[2, -1] *= 0.5
    loss[3, -1] = np.nan
    found = rank(replace(TABLE.up_to(12_800), loss=loss), 12_800, 12_800, method)
    known = np.isfinite(loss[:, -1])
    np.testing.assert_array_equal(found.prediction.score[known], loss[known, -1])
    assert found.order[0] == 2
    assert found.prediction.score[3] != loss[3, -2]  # which is predicted
    assert any("7 of 8 models were measured at the target itself" in said for said in found.assumptions)
    if method == DEFAULT_METHOD:
        assert found.probability_best[2] == 1
        assert (found.prediction.lower == found.prediction.upper).tolist() == known.tolist()
        everything = METHODS[DEFAULT_METHOD].predict(TABLE.up_to(12_800), 12_800)
        np.testing.assert_array_equal(everything.order, np.argsort(TABLE.column(12_800)))


def test_equal_models_have_no_clear_winner():
    sizes = 200 * 2 ** np.arange(7)
    loss = np.tile(3 * sizes**-0.1, (6, 1)) * np.random.default_rng(0).lognormal(0, 0.005, (6, 7))
    found = rank(curve_table([f"m{i}" for i in range(6)], sizes, loss), 12_800, TARGET)
    assert found.is_close
    assert any(warning.startswith("Too close to call: m") for warning in found.warnings)


@pytest.mark.parametrize(
    ("budget", "target", "says"),
    [
        (12_800, 6_400, "smaller than the budget"),
        (10**9, 10**10, "larger than anything measured"),
        (200, TARGET, "two sizes"),
        (100, TARGET, "two sizes"),
    ],
)
def test_budgets_that_make_no_sense(budget, target, says):
    with pytest.raises(InputError, match=says):
        rank(TABLE, budget, target)


def test_losses_before_fine_tuning_alone_cannot_be_ranked():
    with pytest.raises(InputError, match="holds no losses but those before fine-tuning; measure two larger sizes"):
        rank(curve_table(["a", "b"], [0], np.array([[3.0], [2.9]])), 12_800, TARGET)


def test_one_model_is_not_a_choice_and_methods_have_names():
    with pytest.raises(InputError, match="needs two such models"):
        rank(TABLE.select([0]), 12_800, TARGET)
    with pytest.raises(InputError, match="no method 'nope'"):
        rank(TABLE, 12_800, TARGET, "nope")


# Models that are measured, but never chosen ----------------------------------------------------------------------


def test_a_model_that_may_not_be_chosen_is_shown_apart(ranking):
    first, *others = (TABLE.models[i] for i in ranking.order)
    found = rank(TABLE.barring({first: "it cannot write the answers"}), 12_800, TARGET)
    np.testing.assert_array_equal(found.prediction.score, ranking.prediction.score)  # its curve informs the fit
    assert [TABLE.models[i] for i in found.order] == [*others, first]
    assert [TABLE.models[i] for i in found.choices] == others
    assert found.ineligible == ((first, "it cannot write the answers"),)
    barred = TABLE.models.index(first)
    assert np.isnan(found.probability_best[barred])
    assert np.isnan(found.expected_regret[barred])
    assert np.nansum(found.probability_best) == pytest.approx(1)
    assert found.probability_best[found.choices[0]] > ranking.probability_best[found.choices[0]]
    assert np.nanmin(found.expected_regret) < ranking.expected_regret[found.choices].min()  # the best is now among them
    *rows, last = records(found)
    assert [row["rank"] for row in rows] == list(range(1, 8))
    assert (last["model"], last["rank"], last["ineligible"]) == (first, None, "it cannot write the answers")
    assert json.loads(ranking_json(found))["models"][-1]["ineligible"] == "it cannot write the answers"
    ats = METHODS["ats"]
    by_ats = ats.predict(TABLE, TARGET).choice
    assert ats.predict(TABLE.barring({TABLE.models[by_ats]: "it is too large"}), TARGET).choice != by_ats


def test_one_that_may_be_chosen_is_chosen_and_none_is_refused():
    reasons = dict.fromkeys(TABLE.models[1:], "it is too large")
    found = rank(TABLE.barring(reasons), 12_800, TARGET, "ats")
    assert [TABLE.models[i] for i in found.choices] == [TABLE.models[0]]
    with pytest.raises(
        InputError, match=r"None of the 8 models of task 'simulated' may be chosen \(simulated-00: it .* and 5 more\)"
    ):
        rank(TABLE.barring(dict.fromkeys(TABLE.models, "it is too large")), 12_800, TARGET, "ats")
