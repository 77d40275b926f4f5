"""The command that reports on a study."""

import json

import pytest

from lensjax.cli.report import report
from lensjax.core.errors import InputError
from lensjax.study.folder import open_study, read_study_folder
from lensjax.study.schema import StudyReport
from lensjax.study.spec import StudySpec


@pytest.fixture
def study(tmp_path):
    """A folder of a study that has not begun."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"n": {n}}}\n' for n in range(500)))
    spec = StudySpec.model_validate(
        {
            "name": "toy",
            "candidates": [{"source": "org/one", "name": "one"}, {"source": "org/two", "name": "two"}],
            "task": {"name": "toy", "source": {"files": str(rows)}, "prompt": "{n}:", "target": "{n}"}
            | {"validation": 20, "test": 20},
            "budget": 400,
            "evidence": {"ntk": False},
        }
    )
    open_study(spec, tmp_path / "study")
    return tmp_path / "study"


def test_it_says_the_decision_and_what_it_wrote(study, capsys):
    report((study,))
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "No decision yet: nothing was measured so far. 6 runs and measurements of 6 are left."
    assert said[:-1] == [
        f"Wrote {study / name}" for name in ("report.html", "report.json", "ranking.csv", "curves.csv")
    ]
    assert StudyReport.model_validate_json((study / "report.json").read_text()).target == 460


def test_a_folder_without_a_study(tmp_path):
    with pytest.raises(InputError, match="holds no study"):
        report((tmp_path,))


def kept(folder, evidence, **fields):
    """Change what the folder keeps of its study."""
    path = folder / "study.json"
    content = json.loads(path.read_text())
    content["spec"]["evidence"] = evidence
    del content["checksum"]  # which earlier versions did not write
    path.write_text(json.dumps(content | fields))


def test_a_study_of_before_measurements_were_registered(study):
    kept(
        study, {"ntk": {"examples": 64, "functional": "loss", "along_ladder": False}, "hessian": None, "weights": False}
    )
    assert [*read_study_folder(study).measurements] == ["ntk", "finetune"]


def test_a_study_of_another_version(study):
    kept(study, {"colour": {}}, lensjax="9.9")
    with pytest.raises(InputError, match=r"no field evidence\.colour.* LensJAX 9\.9 wrote it, and this is .* version"):
        report((study,))
