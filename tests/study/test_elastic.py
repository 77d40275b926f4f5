"""A study on several hosts of which one dies goes on with fewer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lensjax.study.runner import run_study
from lensjax.study.spec import read_study


@pytest.mark.skipif("LENSJAX_TEST_CHAOS" not in os.environ, reason="takes a minute; .ci/run sets LENSJAX_TEST_CHAOS")
def test_a_study_of_four_processes_goes_on_with_two_once_one_is_killed(write_study, tiny_models, tmp_path):
    (source,) = tiny_models("gpt2")
    candidates = [source, {"source": source, "name": "short", "training": {"max_steps": 2, "learning_rate": 3e-3}}]
    training = {"learning_rate": 3e-3, "batch_size": 16, "epochs": 2, "patience": 9, "checkpoint_every": 2}
    study = write_study(tmp_path, candidates=candidates, budget=400, training=training)
    out = tmp_path / "out"
    folder = out / "runs" / "gpt2" / "examples-200-seed-0"
    script = Path(__file__).with_name("elastic_study.py")
    command = [sys.executable, "-W", "error", script, study, out, folder / "log.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert (said["killed"], said["second"]) == (-9, [0, 0]), done.stderr[-3000:]
    assert set(said["left"]) <= {75, -6}, done.stderr[-3000:]  # told by us, or ended by JAX when its leader ended
    assert 75 in said["left"]
    assert "goes on from its last checkpoint" in done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["devices"] == 2
    steps = [line["step"] for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines())]
    assert steps == sorted(steps)
    assert steps[0] == json.loads(said["logged"][0])["step"]  # what was trained before is not trained again
    entries = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    assert [entry.get("status", "ok") for entry in entries if entry.get("cell")] == ["ok"] * 6
    run_study(read_study(study), tmp_path / "alone")
    whole = json.loads((tmp_path / "alone" / folder.relative_to(out) / "result.json").read_text())
    same = ("steps", "tokens", "flops", "data", "spec", "test_tokens")
    assert {key: result[key] for key in same} == {key: whole[key] for key in same}
    assert result["loss"] == pytest.approx(whole["loss"], rel=1e-4)
