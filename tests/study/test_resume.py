"""A study that is killed at random moments comes to the same end as an unbroken one."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

KILLS = -(-int(os.environ.get("LENSJAX_TEST_KILLS", "5")) // 5)


def test_a_study_that_is_killed_again_and_again_comes_to_the_same_end(write_study, tiny_models, tmp_path):
    (source,) = tiny_models("gpt2")
    study = write_study(
        tmp_path,
        candidates=[source, {"source": source, "training": {"method": "lora", "lora_rank": 4}}],
        training={"learning_rate": [1e-3, 3e-3], "epochs": 2, "checkpoint_every": 4},
        evidence={"ntk": {"examples": 8}},
    )
    script = Path(__file__).with_name("killed_study.py")
    command = [sys.executable, "-W", "error", script, study, tmp_path, str(KILLS), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["kills"] == KILLS
    whole = curves(tmp_path / "whole")
    assert [(row["model"], row["examples"], row["method"]) for row in whole] == [
        (name, size, method)
        for name, method in (("gpt2", "full"), ("gpt2+lora4", "lora"))
        for size in ("0", "200", "400")
    ]
    assert {(row["family"], row["size"]) for row in whole} == {("gpt2", whole[0]["size"])}
    assert float(whole[0]["loss"]) == float(whole[3]["loss"])  # the same model before either is fine-tuned
    for run in range(said["runs"]):
        assert curves(tmp_path / str(run)) == whole
        assert decisions(tmp_path / str(run)) == decisions(tmp_path / "whole")


def curves(folder):
    with (folder / "curves.csv").open() as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


def decisions(folder):
    lines = map(json.loads, (folder / "journal.jsonl").read_text().splitlines())
    return [line["decision"] for line in lines if "decision" in line]
