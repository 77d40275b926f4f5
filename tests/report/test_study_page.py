"""The page of a study: what it says at every stage, what it escapes, and that a browser draws it."""

import html
import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from lensjax.report.pages.study import render_study
from lensjax.selection.prediction import Prediction
from lensjax.study.schema import StudyReport

RUNGS = (200, 400, 800, 1600)


def report_of(names, ranking=None, *, text="plain", **changes):
    """A report with every part, about a ranking where there is one; `text` stands wherever a sentence does."""
    grid = np.geomspace(0.01, 100, 9).tolist()
    interval = {"value": -0.6, "lower": -1.1, "upper": -0.2}
    rows = [] if ranking is None else [ranking.table.models[i] for i in ranking.order]
    spent = [{"model": name, "kind": "finetune", "cells": 5, "seconds": 4000.0, "flops": 3 * 10**15} for name in names]
    content = {
        "lensjax": "0.1.0",
        "study": text,
        "task": text,
        "unit": "bits per byte",
        "method": "joint",
        "strategy": "ladder",
        "budget": RUNGS[-1],
        "target": 12800,
        "decision": {"sentence": text, "model": rows[0] if rows else None, "final": bool(rows)},
        "progress": {"done": 40, "left": 0, "ended_by": "ladder"},
        "candidates": [
            {"name": name, "source": text, "family": text, "parameters": 7, "state": "measured", "losses": {"0": 5.0}}
            for name in names
        ],
        "ranking": [
            {"rank": place, "model": name, "family": None, "parameters": 7.0, "loss_at_budget": 3.0, "predicted": 2.0}
            | dict.fromkeys(("lower90", "upper90", "probability_best", "expected_regret"))
            | {"baselines": {}, "law": {}}
            for place, name in enumerate(rows, start=1)
        ],
        "left_out": {names[0]: text} if rows else {},
        "warnings": [text],
        "assumptions": [text],
        "kernels": [
            {"model": name, "functional": "loss", "size": 3, "effective_rank": 2.5, "target_alignment": 0.7}
            | {"eigenvalues": [3.0, 1.0, 0.0], "times": grid, "residuals": np.exp(-np.array(grid)).tolist()}
            for name in names
        ],
        "kernel_drifts": [
            {"model": name, "seed": 0, "examples": RUNGS, "drift": [0.1, 0.2, 0.3, 0.4], "growth": [2, 3, 4, 5]}
            | {"effective_rank": [2.5] * 4, "target_alignment": [0.7] * 4}
            for name in names
        ],
        "bound_terms": [
            {"model": name, "seed": 0, "block": "joint", "measured_on": 8, "examples": RUNGS, "note": text}
            | {"sum_of_largest": [4, 3, 2, 1], "phases": [], "beta2": interval, "transition": None}
            for name in names
        ],
        "phases": [{"model": name, "seen_in": "bound", "begins": 400, "note": ""} for name in names],
        "lensllm": {
            "a": interval,
            "b": interval,
            "time": None,
            "ablation": [
                {"variant": "tied", "meaning": text, "evidence": -3.0, "held_out": None}
                | {"predicted": dict.fromkeys(names, 2.0)}
            ],
            "verdict": text,
        },
        "lensllm_missing": "",
        "cost": {
            "spent": [*spent, {"model": names[0], "kind": "weights", "cells": 1, "seconds": 30.0, "flops": 0}],
            "total": {"flops": 10**17, "seconds": 7230.0, "kwh": 1.234},
            "full_tuning": {"flops": 10**18, "seconds": 3615.0, "kwh": None},
            "full_tuning_of": names[:-1],
            "share_saved": 0.9,
            "ladder_flops": 2 * 10**17,
            "skipped_flops": 10**16,
            "energy": text,
        },
        "failures": [{"model": names[0], "cell": text, "error": text, "mend": text}],
        "eliminated": [{"model": names[0], "after": 1600, "probability_best": 0.03}],
        "journal": [{"time": "2030-01-02T03:04:05+00:00", "decision": text}],
        "origin": {"lensjax": ["0.1.0"], "jax": ["0.10.0"], "devices": [text], "seeds": [0, 1]},
    }
    return StudyReport.model_validate(content | changes)


