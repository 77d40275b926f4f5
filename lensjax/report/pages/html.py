"""Self-contained HTML pages: templates whose plots, styles and scripts are inside them, and that need no network."""

import base64
import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import lensjax
from lensjax.core import text


@dataclass(frozen=True)
class Plot:
    """One plot of a page: its figure as JSON, its text alternative and the note under it."""

    id: str
    title: str
    json: Markup
    label: str
    note: str = ""


def render(template: str, context: Mapping[str, object]) -> str:
    """A template of this folder as a page that runs no script but its own and fetches nothing.

    The same context gives the same bytes, given the versions named at the foot of the page. Text of the context may
    hold anything: it is escaped wherever it is shown.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lensjax.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=text.count, grouped="{:,}".format)
    scripts = {"plotly": get_plotlyjs().replace("\r\n", "\n"), "page": _asset("page.js")}
    frame = {
        "versions": _versions(),
        "css": Markup(_asset("page.css")),
        "scripts": {name: Markup(code) for name, code in scripts.items()},
        "script_hashes": [_csp_hash(code) for code in scripts.values()],
    }
    return environment.get_template(template).render({**context, **frame})


def _versions() -> list[tuple[str, str]]:
    found = [("LensJAX", lensjax.__version__)]
    for package in ("jax", "numpy", "plotly"):
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            found.append((package, "not installed"))
    return [*found, ("Python", platform.python_version())]


@cache
def _asset(name: str) -> str:
    return files("lensjax.report").joinpath("templates", name).read_text(encoding="utf-8")


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
