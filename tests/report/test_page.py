"""The page as text: what it says, what it escapes, that it fetches nothing."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from lensjax.report.pages.ranking import ROWS, render_ranking
from lensjax.selection.prediction import Prediction


class _Page(HTMLParser):
    """Elements, visible text and scripts of a page, read with the rules a browser follows."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self._words: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self._words))

    @property
    def figures(self) -> dict[str | None, dict]:
        return {a["id"]: json.loads(t) for a, t in self.scripts if a.get("type") == "application/json"}

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._inside = tag
            if tag == "script":
                self.scripts.append((dict(attributes), ""))

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif self._inside == "style":
            self.styles.append(data)
        else:
            self._words.append(data)


def test_the_decision_is_said_first(make_ranking):
    ranking = make_ranking(probability_best=np.full(8, 0.75), expected_regret=np.full(8, 0.0123))
    best, second = ranking.order[:2]
    text = _Page(render_ranking(ranking)).text
    lead = text[: text.index("Before you trust")]
    assert f"Fine-tune {ranking.table.models[best]}" in lead
    for said in (
        f"{ranking.prediction.score[best]:.3f} nats",
        "90 % interval",
        "of the 8 models with probability 75 %",
        "expected regret is 0.012 nats",
        f"runner-up is {ranking.table.models[second]}",
        "at most 1.6k examples",
        "fine-tuning on all 12.8k",
        "8 × the budget",
    ):
        assert said in lead
    close = _Page(render_ranking(replace(ranking, probability_best=np.full(8, 0.25)))).text
    assert f"Too close to call: {ranking.table.models[best]} leads Judging by" in close
    assert "Fine-tune" not in close


def test_warnings_stand_with_what_the_plain_methods_would_choose(make_ranking):
    ranking = make_ranking(warnings=("Beware of this.",))
    other = int(ranking.order[3])
    score = ranking.prediction.score.copy()
    score[other] = 0.1
    ranking.baselines.update(ats=Prediction(score), sub_tuning=ranking.prediction)
    text = _Page(render_ranking(ranking)).text
    warning = text[text.index("Before you trust") : text.index("In order of expected regret")]
    assert "Beware of this." in warning
    assert f"AtS would choose {ranking.table.models[other]}, SubTuning the same model." in warning


def test_without_warnings_there_is_no_warning_box(make_ranking):
    text = _Page(render_ranking(make_ranking(warnings=()))).text
    assert "Before you trust" not in text
    assert "AtS would choose" in text


def test_every_untrusted_text_is_escaped(make_ranking, hostile_names):
    ranking = make_ranking(
        hostile_names,
        task=hostile_names[0],
        families=hostile_names,
        left_out=tuple((name, name) for name in hostile_names),
        warnings=hostile_names,
        assumptions=hostile_names,
        parameters={name: np.ones(len(hostile_names)) for name in hostile_names},
    )
    html = render_ranking(ranking)
    page = _Page(html)
    assert not {tag for tag, _ in page.elements} & {"img", "a"}
    assert {a.get("id") for a, _ in page.scripts if a} == set(page.figures)
    assert len([a for a, _ in page.scripts if not a]) == 2
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    own_markup = html[: html.rindex("<script>")].replace(page.scripts[-2][1], "")
    assert not re.search("[\u2028\u2029\u202e\x00]", own_markup)
    for name in hostile_names[:4]:
        assert name in page.text


def test_plotly_texts_hold_no_tags_and_no_templates(make_ranking, hostile_names):
    for figure in _Page(render_ranking(make_ranking(hostile_names))).figures.values():
        for trace in figure["data"]:
            names = [*(trace.get("text") or []), trace.get("name") or ""]
            assert not any(re.search(r"[<>{]|&(?!amp;|lt;|gt;|#123;)", name) for name in names)
            assert "%{text}" in trace.get("hovertemplate", "%{text}")


def test_nothing_is_fetched(make_ranking):
    page = _Page(render_ranking(make_ranking()))
    for tag, attributes in page.elements:
        assert tag not in {"iframe", "object", "embed", "img", "base", "audio", "video"}
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))
    assert not re.search(r"@import|url\(|https?:", "".join(page.styles))
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert "unsafe-inline" not in policy.split(";")[1]
    assert "https://" not in page.scripts[-1][1]


def test_the_same_ranking_gives_the_same_bytes(make_ranking):
    assert render_ranking(make_ranking()).encode() == render_ranking(make_ranking()).encode()


def test_only_the_required_fields(make_ranking):
    ranking = make_ranking(
        prediction=Prediction(np.arange(8.0) + 1),
        order=np.arange(8),
        baselines={},
        probability_best=None,
        expected_regret=None,
        curves=None,
        parameters={},
        left_out=(),
        warnings=(),
        assumptions=(),
        later=False,
    )
    page = _Page(render_ranking(ranking))
    assert "Fine-tune org/model-0" in page.text
    assert "LensJAX gives no intervals." in page.text
    for absent in ("Law parameters", "Against the other methods", "measured later", "left out", "Before you"):
        assert absent not in page.text
    assert list(page.figures) == ["curves-data"]


def test_an_order_that_is_not_a_loss(make_ranking):
    ranking = make_ranking(
        method="model_size", prediction=Prediction(-np.arange(8.0), is_loss=False), order=np.arange(8)[::-1]
    )
    page = _Page(render_ranking(ranking))
    assert "ModelSize ranks it first of 8" in page.text
    assert "measured-data" not in page.figures
    titles = page.figures["agreement-2-data"]["layout"]["xaxis"]["title"]["text"]
    assert titles == "AtS: rank"


