"""`lensjax plan`, from outside."""

import json

import pytest

from lensjax.cli.main import main
from lensjax.study.plan_schema import Plan


@pytest.fixture
def save_study(tmp_path, save_sums, save_model):
    """Writes a study of two candidates with one tiny model; arguments replace fields of the spec."""

    def write(**fields):
        folder, task = str(save_model()), json.loads(save_sums().read_text())
        training = task.pop("training")
        content = {
            "candidates": [{"source": folder, "name": name} for name in ("one", "[other]")],
            "task": task,
            "training": training | {"epochs": 2},
            "budget": {"examples": 400, "flops": 1e6},
            "evidence": {"ntk": False, "hessian": True, "weights": True},
        }
        path = tmp_path / "study.yaml"
        path.write_text(json.dumps(content | fields))  # which is YAML too
        return path

    return write


def test_a_plan_is_told_and_written(save_study, tmp_path, capsys, save_sums):
    rows = [{"a": i, "b": j, "c": i + j} for i in range(24) for j in range(24)]
    path = save_study(candidates=[{"source": str(tmp_path / "model"), "name": name} for name in ("one", "other")])
    save_sums(rows)
    main(["plan", str(path), "--no-timing", "--json", str(tmp_path / "plan.json")])
    said = capsys.readouterr().out
    found = Plan.model_validate_json((tmp_path / "plan.json").read_text())
    tables, _, _ = said.partition(found.notes[0])
    wrote, *lines = tables.splitlines()
    assert wrote == f"Wrote {tmp_path / 'plan.json'}"
    assert max(map(len, lines)) <= 80
    assert found.target == 576 - 40
    assert found.reached == 0
    assert found.sentence.startswith("The budget may not be enough for two rungs; all of them are at most ")
    assert found.sentence in said
    assert "Weight metrics (evidence.weights) are not counted." in said
    rows = [line.split() for line in said.splitlines()]
    assert all([one.model] in [row[:1] for row in rows] for one in found.candidates)
    assert ["400", "1", "100"] in [row[:3] for row in rows]
    assert f"Wrote {tmp_path / 'plan.json'}" in said
