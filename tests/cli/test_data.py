"""`lensjax data`."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lensjax.cli.main import main
from lensjax.tasks.spec import TaskSpec, read_spec
from lensjax.tasks.task import fingerprint, load_task

Run = Callable[..., tuple[int, str, str]]
SPEC = """
source: {files: rows.jsonl}
prompt: "say {words}:"
target: " {words}"
validation: 20
test: 30
max_prompt_tokens: 5
max_target_tokens: 4
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `lensjax data` in this process; returns exit status, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = 0
        try:
            main(["data", *map(str, arguments)])
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of 90 rows: i mod 13 + 1 of the words w0, w1, … from the one of i mod 7 on, all different."""
    rows = ({"words": " ".join(f"w{i % 7 + j}" for j in range(i % 13 + 1)), "n": i} for i in range(90))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "echo.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def save_model(tmp_path: Path, save_tokenizer: Callable[[Path, int], None]) -> Callable[..., Path]:
    """Writes the configuration and the tokenizer of a model, without weights; arguments change the tokenizer's."""

    def save(config: dict[str, object], **settings: object) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        save_tokenizer(folder, 40)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return folder

    return save


def test_characters(run: Run, task: Path, tmp_path: Path) -> None:
    output = tmp_path / "data.json"
    status, out, err = run("show", task, "--json", output)
    assert (status, err) == (0, "")
    assert "echo: train 40, validation 20, test 30" in out
    assert "Fields: words\n" in out
    assert "Lengths in characters" in out
    assert re.search(r"│ train +│ prompt +│ +\d+ │ +\d+ │ +\d+ │ +\d+ │ +\d+ │ +– │", out)
    assert f"Wrote {output}" in out
    content = json.loads(output.read_text())
    assert content["available"] == {"train": 40, "validation": 20, "test": 30}
    assert content["unit"] == "characters"
    loaded = load_task(read_spec(task, TaskSpec))
    assert content["fingerprint"] == {"validation": fingerprint(loaded.validation), "test": fingerprint(loaded.test)}
    lengths = sorted(len(example.prompt) for example in loaded.test)
    found = content["lengths"]["test"]["prompt length"]
    assert (found["min"], found["max"], found["cut"]) == (lengths[0], lengths[-1], None)
    drawn = loaded.train(0, 3)
    assert [(e["prompt"], e["target"], e["where"]) for e in content["examples"]] == [
        (e.prompt, e.target, e.where) for e in drawn
    ]
    for example in drawn:
        assert f"{example.where} (prompt {len(example.prompt)}, target {len(example.target)} characters)" in out
        assert f"{example.prompt!r}\n→ {example.target!r}\n" in out


