import json

from lensjax.curves.csv_files import parse_curves
from lensjax.tasks.writing import Writing
from lensjax.train.results import METRICS, Result, curves_csv, read_result, steps_caution, write_result


def run(examples, steps=10, best_step=10, **changed):
    return Result(
        model="a",
        examples=examples,
        loss=1.0,
        seed=0,
        size=1,
        family="gpt2",
        steps=steps,
        best_step=best_step,
        **changed,
    )


def test_runs_that_ended_while_still_learning_are_told_of():
    untrained, stopped, failed = run(0, 0, 0), run(100, best_step=5), run(50, status="failed")
    assert run(200).still_learning
    assert not any(result.still_learning for result in (untrained, stopped))
    assert steps_caution([untrained, stopped, failed]) is None
    found = steps_caution([untrained, stopped, failed, run(400), run(200), run(200), run(800, 20, 15)])
    assert found.startswith("In 2 of 4 runs, the smallest of 200 examples, the validation loss was lowest at the last")
    assert "raise min_steps" in found


def test_results_from_before_metrics_are_read(tmp_path):
    write_result(tmp_path, run(200))
    path = tmp_path / "result.json"
    fields = json.loads(path.read_text())
    for name in METRICS:
        del fields[name], fields[f"{name}_error"]
    del fields["test_bytes"], fields["note"]
    path.write_text(json.dumps(fields))
    assert read_result(tmp_path) == run(200)


def test_curves_say_which_model_cannot_write_its_targets(tmp_path):
    writing = Writing(rows=50, changed_targets=2, unknown_targets=1, examples=(("día,\n", "d<unk>a,"),))
    write_result(tmp_path, run(200, writing=writing))
    known = read_result(tmp_path)
    assert known.writing == writing
    whole = known.model_copy(update={"model": "b", "writing": Writing(rows=50)})
    results = [run(100), known, whole, whole.model_copy(update={"model": "c", "writing": None})]
    table = parse_curves(curves_csv(results, 0.03), "curves", "toy")
    assert table.models == ("a", "b", "c")
    why = "it cannot write 4 % of the 50 targets looked at, more than 3 %: 'día,\\n' is read back as 'd<unk>a,'"
    assert table.ineligible == (why, "", "")
    assert parse_curves(curves_csv(results, 0.04), "curves", "toy").eligible.all()
