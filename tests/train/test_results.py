import json

from lensjax.train.results import METRICS, Result, read_result, steps_caution, write_result


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
