"""How runs of a study learned, and what models wrote, in its report."""

import json

import pytest

from lensjax.cli.main import main
from lensjax.report.pages.sections import shown_section
from lensjax.study.learning import learning_curves, learning_section, samples_section
from lensjax.study.schema import CandidateState, LearningCurve
from lensjax.study.spec import read_study
from lensjax.train.samples import Sample


def candidate(name, *answers):
    samples = tuple(Sample(prompt=f"q{i}\nmore", target=" x", answer=answer) for i, answer in enumerate(answers))
    return CandidateState(
        name=name, source="a/b", family=None, parameters=None, state="measured", losses={}, samples=samples
    )


def test_the_first_two_models_answers_stand_beside_the_right_ones():
    rows = [
        candidate("third", " x", " x"),
        candidate("first", " x", " y"),
        candidate("none"),
        candidate("second", " y"),
    ]
    section = samples_section(rows, ["none", "first", "second", "third"])
    (table,) = section.tables
    assert list(table.columns) == ["Prompt", "Right answer", "first", "second"]
    assert table.rows == [("1", ["q0 ⏎ more", "x", "x", "y"]), ("2", ["q1 ⏎ more", "x", "y", "–"])]
    assert "first 1 of 2 and second 0 of 1" in section.paragraphs[0]
    assert samples_section(rows, ["none"]) is None


def test_each_of_the_first_candidates_has_a_plot_with_a_line_for_each_rung():
    curves = [
        LearningCurve(model=f"m{i}", examples=size, steps=(10, 20), losses=(2.0, 1.0))
        for i in range(8)
        for size in (200, 400)
    ]
    section = learning_section(curves, ["m7"])
    assert [plot.title for plot in section.plots] == ["m7", "m0", "m1", "m2", "m3", "m4"]
    assert [line.name for line in section.plots[0].lines] == ["400 examples", "200 examples"]
    assert "of the first 6 of 8 candidates" in section.paragraphs[0]
    assert len({plot.id for plot in shown_section(section)["plots"]}) == 6
    assert learning_section([], []) is None


@pytest.fixture(scope="module")
def finished(write_study, tmp_path_factory):
    """The folder of a study of two models that write two answers each."""
    folder = tmp_path_factory.mktemp("learned")
    training = {"learning_rate": 3e-3, "batch_size": 16, "epochs": 2, "evaluate_every": 5}
    path = write_study(folder, "gpt2", "opt", training=training, samples=2)
    main(["run", str(path)])
    return folder / "study"


def test_a_study_keeps_what_its_models_wrote_and_how_they_learned(finished):
    report = json.loads((finished / "report.json").read_text())
    for one in report["candidates"]:
        assert [sample["prompt"][-1] for sample in one["samples"]] == [":", ":"]
    assert {(one["model"], one["examples"]) for one in report["learning"]} == {
        (name, size) for name in ("gpt2", "opt") for size in (200, 400)
    }
    page = (finished / "report.html").read_text()
    assert "What the models write" in page
    assert 'id="learning-0-data"' in page
    assert "samples" not in (finished / "curves.csv").read_text().splitlines()[0]


def test_logs_are_read_as_far_as_they_can_be(finished):
    from lensjax.study.folder import read_results, read_study_folder

    spec = read_study_folder(finished)
    results = read_results(spec, finished, {})
    before = learning_curves(spec, finished, results)
    for number, log in enumerate(sorted(finished.rglob("log.jsonl"))):
        kept = log.read_bytes()
        log.write_bytes(b'{"step": 1, "validation_loss": NaN}\n[1]\n\xff{\n' + kept if number else b"")
    after = learning_curves(spec, finished, results)
    assert len(after) == len(before) - 1
    assert set(after) < set(before)


def test_time_left_knows_planned_steps(write_study, tmp_path):
    from lensjax.study.standing import steps_by

    training = {"learning_rate": 3e-3, "batch_size": 16, "epochs": 1, "min_steps": 20}
    steps = steps_by(read_study(write_study(tmp_path, "gpt2", "opt", training=training)))
    assert [steps("gpt2", size) for size in (200, 400)] == [20, 25]
