"""Synthetic rankings and a browser for the tests of the report."""

import base64
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from lensjax.curves.table import curve_table
from lensjax.report.pages.ranking import render_ranking
from lensjax.selection.prediction import Prediction
from lensjax.selection.ranking import Curves, Ranking

SIZES = (0, 200, 400, 800, 1600, 3200, 6400, 12800)

HOSTILE = (
    "</script><script>window.hacked=1</script>",
    '<img src=x onerror="window.hacked=1">',
    "a\"b'c&d<b>bold</b>",
    "%{x} {{ 7 * 7 }} {% raw %}",
    "<!-- <script>",
    "line\u2028separator\u2029and\u202eoverride\x00",
    "emoji 👩‍🔬 名前",
    "$\\alpha$ <a href='javascript:window.hacked=1'>x</a>",
    "org/" + "long-name-" * 30,
)


def synthetic(
    names: Sequence[str] | int = 8,
    *,
    budget: int = 1600,
    later: bool = True,
    task: str = "toy",
    families: Sequence[str] | None = None,
    seed: int = 0,
    **changes: object,
) -> Ranking:
    """A ranking with every optional field, of models that follow power laws; `changes` replace fields."""
    models = [f"org/model-{i}" for i in range(names)] if isinstance(names, int) else list(names)
    rng, count, target = np.random.default_rng(seed), len(models), SIZES[-1]
    level, slope = rng.uniform(3, 5, (count, 1)), rng.uniform(0.05, 0.15, (count, 1))
    loss = level * (np.array(SIZES) / 200 + 1) ** -slope
    if not later:
        loss = np.where(np.array(SIZES) > budget, np.nan, loss)
    table = curve_table(
        models,
        SIZES,
        loss,
        parameters=rng.uniform(1e8, 7e9, count),
        families=[f"family-{i % 3}" for i in range(count)] if families is None else families,
        task=task,
    )
    grid = np.unique(np.geomspace(200, target, 30).astype(np.int64))
    fitted = level * (grid / 200 + 1) ** -slope
    width = 0.02 * np.maximum(np.log2(grid / budget), 0.1)
    score = fitted[:, -1]
    fields: dict[str, object] = {
        "table": table,
        "budget": budget,
        "target": target,
        "method": "lensjax",
        "prediction": Prediction(score, True, score * np.exp(-width[-1]), score * np.exp(width[-1])),
        "order": np.argsort(score),
        "baselines": {
            "zero_shot": Prediction(loss[:, 0], is_loss=False),
            "sub_tuning": Prediction(table.column(budget), is_loss=False),
            "ats": Prediction(score * rng.uniform(0.9, 1.1, count)),
        },
        "probability_best": rng.dirichlet(np.ones(count)),
        "expected_regret": score - score.min(),
        "curves": Curves(grid, fitted, fitted * np.exp(-width), fitted * np.exp(width)),
        "parameters": {"B": rng.uniform(1, 9, count), "beta": slope[:, 0]},
        "left_out": (("org/too-short", "Fewer than two sizes were measured."),),
        "warnings": ("The target is far beyond the budget.",),
        "assumptions": ("The loss follows a rectified scaling law.",),
    }
    return Ranking(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def make_ranking() -> Callable[..., Ranking]:
    """`synthetic`, for tests to call."""
    return synthetic


@pytest.fixture
def hostile_names() -> tuple[str, ...]:
    """Names that break out of HTML, scripts, Plotly texts and templates wherever escaping is forgotten."""
    return HOSTILE


_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


class Browser:
    """A headless Chromium that opens rankings and pages."""

    def __init__(self, driver, folder: Path):
        self.driver, self.folder, self.run = driver, folder, driver.execute_script

    def cdp(self, command: str, **parameters):
        return self.driver.execute_cdp_cmd(command, parameters)

    def open(self, page: Ranking | str, width: int = 1280, height: int = 900, mobile: bool = False) -> None:
        """Show a page, or that of a ranking, in a window of that size, its plots drawn, its logs empty before."""
        path = self.folder / "page.html"
        path.write_text(page if isinstance(page, str) else render_ranking(page), encoding="utf-8")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        self.driver.get(path.as_uri())
        self.until("return [...document.querySelectorAll('.plot')].every(p => p.querySelector('.main-svg'))")

    def until(self, script: str, seconds: float = 10):
        """The result of `script` once it is true."""
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"not true after {seconds} s: {script}"
            time.sleep(0.05)
        return found

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]

    def requests(self) -> list[str]:
        """Addresses the page asked for; what the browser fetches for its own start page is left out."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [request["request"]["url"] for request in sent if request["documentURL"].startswith("file:")]

    def hover(self, plot: str, trace: int, point: int) -> str:
        """Text of the hover label over one point."""
        x, y = self.run(
            """
            const plot = document.getElementById(arguments[0]);
            plot.scrollIntoView({block: "center"});
            const {xaxis, yaxis} = plot._fullLayout, data = plot.data[arguments[1]];
            const box = plot.getBoundingClientRect();
            return [box.left + xaxis._offset + xaxis.d2p(data.x[arguments[2]]),
                    box.top + yaxis._offset + yaxis.d2p(data.y[arguments[2]])];
            """,
            plot,
            trace,
            point,
        )
        label = f"return document.querySelector('#{plot} .hoverlayer .hovertext')?.textContent"
        self.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
        self.until(label.replace("return", "return !"))
        for shift in (3, 0):
            self.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=x + shift, y=y)
        return self.until(label)

    def pdf(self) -> bytes:
        return base64.b64decode(self.cdp("Page.printToPDF", preferCSSPageSize=True)["data"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser, where there is one."""
    browsers = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    chromium, chromedriver = next(filter(None, browsers), None), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("chromium and chromedriver are not both installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS.split(), f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        yield Browser(driver, folder)
    finally:
        driver.quit()
