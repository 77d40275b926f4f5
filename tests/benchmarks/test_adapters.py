"""`benchmarks/adapters.py`: what it compares, and what is committed."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def adapters(imported: Any) -> Iterator[ModuleType]:
    with imported(BENCHMARKS, "adapters") as modules:
        yield modules["adapters"]


def measured(kernels: str, start: int, loss: float, model: str = "m") -> dict[str, object]:
    own = {"task": "t", "model": model, "kernels": kernels, "start": start, "examples": 4, "parameters": 9}
    return own | {"loss": loss, "standard_error": 0.1, "steps": 2, "bytes": 8, "note": ""}


def test_means_are_over_the_starts_that_all_kernels_have(adapters: ModuleType) -> None:
    rows = [measured("bfloat16", 0, 1.0), measured("bfloat16", 1, 2.0), measured("bfloat16", 2, 9.0)]
    rows += [measured("nf4", 0, 1.5), measured("nf4", 1, 2.0), measured("nf4", 0, 3.0, "alone")]
    usual, one = adapters.compare(rows)
    assert (usual["kernels"], usual["above_bfloat16"], usual["starts"], usual["spread"]) == ("bfloat16", 0.0, 2, 1.0)
    assert (one["kernels"], one["above_bfloat16"], one["model"]) == ("nf4", 0.25, "m")
    assert one["error"] == pytest.approx(0.25)  # of differences of 1/2 and 0
    assert "error" not in adapters.compare(rows[:1] + rows[3:4])[1]


def test_committed_losses_over_quantised_kernels_are_near_those_over_bfloat16(adapters: ModuleType) -> None:
    committed = json.loads((BENCHMARKS / "results" / "adapters.json").read_text())
    assert committed["revision"]
    assert not committed["settings"]["quick"]
    assert committed["compared"] == adapters.compare(committed["measured"])
    assert {one["model"] for one in committed["compared"]} >= {"gpt2-0.2m", "opt-0.5m"}
    assert all(target["met"] for target in committed["targets"])
