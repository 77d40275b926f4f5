"""Ranking by a task metric: draws of losses, then the link."""

import json
import typing
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from lensjax.cli import arguments
from lensjax.core.errors import InputError
from lensjax.curves.csv_files import parse_curves
from lensjax.curves.metrics import METRICS, Shares
from lensjax.curves.simulated import simulated
from lensjax.fit.link import NotLinked
from lensjax.report.pages.ranking import render_ranking
from lensjax.selection.by_metric import predict_metric
from lensjax.selection.prediction import Prediction
from lensjax.selection.ranking import rank
from lensjax.selection.records import ranking_csv, ranking_json, records

TARGET = 1_638_400
PLAIN = simulated(models=8)
MATCH = METRICS["exact_match"]
OFFSETS = np.array([0.0, 0.8, 0, 0, 0, 0, -0.8, 0])


def with_metric(table, column="exact_match"):
    """The table with a metric that a sigmoid gives of each loss, and that favours the second model."""
    value = expit(2 + OFFSETS[:, None] - 2.5 * np.log(table.loss))
    return replace(table, metrics={column: Shares(value, np.sqrt(value * (1 - value) / 2000))})


TABLE = with_metric(PLAIN)


def test_both_steps_are_in_the_draws_and_the_rule_is_that_of_losses():
    seen = TABLE.up_to(12_800)
    random = np.random.default_rng(0)
    centre = TABLE.column(TARGET)
    draws = centre * np.exp(0.05 * random.standard_normal((2000, 8)))
    found = predict_metric(seen, TARGET, MATCH, Prediction(np.median(draws, axis=0), draws=draws))
    true = TABLE.metric_column(MATCH, TARGET)
    assert ((found.lower < true) & (true < found.upper)).sum() >= 7
    sharp = predict_metric(seen, TARGET, MATCH, Prediction(centre, draws=np.repeat(centre[None], 2000, 0)))
    assert np.median(sharp.upper - sharp.lower) < np.median(found.upper - found.lower)
    regret = (found.wrong.draws - found.wrong.draws.min(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(found.wrong.expected_regret, regret)
    assert found.wrong.order.tolist() == np.argsort(regret).tolist()
    without = predict_metric(seen, TARGET, MATCH, Prediction(centre))
    assert (without.lower, without.wrong.draws) == (None, None)
    np.testing.assert_allclose(without.score, true, atol=0.05)


def test_what_was_measured_at_the_target_counts_as_measured():
    seen = TABLE.up_to(12_800)
    found = predict_metric(seen, 12_800, MATCH, Prediction(seen.column(12_800)))
    np.testing.assert_allclose(found.score, seen.metric_column(MATCH, 12_800))


def test_a_ranking_by_a_metric_shows_both_steps():
    found = rank(TABLE, 12_800, TARGET, "rectified_law", metric=MATCH)
    assert found.order.tolist() == found.metric.wrong.order.tolist()
    assert found.order.tolist() != found.prediction.order.tolist()
    first = records(found)[0]
    assert first["metric_at_budget"] == TABLE.metric_column(MATCH, 12_800)[found.order[0]]
    assert first["metric_predicted"] == max(row["metric_predicted"] for row in records(found))
    content = json.loads(ranking_json(found))
    assert content["ranked_by"] == "exact_match"
    assert content["link"]["slope"]["lower"] < 2.5 < content["link"]["slope"]["upper"]
    assert ranking_csv(found).splitlines()[0].count("metric_") == 4
    page = render_ranking(found)
    assert "Exact match<small>predicted" in page
    assert any("Exact match is a sigmoid of the loss" in sentence for sentence in found.assumptions)


def test_what_is_not_linked_is_ranked_by_loss_and_said():
    flat = replace(PLAIN, metrics={"exact_match": Shares(0 * PLAIN.loss, 0 * PLAIN.loss)})
    found = rank(flat, 12_800, TARGET, "rectified_law", metric=MATCH)
    assert found.metric is None
    assert found.warnings[0] == (
        "Exact match cannot be told from the loss: it is near 0 everywhere, from 0.000 to 0.000, within its errors. "
        "Models are ranked by loss."
    )
    assert json.loads(ranking_json(found))["ranked_by"] == "loss"
    with pytest.raises(NotLinked):
        predict_metric(flat, TARGET, MATCH, Prediction(flat.column(TARGET)))


def test_what_cannot_be_asked_is_refused(fails, tmp_path):
    PLAIN.write(tmp_path / "wide.csv")
    said = fails("rank", tmp_path / "wide.csv", "--target", TARGET, "--method", "ats", "--metric", "exact_match")
    assert "do not hold exact match (metrics there are: none); give a tidy CSV with a column exact_match" in said
    with pytest.raises(InputError, match="takes a method that predicts losses"):
        predict_metric(TABLE, TARGET, MATCH, Prediction(np.arange(8.0), is_loss=False))


def test_metrics_are_read_beside_losses_and_written_back():
    text = TABLE.to_csv("tidy")
    again = parse_curves(text, "curves.csv", "simulated")
    np.testing.assert_allclose(again.metrics["exact_match"], TABLE.metrics["exact_match"])
    assert again.to_csv("tidy") == text
    seeds = "model,examples,loss,seed,exact_match,exact_match_error\na,200,1,0,0.2,0.01\na,200,1.2,1,0.4,0.03\n"
    found = parse_curves(f"{seeds}b,200,1,0,,\n", "curves.csv", "seeds").metrics["exact_match"]
    np.testing.assert_allclose(found.value, [[0.3], [np.nan]])
    np.testing.assert_allclose(found.error, [[0.02], [np.nan]])
    for bad in ("1.2,0", "-0.1,0", "x,0", "0.1,-1"):
        with pytest.raises(InputError, match=r"line 2 column 'exact_match(_error)?' holds .*; it needs a share from 0"):
            parse_curves(f"model,examples,loss,exact_match,exact_match_error\na,200,1,{bad}\n", "bad.csv", "bad")


def test_the_command_line_takes_every_metric():
    (names, _), *_ = (typing.get_args(arguments.MetricName)[:2],)
    assert set(typing.get_args(typing.get_args(names)[0])) == set(METRICS)
