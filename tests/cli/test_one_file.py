"""A study's file where a task's is taken, settings on the command line, and misspelt names."""

import json

import pytest
import yaml

from lensjax.cli.main import main


@pytest.fixture
def study(tmp_path, save_model, monkeypatch):
    """The file of a study in the working folder; `one` and `two` are a tiny model, trained in two ways."""
    monkeypatch.chdir(tmp_path)
    rows = [{"a": f"{i:03}", "b": f"{i * i:06}"} for i in range(500)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "candidates": [
            {"source": str(save_model()), "name": "one"},
            {"source": "model", "name": "two", "training": {"learning_rate": 2e-3}},
        ],
        "task": {"source": {"files": "rows.jsonl"}, "prompt": "{a}", "target": "{b}", "validation": 16, "test": 16},
        "training": {"learning_rate": [1e-3, 3e-3], "batch_size": 16, "epochs": 1},
        "budget": 400,
        "target": 1600,
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(spec))
    return spec


def test_data_kernels_and_runs_take_a_study(study, capsys, tmp_path):
    main(["data", "show", "study.yaml", "--candidate", "two", "--json", "data.json"])
    assert json.loads((tmp_path / "data.json").read_text())["unit"] == "tokens"
    main(["ntk", "study.yaml", "--candidate", "two", "--examples", "4", "--out", "kernel"])
    assert json.loads((tmp_path / "kernel" / "kernel.json").read_text())["examples"] == 4
    run = ["finetune", "study.yaml", "--candidate", "two", "--examples", "32", "--out", "runs"]
    main([*run, "--set", "training.batch_size=8", "task.test=8"])
    result = json.loads((tmp_path / "runs" / "two" / "examples-32-seed-0" / "result.json").read_text())
    assert (result["learning_rate"], result["steps"], result["test_examples"]) == (2e-3, 4, 8)
    said = capsys.readouterr().out
    assert "Wrote runs/two/examples-32-seed-0/model: the model" in said


def test_what_is_wrong_with_the_choice_of_a_model_is_named(study, fails, save_sums):
    said = fails("data", "show", "study.yaml", "--candidate", "tow")
    assert "The study study has no candidate 'tow'; did you mean two?" in said
    assert "--model is missing; name a model, or a candidate by --candidate" in fails("ntk", "study.yaml", "--out", "k")
    both = ("--model", "model", "--candidate", "one", "--out", "k")
    assert "--model and --candidate are both given" in fails("hessian", "study.yaml", *both)
    task = save_sums()
    assert "which has no candidates; name a model" in fails("ntk", task, "--candidate", "one", "--out", "k")
    assert "the spec of a task, which has no winner" in fails("finetune", task, "--winner")
    assert "holds no study" in fails("finetune", "study.yaml", "--winner")
    assert "leave out --model and --candidate" in fails("finetune", "study.yaml", "--winner", "--candidate", "one")
    assert "--out is missing" in fails("finetune", "study.yaml", "--candidate", "one")


def test_settings_change_fields(study, capsys):
    settings = ["--set", "budget=12k", "target=1.6M", "candidates.1.name=mine", "--set", "evidence.ntk=false"]
    main(["run", "study.yaml", "--dry-run", *settings])
    cells = capsys.readouterr().out.splitlines()
    assert "mine, 200 examples, seed 0" in cells
    assert not any("kernel" in cell for cell in cells)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("budget", "--set budget is no setting; write FIELD=VALUE, as in training.epochs=3"),
        ("training.epoch=3", "there is no field training.epoch; did you mean training.epochs?"),
        ("epochs=3", "there is no field epochs; did you mean training.epochs?"),
        ("task.source.file=x", "there is no field task.source.file; did you mean task.source.files?"),
        ("candidates.2.name=x", "asks for '2' of a list of 2, counted from 0"),
        ("training.epochs.more=x", "asks for 'more' of a value without fields"),
        ("budget=12.5k7", "budget is '12.5k7'"),
    ],
)
def test_settings_that_cannot_be_are_named(study, fails, setting, said):
    assert said in fails("run", "study.yaml", "--dry-run", "--set", setting)


def test_misspelt_commands_and_columns_are_guessed(study, fails):
    assert "There is no command 'pln'; did you mean plan?" in fails("pln", "study.yaml")
    assert "There is no command 'shwo'; did you mean show?" in fails("data", "shwo", "study.yaml")
    assert "choose from study, plan" in fails("xyzzy")
    assert "did you mean lensjax plan?" in fails("study", "plan", "study.yaml")
    assert "did you mean lensjax study init?" in fails("init", "study.yaml")
    assert "did you mean {a}?" in fails("data", "show", "study.yaml", "--set", "task.prompt={aa}")


def test_short_names_of_numbers_and_types_are_read(study, capsys, fails):
    main(["rank", "simulated", "--target", "12k", "--budget", "1.6k"])
    assert "measured up to 1,600 examples, predicted at 12,000" in capsys.readouterr().out
    main(["models", "show", "model", "--dtype", "bf16"])
    assert "float32" not in capsys.readouterr().out
    main(["data", "show", "study.yaml", "--set", "training.dtype=bf16"])
    for wrong in (("--dtype", "bf17"), ("--dtype", "int8")):
        with pytest.raises(SystemExit, match="2"):
            main(["models", "show", "model", *wrong])
    said = capsys.readouterr()
    assert "give one of float32" in said.out + said.err
