"""Sections of anything that was measured, as the parts of a page."""

import json
import re

import pytest

from lensjax.core.sections import DataTable, DotPlot, Line, LinePlot, Section
from lensjax.report.figures.plots import GREY, PALETTE
from lensjax.report.pages.sections import render_measurement, shown_section


def lines(names, **more):
    return LinePlot("lines", "Lines", "x", "y", [Line(name, [1, 2, 4], [3, 2, 1]) for name in names], **more)


def section(names, text="plain"):
    dots = DotPlot("dots", text, "value", names, range(len(names)), [0.1] * len(names), text)
    table = DataTable(text, [text, "note"], [(name, [text, text]) for name in names], ["note"], text)
    return Section("toy", text, [text], [lines(names, note=text), dots], [table])


def test_models_are_shown_in_the_order_of_a_ranking():
    names = [f"model-{i}" for i in range(8)]
    shown = shown_section(section(names), order=names[:0:-1])
    expected = [*names[:0:-1], names[0]]
    assert [name.rest for name, _ in shown["tables"][0]["rows"]] == expected
    traces = {trace.text[0]: trace.line.color for trace in shown["plots"][0].figure.data}
    assert [traces[name] for name in expected] == [*PALETTE, GREY, GREY, GREY]


def test_a_line_of_one_of_several_seeds_has_its_models_place():
    plot = LinePlot("p", "P", "x", "y", [Line(f"{m}, seed 0", [1], [1], model=m) for m in "ab"])
    (shown,) = shown_section(Section("s", "S", plots=[plot]), order=["b", "a"])["plots"]
    assert {trace.name: trace.line.color for trace in shown.figure.data}["b, seed 0"] == PALETTE[0]


@pytest.mark.parametrize("log_x", [True, False])
def test_points_that_a_logarithmic_axis_cannot_show_are_left_out(log_x):
    plot = LinePlot("p", "P", "x", "y", [Line("a", [-1, 0, 1], [1, 2, 3], [0, 1, 2], [2, 3, 4])], log_x=log_x)
    band, line = shown_section(Section("s", "S", plots=[plot]))["plots"][0].figure.data
    assert len(line.x) == (1 if log_x else 3)
    assert len(band.x) == 4


def test_rungs_are_the_ticks_of_a_ladder():
    figure = shown_section(Section("s", "S", plots=[lines("ab", ladder=True)]))["plots"][0].figure
    assert list(figure.layout.xaxis.tickvals) == [1, 2, 4]


def test_a_page_of_sections_escapes_every_text(hostile_names):
    for text in hostile_names:
        facts = {"task": text, "model": text, "examples": 1200, "some_number": 1.23456789, "left out": [text]}
        page = render_measurement("Toy", "toy", (text, text), [section(hostile_names, text)], facts)
        own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
        assert not re.search(r"<(img|a|b|iframe)\b", own)
        assert not re.search("[\u2028\u2029\u202e\x00]", own)
        assert page.count("<script>") == 2
        assert re.search(r"some number</th><td>1.23457</td>", page)
        assert "left out" not in page
        for _, figure in re.findall(r'id="(lines|dots)-data">(.*?)</script>', page, flags=re.DOTALL):
            for trace in json.loads(figure)["data"]:
                names = [*(trace.get("text") or []), trace.get("name") or ""]
                assert not any(re.search(r"[<>{]|&(?!amp;|lt;|gt;|#123;)", name) for name in names)