def words(page):
    """What a reader of a page sees, but for its plots."""
    body = re.sub(r"<(script|style)\b.*?</\1>|</?(span|wbr)\b[^>]*>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body))).replace("\u00a0", " ")


def figures(page):
    found = re.findall(r'<script type="application/json" id="([\w-]+)-data">(.*?)</script>', page, flags=re.DOTALL)
    return {name: json.loads(figure) for name, figure in found}


@pytest.fixture
def whole(make_ranking):
    """A report and its ranking."""
    ranking = make_ranking(8)
    return report_of(list(ranking.table.models), ranking), ranking


def test_the_decision_is_said_first(whole):
    report, ranking = whole
    best = ranking.table.models[ranking.order[0]]
    sentence = f"Fine-tune {best}: predicted 1.23 nats per token at 12,800 examples; second other."
    decision = report.decision.model_copy(update={"sentence": sentence})
    said = words(render_study(report.model_copy(update={"decision": decision}), ranking))
    assert f"Fine-tune {best} Predicted 1.23 nats per token at 12,800 examples; second other. Measured" in said
    unfinished = decision.model_copy(update={"sentence": f"So far, f{sentence[1:]}", "final": False})
    said = words(render_study(report.model_copy(update={"decision": unfinished}), ranking))
    assert f"So far, fine-tune {best} Predicted 1.23" in said
    sentence = f"Too close to call: {best} leads, predicted 1.23 nats per token."
    close = decision.model_copy(update={"sentence": sentence, "close": True})
    said = words(render_study(report.model_copy(update={"decision": close}), ranking))
    assert f"Too close to call: {best} leads Predicted 1.23 nats per token." in said


def test_every_part_is_there(whole):
    page = render_study(*whole)
    said = words(page)
    for expected in (
        "100 PFLOP, 2 h 0 min, about 1.2 kWh, 10 % of fine-tuning all on everything",
        "40 runs and measurements done; ended: every size is measured",
        "8 ranked",
        "Rank under",
        "a ring is where the power phase begins",
        "400 examples the bound’s terms 1 −0.6 (−1.1 to −0.2) plain",
        "2.5 of 3 0.700 3 0.99",
        "0.400 5",  # of the last rung's kernel: drift, and growth of its trace
        "a −0.6 (−1.1 to −0.2), b −0.6",
        "1 h 7 min · 3 PFLOP 30 s",
        "would take 1 EFLOP, 1 h 0 min, in proportion",
        "The study took 10 % of those FLOPs, and 2 times that time",
        "spared 10 PFLOP of the 200 PFLOP of the whole ladder, 5 %",
        "FLOPs of weight metrics are not counted",
        "Eliminated after 1,600 examples, where its P(best) was 3 %.",
        "2030-01-02 03:04",
        "seeds 0, 1",
    ):
        assert expected in said
    drawn = figures(page)
    assert {"curves", "terms", "spectra", "residuals", "drifts", "agreement-0"} <= set(drawn)
    assert drawn["residuals"]["layout"]["yaxis"]["exponentformat"] == "power"  # no micro and pico


def test_models_have_their_ranks_colour_in_every_figure(whole):
    report, ranking = whole
    drawn = figures(render_study(report, ranking))
    order = [ranking.table.models[i] for i in ranking.order]
    for name in ("terms", "spectra", "residuals", "drifts"):
        colours = {trace["text"][0]: trace["line"]["color"] for trace in drawn[name]["data"]}
        curves = {
            trace["text"][0]: trace["line"]["color"]
            for trace in drawn["curves"]["data"]
            if trace.get("text") and trace["mode"] == "lines"
        }
        assert [colours[model] for model in order[:5]] == [curves[model] for model in order[:5]]
        assert len({colours[model] for model in order[5:]}) == 1
        assert sum(trace.get("showlegend", True) for trace in drawn[name]["data"]) == 6


def test_what_is_not_above_0_is_not_drawn_on_log_axes(whole):
    drawn = figures(render_study(*whole))["spectra"]["data"]
    assert all(trace["x"] == [1, 2] for trace in drawn)


def test_phases_are_ringed_on_the_curves(whole):
    report, ranking = whole
    drawn = figures(render_study(report, ranking))["curves"]["data"]
    rings = [trace for trace in drawn if trace.get("hoverinfo") == "skip" and trace["mode"] == "markers"]
    assert {ring["marker"]["symbol"] for ring in rings} == {"circle-open"}
    assert all(ring["x"] == [400] for ring in rings)
    assert [ring["y"][0] for ring in rings] == pytest.approx(ranking.table.column(400)[ranking.order], rel=1e-5)


def test_before_there_is_a_ranking():
    page = render_study(report_of(["one", "two"], text="No decision yet: 3 cells are left."), None)
    said = words(page)
    assert "No decision yet 3 cells are left. Measured" in said
    assert "Measured so far" in said
    assert "one measured 5.000" in said
    assert "Versions LensJAX" in said
    assert "curves" not in figures(page)


def test_the_barest_report():
    nothing = dict.fromkeys(
        (
            "kernels",
            "kernel_drifts",
            "bound_terms",
            "phases",
            "failures",
            "eliminated",
            "journal",
            "warnings",
            "assumptions",
        ),
        (),
    )
    amount = {"flops": 0, "seconds": 0.0, "kwh": None}
    cost = {"spent": (), "total": amount, "full_tuning": None, "full_tuning_of": (), "share_saved": None}
    cost |= {"ladder_flops": 0, "skipped_flops": 0, "energy": "Energy is not known."}
    origin = {"lensjax": (), "jax": (), "devices": (), "seeds": (0,)}
    report = report_of(
        ["one", "two"], lensllm=None, lensllm_missing="why.", cost=cost, origin=origin, budget=0, **nothing
    )
    page = render_study(report, None)
    assert figures(page) == {}
    said = words(page)
    assert "Not fitted" not in said  # as no kernels were measured
    assert "has taken nothing" not in said
    assert "The study took nothing. Energy is not known." in said
    assert not re.search(r"\b(None|nan|inf)\b", said)


def test_every_untrusted_text_is_escaped(make_ranking, hostile_names):
    plain = render_study(report_of(["a", "b"]), None)
    for text in hostile_names:
        ranking = make_ranking(hostile_names, task=text, warnings=(text,), assumptions=(text,))
        page = render_study(report_of(list(hostile_names), ranking, text=text), ranking)
        own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
        assert not re.search(r"<(img|a|iframe|b)\b(?! href=\"#)", re.sub(r"<b>(AtS|SubTuning)</b>", "", own))
        assert not re.search("[\u2028\u2029\u202e\x00]", own)
        assert page.count("<script>") == plain.count("<script>") == 2
        for figure in figures(page).values():
            for trace in figure["data"]:
                names = [*(trace.get("text") or []), trace.get("name") or ""]
                assert not any(re.search(r"[<>{]|&(?!amp;|lt;|gt;|#123;)", name) for name in names)


def test_the_same_report_gives_the_same_bytes(whole):
    assert render_study(*whole) == render_study(*whole)


@pytest.mark.browser
@pytest.mark.parametrize("hostile", [False, True], ids=["plain", "hostile"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_it(browser, make_ranking, hostile_names, hostile, width):
    text = hostile_names[0] if hostile else "plain"
    ranking = make_ranking(hostile_names if hostile else 30)
    page = render_study(report_of(list(ranking.table.models), ranking, text=text), ranking)
    browser.open(page, width=width, mobile=width < 600)
    assert browser.errors() == []
    assert [url for url in browser.requests() if not url.startswith(("file:", "data:"))] == []
    assert browser.run("return document.querySelectorAll('.plot .main-svg').length") >= 5
    assert browser.run("return typeof window.hacked") == "undefined"
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run("return document.scrollingElement.scrollWidth") <= width
    assert text[:20] in browser.run("return document.querySelector('.lead').textContent")


_BOXES = """
const shown = box => box.width > 1 && box.height > 1;
const boxes = [];
const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
for (let node = walk.nextNode(); node; node = walk.nextNode()) {
  const text = node.textContent.trim(), parent = node.parentElement;
  if (!text || parent.closest(".hidden, script, style, .modebar-container, .hoverlayer")) continue;
  if (!parent.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  const frame = parent.closest(".scroll")?.getBoundingClientRect();
  for (const box of range.getClientRects()) {
    if (!shown(box) || (frame && box.right > frame.right)) continue;
    boxes.push([box.left, box.right, box.top, box.bottom, text.slice(0, 40)]);
  }
}
return boxes;
"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_no_text_lies_on_another(browser, make_ranking, width):
    """Long and short names, and intervals from 6e-7 to 6e5, whose ends were once written over each other."""
    ranking = make_ranking(["org/one", "org/" + "long-name-" * 6, "three"])
    wide = Prediction(
        ranking.prediction.score, True, ranking.prediction.score * 1e-7, ranking.prediction.score * [1, 1e5, 1]
    )
    for shown in (ranking, replace(ranking, prediction=wide)):
        browser.open(render_study(report_of(list(shown.table.models), shown), shown), width=width, mobile=width < 600)
        boxes = browser.run(_BOXES)
        assert len(boxes) > 100
        for one, other in itertools.combinations(boxes, 2):
            across = min(one[1], other[1]) - max(one[0], other[0])
            down = min(one[3], other[3]) - max(one[2], other[2])
            assert across < 2 or down < 4, (one, other)  # lines of one text touch by less
        ends = browser.run(
            "return [...document.querySelectorAll('table.ranking .scale')].map(s => [...s.children].map(c => "
            "[c.getBoundingClientRect().left, c.getBoundingClientRect().right]))"
        )
        assert all(high[0] - low[1] >= 6 for low, high in ends if low[1] > low[0])
        heads = "const heads = [...document.querySelectorAll('table.ranking thead th')];"
        heads += "return heads.map(head => [head.textContent, head.getBoundingClientRect().right])"
        assert dict(browser.run(heads))["P(best)"] <= width


@pytest.mark.browser
def test_it_prints(browser, whole):
    browser.open(render_study(*whole))
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", browser.pdf())) <= 12
