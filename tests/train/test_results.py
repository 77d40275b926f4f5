import json

from lensjax.curves.csv_files import parse_curves
from lensjax.tasks.writing import Writing
from lensjax.train.results import (
    METRICS,
    Result,
    curves_csv,
    notes,
    read_result,
    result_sentence,
    steps_caution,
    write_result,
)


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
    assert found.startswith("In 2 of 4 runs (the smallest on 200 examples) the validation loss was lowest at the last")
    assert "raise min_steps" in found


def test_what_a_test_showed_is_said_in_the_unit_that_models_are_compared_in():
    assert result_sentence(run(200)) == "test loss 1.0000 nats per token"
    known = {"standard_error": 0.02, "bits_per_byte": 0.5, "bits_per_byte_error": 0.01, "token_accuracy": 0.75}
    assert result_sentence(run(200, exact_match=0.25, exact_match_error=0.03, **known)) == (
        "test loss 0.5000 ± 0.0100 bits per byte (1.0000 ± 0.0200 nats per token), token accuracy 0.7500, "
        "exact match 0.2500 ± 0.0300"
    )
    assert notes([run(200, note="2 targets were cut"), run(400, note="2 targets were cut"), run(800)]) == [
        "a: 2 targets were cut"
    ]


def test_results_from_before_metrics_are_read(tmp_path):
    write_result(tmp_path, run(200))
    path = tmp_path / "result.json"
    fields = json.loads(path.read_text())
    for name in METRICS:
        del fields[name], fields[f"{name}_error"]
    del fields["test_bytes"], fields["note"], fields["checksum"]
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