def test_one_model(make_ranking):
    text = _Page(render_ranking(make_ranking(1, probability_best=np.ones(1)))).text
    assert "Fine-tune org/model-0" in text
    assert "of the 1 models" not in text
    assert "runner-up" not in text


def test_missing_values_are_dashes(make_ranking):
    whole = make_ranking()
    hole = int(whole.order[2])

    def without(values):
        values = np.array(values, dtype=float)
        values[hole] = np.nan
        return values

    ranking = replace(
        whole,
        table=replace(
            whole.table,
            parameters=without(whole.table.parameters),
            families=tuple("" if i == hole else f for i, f in enumerate(whole.table.families)),
        ),
        prediction=replace(
            whole.prediction, lower=without(whole.prediction.lower), upper=without(whole.prediction.upper)
        ),
        probability_best=without(whole.probability_best),
        expected_regret=without(whole.expected_regret),
        baselines={name: replace(p, score=without(p.score)) for name, p in whole.baselines.items()},
        parameters={name: without(v) for name, v in whole.parameters.items()},
    )
    html = render_ranking(ranking)
    row = next(row for row in re.findall(r"<tr.*?</tr>", html, re.S) if f">org/</span><wbr>model-{hole}<" in row)
    assert row.count("–<") == 5 + 3
    assert not re.search(r">\s*(nan|None|inf)\s*<", html)


def test_models_the_method_cannot_judge_have_no_rank(make_ranking):
    whole = make_ranking()
    score = whole.prediction.score.copy()
    score[whole.order[-2:]] = np.nan
    page = _Page(render_ranking(replace(whole, prediction=Prediction(score))))
    assert "6 ranked" in page.text
    nothing = replace(whole, prediction=Prediction(np.full(8, np.nan)), baselines={}, curves=None)
    assert "No model could be ranked" in _Page(render_ranking(nothing)).text


def test_wild_numbers_do_not_break_the_page(make_ranking):
    whole = make_ranking()
    score = whole.prediction.score.copy()
    score[0], score[1], score[2] = 1e300, 1e-300, np.inf
    curves = replace(whole.curves, lower=whole.curves.lower * 0, upper=whole.curves.upper * np.inf)
    wide = np.where(np.isfinite(score), score, np.inf)
    ranking = replace(
        whole,
        prediction=Prediction(score, True, np.zeros(8), wide),
        order=np.argsort(score),
        curves=curves,
        baselines={"ats": Prediction(np.full(8, -1e12)), "vanilla_law": Prediction(np.full(8, np.nan))},
    )
    assert len(_Page(render_ranking(ranking)).figures) == 4


def test_three_thousand_models_stay_readable(make_ranking):
    ranking = make_ranking(3000)
    html = render_ranking(ranking)
    page = _Page(html)
    assert len(html.encode()) < 2e6
    first = re.search(r"<tbody>(.*?)</tbody>", html, re.S)
    assert first is not None
    assert first[1].count("<tr") == ROWS
    assert "The other 2,950 models" in page.text
    assert re.search(r"Plots show the first 60 of 3,000 models", page.text)
    assert page.text.count("org/model-") > 3000
    last = int(ranking.order[-1])
    assert f"<bdi>org/model-{last}</bdi> {ranking.prediction.score[last]:.3f}" in html
    assert "more are not on this page" not in page.text


def test_tables_and_plots_are_named_for_assistive_technology(make_ranking):
    page = _Page(render_ranking(make_ranking()))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption") == 3
    assert tags.count("h1") == 1
    assert all(a.get("scope") in {"col", "row", "colgroup"} for tag, a in page.elements if tag == "th")
    plots = [a for _, a in page.elements if "plot" in (a.get("class") or "").split()]
    assert len(plots) == len(page.figures) == 5
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 40 for a in plots)


def test_importing_the_page_imports_no_measuring_half():
    code = (
        "import sys, lensjax.report.pages.ranking; "
        "print({'flax', 'transformers', 'tensorflow_datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("size", [4, 60])
def test_hollow_points_are_those_above_the_budget(make_ranking, size):
    figure = _Page(render_ranking(make_ranking(size))).figures["curves-data"]
    for trace in figure["data"]:
        symbol = trace.get("marker", {}).get("symbol", "")
        known = [x for x in trace["x"] if x]
        if trace["mode"] == "markers" and known:
            assert all((x > 1600) == symbol.endswith("-open") for x in known)


def test_models_that_may_not_be_chosen_stand_apart_with_the_reason(make_ranking):
    ranking = make_ranking()
    *others, last = map(int, [*ranking.order[1:], ranking.order[0]])
    barred = ranking.table.barring({ranking.table.models[last]: "it cannot write 2 % of the targets: 'día'"})
    page = render_ranking(replace(ranking, table=barred, order=np.array([*others, last])))
    text = _Page(page).text
    assert "Measured, but not to be chosen" in text
    assert "It cannot write 2 % of the targets: 'día'." in text
    assert "of the 7 models" in text
    head, _, apart = page.partition('<tbody class="apart">')
    table = apart.partition("</tbody>")[0]
    assert table.count("<tr") == 1
    assert f"model-{last}" in table
    assert f"model-{last}" not in head.partition("<tbody>")[2]
