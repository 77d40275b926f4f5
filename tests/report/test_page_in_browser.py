"""The page in a real browser: it draws, answers the mouse, fetches nothing, fits a phone and paper."""

import itertools
import re
import time
from dataclasses import replace

import pytest

from lensjax.selection.cheaper import costs_of
from lensjax.selection.untuned import untuned

pytestmark = pytest.mark.browser


def _marked(browser, plot: str, name: str) -> tuple[int, int]:
    """Trace and index of the first drawn point of a model, by its escaped name."""
    return tuple(
        browser.run(
            """
            const data = document.getElementById(arguments[0]).data;
            for (let t = 0; t < data.length; t++) {
              const k = data[t].mode === "markers" && data[t].text ? data[t].text.indexOf(arguments[1]) : -1;
              if (k >= 0) return [t, k];
            }""",
            plot,
            name,
        )
    )


def test_plots_are_drawn_without_errors_or_requests(browser, make_ranking):
    ranking = make_ranking(30)
    browser.open(ranking)
    assert browser.errors() == []
    requests = browser.requests()
    assert any(url.startswith("file:") for url in requests)
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert browser.run("return document.querySelectorAll('.plot').length") == 5
    # grey: line, hollow and full points; the same for 5 coloured models; 3 bands; 6 legend entries
    assert browser.run("return document.getElementById('curves').data.length") == 3 + 5 * 3 + 3 + 6
    assert browser.run("return document.querySelectorAll('#curves .legendtext').length") == 6
    assert browser.run("return document.querySelectorAll('#curves .scatterlayer .trace').length") >= 20


def test_no_button_offers_to_upload_the_data(browser, make_ranking):
    browser.open(make_ranking())
    titles = browser.run("return [...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert titles
    assert not [title for title in titles if re.search("share|cloud|edit|plotly", title, re.I)]
    assert browser.run("return document.getElementById('curves')._context.plotlyServerURL") == ""


@pytest.mark.parametrize("plot", ["curves", "measured", "agreement-0"])
def test_hovering_names_the_model(browser, make_ranking, plot):
    ranking = make_ranking(8)
    browser.open(ranking)
    name = ranking.table.models[ranking.order[0]]
    label = browser.hover(plot, *_marked(browser, plot, name))
    assert name in label
    if plot == "curves":
        assert re.search(r"\d+ examples\s*loss \d+\.\d+", label)
    assert browser.errors() == []


def test_a_legend_click_hides_all_of_a_model(browser, make_ranking):
    browser.open(make_ranking(8))
    browser.run("document.getElementById('curves').scrollIntoView()")
    box = browser.run(
        "const b = document.querySelector('#curves .legendtoggle').getBoundingClientRect();"
        "return [b.left + b.width / 2, b.top + b.height / 2]"
    )
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        browser.cdp("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)
    hidden = "return document.getElementById('curves').data.filter(t => t.visible === 'legendonly')"
    browser.until(hidden + ".length")
    assert {trace["legendgroup"] for trace in browser.run(hidden)} == {"model 0"}
    assert len(browser.run(hidden)) == 5


def test_hostile_names_stay_text(browser, make_ranking, hostile_names):
    ranking = make_ranking(
        hostile_names,
        task=hostile_names[0],
        families=hostile_names,
        warnings=hostile_names,
        assumptions=hostile_names,
    )
    browser.open(ranking)
    assert hostile_names[0] in browser.driver.title
    legend = browser.run("return document.querySelector('#curves .legend').textContent")
    first = ranking.table.models[ranking.order[0]]
    assert first[:20].replace("\u2028", "�") in legend
    for name, escaped in (
        (hostile_names[0], "&lt;/script&gt;&lt;script&gt;window.hacked=1&lt;/script&gt;"),
        (hostile_names[1], '&lt;img src=x onerror="window.hacked=1"&gt;'),
        (hostile_names[3], "%&#123;x} &#123;&#123; 7 * 7 }} &#123;% raw %}"),
    ):
        assert name in browser.hover("curves", *_marked(browser, "curves", escaped))
    assert browser.run("return typeof window.hacked") == "undefined"
    assert browser.run("return document.querySelectorAll('img, a, iframe').length") == 0
    assert browser.run("return document.scripts.length") == 7
    assert browser.errors() == []


def test_the_policy_stops_a_script_that_got_in(browser, make_ranking):
    browser.open(make_ranking(2))
    browser.run(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 1';"
        "document.body.append(s);"
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"window.hacked = 1\">');"
    )
    time.sleep(0.2)
    assert browser.run("return typeof window.hacked") == "undefined"
    assert any("Content Security Policy" in message for message in browser.errors())


@pytest.mark.parametrize("hostile", [False, True], ids=["plain", "hostile"])
def test_a_phone_scrolls_down_only(browser, make_ranking, hostile_names, hostile):
    names = hostile_names + tuple("x" * n for n in (200, 201)) if hostile else 30
    ranking = make_ranking(names, families=names if hostile else None)
    known = {"costs": costs_of(ranking.table), "untuned": untuned(ranking.table, ranking.prediction)}
    browser.open(replace(ranking, **known), width=390, height=844, mobile=True)
    assert browser.run("return document.scrollingElement.scrollWidth") <= 390
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run("return document.scrollingElement.scrollWidth") <= 390
    assert browser.run("return document.querySelector('#curves .main-svg').getBoundingClientRect().width") <= 390
    texts = browser.run(
        """
        const kinds = ":is(.legendtext, .xtick text, .ytick text, .xtitle)";
        const texts = document.querySelectorAll("#loss-and-cost-plot " + kinds);
        return [...texts].map(t => t.getBoundingClientRect()).map(b => [b.left, b.right, b.top, b.bottom]);
        """
    )
    assert len(texts) > 12
    for one, other in itertools.combinations(texts, 2):
        assert one[1] <= other[0] or other[1] <= one[0] or one[3] <= other[2] or other[3] <= one[2]
    assert browser.errors() == []


def test_dark_mode_lights_up_the_plots(browser, make_ranking):
    browser.open(make_ranking(4))
    colour = "return getComputedStyle(document.querySelector('#curves .xtick text')).fill"
    light = browser.run(colour)
    try:
        browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        dark = browser.run(colour)
    finally:
        browser.cdp("Emulation.setEmulatedMedia", features=[])
    assert sum(map(int, re.findall(r"\d+", light))) < 200 < 600 < sum(map(int, re.findall(r"\d+", dark)))


def test_print_opens_everything_and_fits_the_sheet(browser, make_ranking):
    browser.open(make_ranking(30))
    browser.run(
        "addEventListener('beforeprint', () => window.printed = {"
        "  closed: document.querySelectorAll('details:not([open])').length,"
        "  widths: [...document.querySelectorAll('.main-svg')].map(s => s.getBoundingClientRect().width)})"
    )
    pages = len(re.findall(rb"/Type\s*/Page\b(?!s)", browser.pdf()))
    assert 3 <= pages <= 8
    printed = browser.run("return window.printed")
    assert printed["closed"] == 0
    assert max(printed["widths"]) <= 688
    browser.until("return !document.documentElement.classList.contains('printing')")
    assert browser.run("return document.querySelectorAll('details[open]').length") == 0
    browser.until("return document.querySelector('#curves .main-svg').getBoundingClientRect().width > 1000")


def test_three_thousand_models_open_and_print(browser, make_ranking):
    browser.open(make_ranking(3000))
    assert browser.run("return document.querySelectorAll('#curves .legendtext').length") == 6
    assert browser.errors() == []
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", browser.pdf())) < 15
