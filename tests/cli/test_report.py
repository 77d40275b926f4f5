"""The command that reports on a study."""

import pytest

from lensjax.cli.report import report
from lensjax.core.errors import InputError
from lensjax.study.folder import open_study
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
    report(study)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "No decision yet: nothing was measured so far. 6 cells of 6 are left."
    assert said[1:] == [f"Wrote {study / name}" for name in ("report.html", "report.json", "ranking.csv", "curves.csv")]
    assert StudyReport.model_validate_json((study / "report.json").read_text()).target == 460


def test_a_folder_without_a_study(tmp_path):
    with pytest.raises(InputError, match="holds no study"):
        report(tmp_path)
