"""What users see of a run while it is trained."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from lensjax.train.displays import Lines, NotebookBar, default_display, left_text


@pytest.fixture
def notebook(monkeypatch):
    """IPython as it is in the kernel of a notebook; gives all that was shown."""
    shown = []

    def display(thing, display_id):
        shown.append(thing)
        return SimpleNamespace(update=shown.append)

    package, inside = ModuleType("IPython"), ModuleType("IPython.display")
    package.get_ipython = lambda: SimpleNamespace(kernel=object())
    inside.HTML, inside.display, package.display = str, display, inside
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", inside)
    return shown


def test_a_notebook_has_a_bar_below_its_cell(notebook, monkeypatch):
    monkeypatch.setattr("lensjax.train.displays._BETWEEN", 0.0)
    bar = default_display()
    assert isinstance(bar, NotebookBar)
    bar.begin("<a>, 200 examples", 0, 40)
    bar.step(1, 3.0, {}, None)
    bar.step(2, 2.5, {"tokens_per_second": 1234.5, "model_flops_utilisation": 0.25}, 61.0)
    bar.validation(2, 2.4)
    bar.end()
    assert notebook[0].endswith("&lt;a&gt;, 200 examples: step 0 of 40, compiling")
    assert notebook[1].endswith("step 1 of 40, loss 3.0000")
    assert '<progress value="2" max="40">' in notebook[2]
    assert notebook[2].endswith("loss 2.5000, 1,234 tokens/s, 25 % of peak, at most 1 min left")
    assert notebook[3].endswith("validation loss 2.4000")
    assert notebook[4] == ""


def test_elsewhere_there_are_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert isinstance(default_display(), Lines)


def test_time_that_is_not_known_yet_is_not_told():
    assert left_text(None) == ""
    assert left_text(3725) == "at most 1 h 2 min left"
