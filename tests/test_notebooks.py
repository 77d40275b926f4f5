"""What notebooks do where CI, which runs them from top to bottom with the public curves, does not look."""

import json
from pathlib import Path

import pytest

from lensjax.curves import public as datasets

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def test_without_the_public_curves_our_own_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "available", list)
    monkeypatch.chdir(NOTEBOOKS)
    cells = json.loads((NOTEBOOKS / "01_rank_from_curves.ipynb").read_text(encoding="utf-8"))["cells"]
    read, fit = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"][:2]
    names: dict[str, object] = {}
    exec(read + "\n" + fit, names)
    assert len(names["order"]) >= 5  # type: ignore[arg-type]
