"""Self-contained HTML pages: templates whose plots, styles and scripts are inside them, and that need no network."""

import base64
import hashlib
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup

from lensjax.core import text
from lensjax.core.version import __version__
from lensjax.report.figures.plots import figure_json


@dataclass(frozen=True)
class Plot:
    """One plot of a page: its figure, its text alternative and the note under it."""

    id: str
    title: str
    figure: go.Figure
    label: str
    note: str = ""

    @property
    def json(self) -> Markup:
        """Data and layout, as a template puts them into a <script> element."""
        return Markup(figure_json(self.figure))  # noqa: S704  # escapes <


@dataclass(frozen=True)
class Name:
    """A model's name for the page: hub organisation and rest apart, so that the rest can stand out."""

    org: str
    rest: str

    @classmethod
    def of(cls, model: str) -> "Name":
        """`model` with control characters replaced, split where it reads as organisation/name."""
        name = text.clean(model)
        hub = re.fullmatch(r"([\w.-]+/)([\w.-]+)", name)
        return cls(hub[1], hub[2]) if hub else cls("", name)

    def __str__(self) -> str:
        return self.org + self.rest


def render(template: str, context: Mapping[str, object]) -> str:
    """A template as a page that runs no script but its own and fetches nothing.

    Args:
      template: File in `lensjax/report/templates`.
      context: Its variables. Texts may hold anything; they are escaped.

    Returns:
      HTML, the same bytes for the same context and the versions named at the foot of the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lensjax.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=text.count, grouped="{:,}".format)
    # Plotly's bundle of basic charts, as it is published in npm's plotly.js-basic-dist-min under the MIT licence: the
    # whole one, which the Python package holds, is four times as large, and pages draw nothing but lines and points.
    scripts = {"plotly": _asset("plotly-basic.min.js"), "page": _asset("page.js")}
    frame = {
        "versions": [
            ("LensJAX", __version__),
            *((package, version(package)) for package in ("jax", "numpy", "plotly")),
            ("Python", platform.python_version()),
        ],
        "css": Markup(_asset("page.css")),  # noqa: S704  # ours
        "scripts": {name: Markup(code) for name, code in scripts.items()},  # noqa: S704  # ours
        "script_hashes": [_csp_hash(code) for code in scripts.values()],
    }
    return environment.get_template(template).render({**context, **frame})


@cache
def _asset(name: str) -> str:
    return files("lensjax.report").joinpath("templates", name).read_text(encoding="utf-8")


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
