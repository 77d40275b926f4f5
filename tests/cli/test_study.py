"""`lensjax study init` and `lensjax run`, as a user sees them."""

import json

import pytest
import yaml

from lensjax.cli.main import main
from lensjax.core.errors import InputError
from lensjax.study.spec import read_study
from lensjax.tasks.task import load_task

_ROWS = "".join(json.dumps({"a": f"{i:03}", "b": f"{i * i:06}"}) + "\n" for i in range(4000))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with rows."""
    (tmp_path / "rows.jsonl").write_text(_ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begin(*arguments):
    main(["study", "init", "mine.yaml", "--data", "rows.jsonl", "--prompt", "{a}: ", "--target", " {b}", *arguments])


def test_what_init_writes_is_a_study(folder, capsys):
    begin("--candidates", "org/one", "org/two", "--budget", "3200", "--full", "100000")
    assert "lensjax plan mine.yaml" in capsys.readouterr().out
    spec = read_study(folder / "mine.yaml")
    assert spec.names == ["one", "two"]
    assert (spec.task.prompt, spec.task.target) == ("{a}: ", " {b}")
    assert (spec.budget.examples, spec.target) == (3200, 100_000)
    assert (spec.task.validation, spec.task.test) == (400, 400)  # a tenth of the rows each
    text = (folder / "mine.yaml").read_text()
    fields = set(yaml.safe_load(text))
    assert {name for name in type(spec).model_fields if name in text} >= fields
    text = text.replace("# eliminate_below", "eliminate_below").replace("# stop_when", "stop_when")
    (folder / "mine.yaml").write_text(text)
    assert read_study(folder / "mine.yaml").stop_when.probability_best == 0.95


def test_init_needs_no_templates_for_conversations(folder):
    turns = [[{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": f"{-n}"}] for n in range(3000)]
    rows = "".join(json.dumps({"messages": both}) + "\n" for both in turns)
    (folder / "chat.jsonl").write_text(rows)
    main(["study", "init", "chat.yaml", "--data", "chat.jsonl", "--candidates", "org/one", "org/two"])
    task = read_study(folder / "chat.yaml").task
    assert (task.is_chat, task.messages, task.max_target_tokens) == (True, None, 1024)


def test_init_says_what_is_missing_or_wrong(folder, fails):
    init = ("study", "init", "mine.yaml", "--data", "rows.jsonl", "--prompt", "{a}")
    assert "--candidates is missing; give it, or answer on a terminal" in fails(*init, "--target", "{b}")
    assert "two candidates or more" in fails(*init, "--target", "{b}", "--candidates", "org/one")
    said = fails(*init, "--target", "no field", "--candidates", "org/one", "org/two")
    assert "task.target is 'no field': it names no field of a row" in said
    two = ("--candidates", "org/one", "org/two")
    lost = (*init[:3], "--data", "lost.jsonl", "--prompt", "{a}", "--target", "{b}", *two)
    assert f"{folder / 'lost.jsonl'}" in fails(*lost)
    said = fails(*init, "--target", "{c}", *two)
    assert "rows.jsonl" in said
    assert "'c'" in said
    said = fails(*init, "--target", "{b}", *two, "--budget", "3201")
    assert "rows.jsonl has 3,200 examples to train on beside 400 for validation and 400 for test" in said
    assert "give a smaller --budget" in said
    (folder / "none.jsonl").touch()
    assert "none.jsonl holds 0 rows" in fails(
        *(x if x != "rows.jsonl" else "none.jsonl" for x in init), "--target", "{b}", *two
    )
    assert "ends in .yaml" in fails(*(x if x != "mine.yaml" else "mine" for x in init), "--target", "{b}", *two)
    (folder / "empty").mkdir()
    assert "empty has no config.json" in fails(*init, "--target", "{b}", "--candidates", "org/one", "empty")
    assert "A candidate is empty" in fails(*init, "--target", "{b}", "--candidates", "org/one", "")
    said = fails("study", "init", "empty/mine.yaml", *init[3:], "--target", "{b}", "--candidates", "org/one", "empty")
    assert "empty is no folder beside the study's file; give ." in said
    assert "There is no model folder lost;" in fails(*init, "--target", "{b}", "--candidates", "org/one", "./lost")
    assert "pocket:gpt2-0.2m" in fails(*init, "--target", "{b}", "--candidates", "org/one", "pocket:gpt9")
    assert not (folder / "mine.yaml").exists()
    begin("--candidates", "org/one", "org/two")
    assert "mine.yaml is there already" in fails(*init, "--target", "{b}", "--candidates", "org/one", "org/two")


def test_init_says_of_rows_what_a_study_of_them_would(folder, fails):
    init = ("study", "init", "mine.yaml", "--prompt", "{a}", "--target", "{b}", "--candidates", "a/a", "b/b", "--data")
    rows = _ROWS.splitlines()
    (folder / "few.jsonl").write_text("\n".join(rows[:300]))
    said = fails(*init, "few.jsonl")
    assert "few.jsonl has 240 examples to train on" in said
    assert "a budget of 400; add rows." in said  # as two rungs are the least
    (folder / "equal.jsonl").write_text("\n".join(rows[:12] * 100))
    assert "equal.jsonl has too many rows that are equal: 120 examples for validation" in fails(*init, "equal.jsonl")
    begin("--candidates", "a/a", "b/b")
    *_, last = load_task(read_study(folder / "mine.yaml").task).shuffled(0)  # which no run of its budget would read
    (folder / "mine.yaml").unlink()
    line = int(last.where.rpartition(" ")[2])
    (folder / "blank.jsonl").write_text("\n".join([*rows[: line - 1], '{"a": "x", "b": ""}', *rows[line:]]))
    assert f"blank.jsonl line {line} has a blank target; fill it in or remove the row" in fails(*init, "blank.jsonl")


def test_init_takes_candidates_for_what_the_study_will(folder, fails):
    for one, other in (("x", "linkx"), ("y", "linky")):
        (folder / one / "model").mkdir(parents=True)
        (folder / one / "model" / "config.json").write_text('{"model_type": "gpt2"}')
        (folder / other).symlink_to(folder / one / "model")
    init = ("study", "init", "mine.yaml", "--data", "rows.jsonl", "--target", "{b}")
    said = fails(*init, "--prompt", "{a}", "--candidates", "linkx", "linky")
    assert "two candidates are called model" in said
    assert "half a character" in fails(*init, "--prompt", "\udcff{a}", "--candidates", "a/a", "b/b")
    said = fails(*init, "--prompt", "{a}", "--candidates", "x/model", "y/modle")
    assert "y/modle is no model, though y is a folder here; did you mean y/model?" in said
    assert not (folder / "mine.yaml").exists()


def test_answers_on_a_terminal(folder, monkeypatch, fails):
    answers = iter(["a/a b/b ", "rows.jsonl ", "{a}: ", " {b}"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    main(["study", "init", "asked.yaml"])
    task = read_study("asked.yaml").task
    assert (task.prompt, task.target) == ("{a}: ", " {b}")

    def end(question):
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    assert "--candidates is missing; give it" in fails("study", "init", "ended.yaml")


def test_templates_stay_as_they_are(folder):
    odd = "é\u0085 \u2028 \u2029 \ufeff\ufffe\uffff\x7f \"\n' {a}"
    main(
        [
            "study",
            "init",
            "a.yaml",
            "--data",
            "rows.jsonl",
            "--prompt",
            odd,
            "--target",
            " {b}",
            "--candidates",
            "a/a",
            "b/b",
        ]
    )
    assert read_study("a.yaml").task.prompt == odd


def test_what_a_shell_types_for_a_new_line_is_one(folder, capsys):
    arguments = ["--data", "rows.jsonl", "--target", " {b}", "--candidates", "a/a", "b/b"]
    main(["study", "init", "a.yaml", "--prompt", r"Say:\n{a}\\n", *arguments])
    assert read_study("a.yaml").task.prompt == "Say:\n{a}\\n"
    assert r"The prompt has \n, which is taken for a new line; write \\n for" in capsys.readouterr().out


def test_init_proposes_what_saves_and_says_what_it_costs(folder, save_model, capsys):
    begin("--candidates", str(save_model()), "org/two")
    said = capsys.readouterr().out
    assert "rows.jsonl has 3,200 examples to train on beside 400 held out for validation and 400 held out" in said
    assert "Of 1,000 examples, 99.5 % have at most" in said
    assert "The study costs roughly 36 % of fine-tuning every candidate on all 3,200 examples" in said
    spec = read_study(folder / "mine.yaml")
    assert (spec.budget.examples, spec.training.min_steps, len(spec.training.learning_rates)) == (400, 120, 1)
    assert (spec.task.max_prompt_tokens, spec.task.max_target_tokens) == (16, 16)


def test_init_uses_the_splits_that_the_data_have(folder, capsys):
    lines = _ROWS.splitlines(keepends=True)
    (folder / "rows").mkdir()
    for name, part in (("train-0", lines[:2000]), ("train-1", lines[2000:3800]), ("dev", lines[3800:])):
        (folder / "rows" / f"{name}.jsonl").write_text("".join(part))
    arguments = ["--prompt", "{a}", "--target", " {b}", "--candidates", "a/a", "b/b"]
    main(["study", "init", "a.yaml", "--data", "rows", *arguments])
    assert "rows has 3,420 examples to train on beside 200 in dev.jsonl for validation and 380 held" in (
        capsys.readouterr().out
    )
    spec = read_study("a.yaml")
    assert (spec.task.validation, spec.task.test) == (200, 380)
    main(["data", "show", "a.yaml"])
    assert "Splits: train train-0.jsonl, train-1.jsonl; validation dev.jsonl; test held out of train" in (
        capsys.readouterr().out
    )


def test_init_looks_beside_the_file_that_it_writes(folder):
    (folder / "studies").mkdir()
    (folder / "rows.jsonl").rename(folder / "studies" / "rows.jsonl")
    arguments = ("--data", "rows.jsonl", "--prompt", "{a}", "--target", "{b}", "--candidates", "pocket:gpt2-0.2m")
    main(["study", "init", "studies/mine.yaml", *arguments, "org/two"])
    assert read_study("studies/mine.yaml").task.source.files["train"] == [folder / "studies" / "rows.jsonl"]


def test_a_study_of_which_every_run_fails_ends_with_status_1(folder, save_model, capsys, monkeypatch):
    begin("--candidates", str(save_model()), "pocket:gpt2-0.2m", "--budget", "400")

    def fail(bench, cell):
        raise InputError("no memory.")

    monkeypatch.setattr("lensjax.study.bench.Bench._evidence", fail)
    main(["run", "mine.yaml", "--limit", "1"])  # kernels fail, and runs are left
    assert "No decision yet" in capsys.readouterr().out
    monkeypatch.setattr("lensjax.study.bench.Bench._run", fail)
    with pytest.raises(SystemExit) as ended:
        main(["run", "mine.yaml"])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "no memory." in said
    assert "no memory.." not in said
    assert (folder / "mine" / "report.html").exists()


def test_run_says_what_it_does_and_writes_a_report(folder, save_model, capsys, fails):
    spec = {
        "candidates": [str(save_model()), {"source": "model", "name": "slow", "training": {"learning_rate": 1e-5}}],
        "task": {"source": {"files": "rows.jsonl"}, "prompt": "{a}", "target": "{b}", "validation": 20, "test": 20},
        "training": {"learning_rate": 3e-3, "batch_size": 16, "epochs": 1},
        "budget": 400,
        "target": 1600,
        "evidence": {"ntk": False},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(spec))
    main(["run", "mine.yaml", "--dry-run"])
    assert capsys.readouterr().out.splitlines()[0] == "model, 0 examples, seed 0"
    assert not (folder / "mine").exists()
    main(["run", "mine.yaml"])
    said = capsys.readouterr().out.splitlines()
    assert sum("test loss" in line for line in said) == 6
    assert any(line.startswith("After 400 examples: model first") for line in said)
    assert said[-1].startswith("Fine-tune model: predicted ")
    cautions = [line for line in said if line.startswith("Caution: ")]
    assert any("the validation loss was lowest at the last step" in line for line in cautions)
    names = {"curves.csv", "journal.jsonl", "ranking.csv", "report.html", "report.json", "study.json"}
    assert names <= {path.name for path in (folder / "mine").iterdir()}
    main(["report", "mine"])
    assert said[-1] in capsys.readouterr().out
    assert "To fine-tune model on all the data: lensjax finetune mine --winner" in said
    assert "lensjax finetune mine --winner" in (folder / "mine" / "report.html").read_text()
    main(["finetune", "mine.yaml", "--winner", "--examples", "32", "--set", "training.min_steps=0"])
    trained = capsys.readouterr().out
    assert "Wrote mine-winner/model/examples-32-seed-0/model: the model, which transformers opens" in trained
    assert "--limit is 0; give 1 or more" in fails("run", "mine.yaml", "--limit", "0")
    assert "holds no study; give the folder that `lensjax run` wrote" in fails("report", ".")
    assert "mine.yaml is not a folder; give the name of one" in fails("report", "mine.yaml")