def test_choices_are_counted(run: Run, tmp_path: Path) -> None:
    rows = [{"n": n, "kind": "even" if n % 2 == 0 else "odd", "all": ["even", "odd", "none"]} for n in range(90)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "kinds.yaml"
    path.write_text(SPEC.replace("{words}", "{n}", 1).replace("{words}", "{kind}") + "choices: all\n")
    status, out, err = run("show", path, "--json", tmp_path / "data.json")
    assert (status, err) == (0, "")
    assert "Choices: 3; scoring them adds 60 rows to the 30 of every test" in out
    assert json.loads((tmp_path / "data.json").read_text())["choices"] == {"fewest": 3, "most": 3, "rows": 60}


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_tokens(family: str, run: Run, task: Path, tmp_path: Path, save_model: Callable[..., Path]) -> None:
    model = save_model(
        {"model_type": family, "vocab_size": 40, "bos_token_id": 39, "eos_token_id": 39}, eos_token="w39"
    )
    status, out, err = run("show", task, "--model", model, "--json", tmp_path / "data.json")
    assert (status, err) == (0, "")
    assert "Lengths in tokens as cut" in out
    content = json.loads((tmp_path / "data.json").read_text())
    assert content["unit"] == "tokens"
    loaded = load_task(read_spec(task, TaskSpec))
    words = [len(example.target.split()) for example in loaded.test]
    targets = content["lengths"]["test"]["target length"]
    assert targets["cut"] == pytest.approx(sum(n + 1 > 4 for n in words) / 30)  # the end-of-text token counts
    assert (targets["min"], targets["max"]) == (min(words) + 1, 4)
    prompts = content["lengths"]["test"]["prompt length"]
    assert prompts["cut"] == pytest.approx(sum(n + 2 > 5 for n in words) / 30)  # "say" and ":"
    assert prompts["max"] == 5
    first = loaded.train(0, 1)[0]
    assert content["examples"][0]["target length"] == min(len(first.target.split()) + 1, 4)
    assert f"{targets['cut']:.1%}" in out
    found = content["writing"]
    assert (found["rows"], found["unknown_prompts"], found["unknown_targets"]) == (90, 90, 0)  # "say" is unknown
    assert "What the tokenizer cannot write" in out


def test_a_task_that_is_too_small_for_a_sample(run: Run, task: Path) -> None:
    task.write_text(SPEC.replace("test: 30", "test: 70"))
    status, out, _ = run("show", task)
    assert status == 0
    assert "echo: train 0, validation 20, test 70" in out
    assert re.search(r"│ train +│ target +│ +– │", out)


def test_how_models_are_trained_may_stand_in_the_spec(run: Run, task: Path) -> None:
    task.write_text(SPEC + "training: {method: lora}\n")
    assert run("show", task)[0] == 0


def test_markup_is_printed_as_it_is(run: Run, task: Path) -> None:
    row = json.dumps({"words": "[bold]b[/bold] [/x]"}) + "\n"
    (task.parent / "rows.jsonl").write_text(
        row.replace("b[", "1b[") + "".join(row.replace("b[", f"{i}b[") for i in range(60))
    )
    status, out, _ = run("show", task)
    assert status == 0
    assert re.search(r"'say \[bold\]\d+b\[/bold\] \[/x\]:'", out)


BAD = {
    "no spec": ("", ["none.yaml"], "Cannot read none.yaml: No such file or directory; give the YAML file of a task"),
    "unknown field": (SPEC + "trainings: {}", ["SPEC"], "echo.yaml: there is no field trainings; did you mean train"),
    "no such file": (SPEC.replace("rows.j", "row.j"), ["SPEC"], "row.jsonl: No such file or directory; mend source.fi"),
    "too few": (SPEC.replace("30", "100"), ["SPEC"], "test of the task echo is 100, but there are 90 examples to hold"),
    "no field of a row": (SPEC.replace(" {words}", " {word}"), ["SPEC"], "only words, n; did you mean {words}"),
    "no model": (SPEC, ["SPEC", "--model", "no/such/model"], "There is no model folder no/such/model; give the folder"),
    "output": (SPEC, ["SPEC", "--json", "no/such/data.json"], "there is no folder no/such; make it first"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_exits_with_2_and_one_sentence(kind: str, run: Run, task: Path) -> None:
    spec, arguments, message = BAD[kind]
    task.write_text(spec)
    status, out, err = run("show", *(str(task) if part == "SPEC" else part for part in arguments))
    assert (status, out) == (2, "")
    assert re.fullmatch(r"lensjax: [^\n]{10,700}[.?]\n", err), err
    assert message in err


def test_a_tokenizer_that_ends_nothing(run: Run, task: Path, save_model: Callable[..., Path]) -> None:
    model = save_model({"model_type": "gpt2", "vocab_size": 40})
    status, _, err = run("show", task, "--model", model)
    assert status == 2
    assert f"The tokenizer in {model} has no end-of-text token" in err


def test_help_has_worked_examples(run: Run) -> None:
    status, out, _ = run("show", "--help")
    assert status == 0
    assert out.count("lensjax data show") >= 3  # one is the usage


def test_characters_are_counted_without_transformers_torch_or_a_device(task: Path) -> None:
    code = (
        f"import sys; from lensjax.cli.main import main; main(['data', 'show', {str(task)!r}]); "
        "print([name for name in ('jax', 'transformers', 'torch', 'tensorflow_datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")


def test_conversations_are_shown_as_the_model_reads_and_learns_them(
    run: Run, save_sums: Callable[..., Path], save_model: Callable[..., Path], tmp_path: Path
) -> None:
    turns = [[{"role": "user", "content": f"w{n} w3"}, {"role": "assistant", "content": f"w{n}"}] for n in range(60)]
    spec, model = save_sums([{"messages": both} for both in turns], prompt="", target=""), tmp_path / "a.json"
    folder = save_model({"model_type": "gpt2", "vocab_size": 48}, eos_token="<end>")
    status, out, _ = run("show", spec, "--model", folder, "--json", model)
    example = json.loads(model.read_text())["examples"][0]
    asked = example["text"].split()[1]
    assert status == 0
    assert example["text"] == f"User: {asked} w3\n\nAssistant: {asked}<end>"
    assert [example["text"][first:last] for first, last in example["learned"]] == [f"{asked}<end>"]
    assert f"'User: {asked} w3\\n\\nAssistant: '\n→ '{asked}<end>'" in out
    assert "Note: the tokenizer has no chat template" in out
    assert "--model shows what a model reads" in run("show", spec)[1]


def test_rows_themselves_are_shown_with_the_command_that_makes_a_study(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = "".join(json.dumps({"en": f"word {n}", "es": f"palabra\n{n}"}) + "\n" for n in range(20))
    (tmp_path / "verses.jsonl").write_text(rows)
    main(["data", "show", "verses.jsonl", "--json", "rows.json"])
    said = capsys.readouterr().out
    assert "verses.jsonl holds 20 rows; the first 3:" in said
    assert "en: word 0" in said
    command = (
        "lensjax study init study.yaml --candidates MODEL MODEL --data verses.jsonl --prompt '{en}' --target ' {es}'"
    )
    assert said.splitlines()[-1] == command
    assert json.loads((tmp_path / "rows.json").read_text())["fields"] == ["en", "es"]
    (tmp_path / "chat.json").write_text(json.dumps([{"messages": [{"role": "user", "content": "hi"}]}]))
    main(["data", "show", "chat.json"])
    assert capsys.readouterr().out.endswith("--data chat.json\n")


def test_shards_are_shown_by_their_splits(tmp_path, monkeypatch, capsys, fails):
    monkeypatch.chdir(tmp_path)
    for name, count in (("train-0", 4), ("train-1", 3), ("dev", 2)):
        (tmp_path / "shards").mkdir(exist_ok=True)
        (tmp_path / "shards" / f"{name}.jsonl").write_text('{"a": "b", "c": "d"}\n' * count)
    told = "holds rows: 7 for train in train-0.jsonl, train-1.jsonl; 2 for validation in dev.jsonl. The first 3:"
    main(["data", "show", "shards"])
    assert f"shards {told}" in capsys.readouterr().out
    main(["data", "show", "shards/*.jsonl"])
    said = capsys.readouterr().out
    assert f"shards/*.jsonl {told}" in said
    assert "--data 'shards/*.jsonl' --prompt '{a}'" in said
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert "model holds no study" in fails("data", "show", "model")


def test_rows_are_no_spec(tmp_path, fails):
    (tmp_path / "chat.jsonl").write_text('{"a": 1}\n')
    said = fails("plan", str(tmp_path / "chat.jsonl"))
    assert "holds rows, and this takes the YAML file of a study that names them" in said
    assert "with: lensjax data show" in said
