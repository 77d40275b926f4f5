"""Decisions from curves, with posteriors that are known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lensjax.curves.metrics import Shares
from lensjax.curves.simulated import simulated
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import DEFAULT_METHOD, METHODS, Method
from lensjax.selection.prediction import Prediction
from lensjax.study import decisions
from lensjax.study.constraints import Prefer
from lensjax.study.spec import StopRule

TABLE = simulated(models=3).up_to(3200)
LEVEL = 3 + 0.01 * np.random.default_rng(0).standard_normal((100, 3))
LOSSES = np.array([[1.0, 2.0, 3.0]] * 8 + [[1.0, 3.0, 2.0]] * 2)


@pytest.fixture
def rules(monkeypatch):
    """Rules of a study whose models have `LOSSES`; makes a table say which of them may not be chosen."""
    draws = Prediction(LOSSES.mean(axis=0), draws=LOSSES)
    monkeypatch.setattr(
        METHODS,
        "_entries",
        {
            "known": Method("known", "", lambda table, target, evidence: draws),
            "nlp_metrics": METHODS["nlp_metrics"],
        },
    )
    stop = StopRule(expected_regret=0.01)
    return SimpleNamespace(method="known", eliminate_below=0.1, stop_when=stop, metric=None, prefer=None)


def test_a_candidate_that_may_not_be_chosen_is_eliminated_and_another_one_first(rules):
    names = TABLE.models
    verdict = decisions.decide(rules, TABLE, 6400, [], Evidence())
    assert (verdict.choice, verdict.eliminated, verdict.stop) == (names[0], names[1:], True)
    assert f"; eliminated: {names[1]} (P(best) 0), {names[2]} (P(best) 0); the decision is clear." in verdict.decision
    verdict = decisions.decide(rules, TABLE.barring({names[0]: "it is too large"}), 6400, [], Evidence())
    assert f"{names[1]} first, best with probability 0.80, expected regret 0.2000" in verdict.decision
    assert (verdict.eliminated, verdict.stop) == ((names[0],), False)


def test_rules_are_about_the_margin_where_a_smaller_model_is_preferred(rules):
    rules.prefer = Prefer(smallest_within=1.25, by="memory")
    costs = {"memory": dict(zip(TABLE.models, (3e9, 2e9, 1e9), strict=True))}
    verdict = decisions.decide(rules, TABLE, 6400, [], Evidence(), costs)
    first = (
        f"{TABLE.models[1]} first, within 1.25 of the best with probability 0.80, expected regret beyond that 0.1500"
    )
    assert first in verdict.decision
    assert (verdict.eliminated, verdict.stop) == ((), False)  # 0.2 of the third model's draws are within the margin
    rules.stop_when = StopRule(probability_best=0.7)
    assert decisions.decide(rules, TABLE, 6400, [], Evidence(), costs).stop


def test_a_table_without_one_that_may_be_chosen_cannot_be_ranked():
    reasons = dict.fromkeys(TABLE.models, "it is too large")
    assert decisions.rankable(TABLE.barring(reasons)) is None
    assert decisions.rankable(TABLE.barring({TABLE.models[0]: "it is too large"})).ineligible[0] == "it is too large"


def test_the_first_is_the_method_s_whether_it_knows_probabilities_or_not(rules):
    ordered = Method("ordered", "", lambda table, target, evidence: Prediction(-np.arange(3.0), is_loss=False))
    METHODS.register("ordered")(ordered)
    rules.method = "ordered"
    verdict = decisions.decide(rules, TABLE, 6400, [], Evidence())
    assert verdict.choice == TABLE.models[2]
    assert verdict.decision.endswith("first by ordered, without the probabilities that eliminating and stopping need.")
    assert (verdict.eliminated, verdict.stop) == ((), False)
    rules.method = "nlp_metrics"  # which knows nothing here: the default method decides, as it does in a report
    METHODS.register(DEFAULT_METHOD)(METHODS["known"])
    verdict = decisions.decide(rules, TABLE, 6400, [], Evidence())
    assert verdict.choice == TABLE.models[0]


def test_a_metric_decides_where_losses_tell_it(rules):
    rules.metric = "exact_match"
    verdict = decisions.decide(rules, TABLE, 6400, [], Evidence())
    assert "The curves of task 'simulated' do not hold exact match" in verdict.decision
    assert verdict.decision.endswith(" The loss decides.")
    share = 1 / (1 + (TABLE.loss / 3) ** 3 * np.array([[3.0], [1.0], [1.0]]))  # at one loss, the first model has less
    table = replace(TABLE, metrics={"exact_match": Shares(share, np.sqrt(share * (1 - share) / 2000))})
    METHODS.register("level")(Method("level", "", lambda table, target, evidence: Prediction(LEVEL[0], draws=LEVEL)))
    rules.method = "level"
    verdict = decisions.decide(rules, table, 6400, [], Evidence())
    assert verdict.choice != TABLE.models[0]
    assert " of exact match" in verdict.decision
