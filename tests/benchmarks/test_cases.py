"""Benchmarks of pods: rows are written as they come, and what kernels and Hessians run is counted on eight devices."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import pytest
from transformers import LlamaConfig

from lensjax.core.roofline.chips import CHIPS
from lensjax.core.topologies import Topology

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MODEL = LlamaConfig(vocab_size=128, hidden_size=256, intermediate_size=384, num_hidden_layers=3, num_attention_heads=2)


class Named(NamedTuple):
    title: str
    topology: str = "v5e:2x2"


@pytest.fixture(scope="module")
def scripts(imported: Any) -> Iterator[dict[str, ModuleType]]:
    with imported(RESULTS.parent, "cases", "curvature_pods") as modules:
        yield modules


def test_rows_that_are_there_stay(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = scripts["cases"]
    monkeypatch.setattr(cases, "use_compiler", lambda topology: None)
    out, calls = tmp_path / "rows.json", []

    def measure(case: Named) -> dict[str, Any]:
        calls.append(case.title)
        return {"third": 1 / 3, "calls": len(calls)}

    def run(*arguments: str) -> dict[str, Any]:
        some = cases.parser_of("doc").parse_args(["--out", str(out), *arguments])
        cases.run_cases(some, [Named("a"), Named("b")], measure, ["jax"])
        return json.loads(out.read_text())

    assert list(run("--case", "1")) == ["b"]
    found = run()
    assert calls == ["b", "a"]
    assert list(found) == ["a", "b"]  # in the order of the cases
    assert found["a"]["third"] == 0.33333
    assert {"machine", "versions", "revision", "date"} < set(found["a"])
    assert run("--case", "0")["a"]["calls"] == 3
    with pytest.raises(SystemExit, match="--case counts from 0 to 1"):
        run("--case", "2")
    assert isinstance(cases.parser_of("doc"), argparse.ArgumentParser)


@pytest.mark.eight_devices
@pytest.mark.parametrize(("what", "examples"), [("kernel", 24), ("lanczos", 3)])
def test_curvature_on_devices(
    what: str, examples: int, scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = scripts["curvature_pods"]
    chip = CHIPS["h100"].model_copy(update={"memory_gb": 0.02})
    monkeypatch.setattr(pods, "find_topology", lambda name: Topology(name, chip, jax.devices(), "cpu:8"))
    case = pods.Case(what, "tiny", MODEL, "h100:8", "fsdp=8", (16,), examples)
    row = pods.fitting(case)
    assert "problem" not in row
    assert row["stacked_parameters_gathered_whole"] == 0
    assert row["parameters_gb"] == pytest.approx(4e-9 * row["parameters"] / 8, rel=0.01)
    assert row["memory_gb"] == max(one["memory_gb"] for one in row["programs"]) < chip.memory_gb
    assert row["seconds"] == pytest.approx(sum(one["runs"] * one["seconds"] for one in row["programs"]))
    assert row["sent_gb"]["all-gather fsdp"] > 2e-9 * row["parameters"]  # of every layer, at least twice
    small = chip.model_copy(update={"memory_gb": 1e-3})
    monkeypatch.setattr(pods, "find_topology", lambda name: Topology(name, small, jax.devices(), "cpu:8"))
    if what == "kernel":
        assert "these examples need" in pods.fitting(case)["problem"]
