"""`lensjax finetune` and `lensjax curve`, from outside."""

import json
import shutil
from pathlib import Path

import pytest

from lensjax.cli import main
from lensjax.models import from_config


@pytest.fixture
def task(tmp_path):
    """Writes a spec of sums and its rows; arguments replace fields of the spec."""

    def write(rows=None, **fields):
        rows = [{"a": i, "b": j, "c": i + j} for i in range(20) for j in range(20)] if rows is None else rows
        (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = {
            "source": {"files": "sums.jsonl"},
            "prompt": "{a}+{b}=",
            "target": "{c}",
            "validation": 20,
            "test": 20,
            "training": {"learning_rate": 1e-3, "batch_size": 8},
        }
        path = tmp_path / "sums.yaml"
        path.write_text(json.dumps(content | fields))
        return path

    return write


@pytest.fixture
def model(tmp_path, tiny_config, make_tokenizer):
    """Writes a tiny model and its tokenizer; arguments replace fields of the configuration."""

    def write(eos_token="</s>", **changes):
        folder = tmp_path / "model"
        config = tiny_config("gpt2", vocab_size=288, eos_token_id=2, pad_token_id=0, bos_token_id=1, **changes)
        from_config(config).save(folder)
        make_tokenizer(eos_token=eos_token).save_pretrained(folder)
        return folder

    return write


@pytest.fixture
def fails(capsys):
    """Runs a command that must end with status 2; returns what it says."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert ended.value.code == 2, said
        assert said.err.startswith("lensjax: ")
        assert said.err.count("\n") == 1
        return said.err

    return run


def finetune(spec, model, out="out", examples=100, *more):
    return ["finetune", spec, "--model", model, "--examples", examples, "--out", Path(spec).parent / out, *more]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "{a}+{d}="}, "sums.jsonl line"),
        ({"training": {"batch": 3}}, "sums.yaml: there is no field training.batch"),
        ({"source": {"files": "other.jsonl"}}, "other.jsonl"),
        ({"source": {"tfds": "nobody_made_this"}}, "download_and_prepare"),
        ({"test": 4000}, "4,000"),
    ],
)
def test_what_is_wrong_with_a_task_is_named_before_the_model_is_read(task, fails, fields, message, tmp_path):
    said = fails(*finetune(task(**fields), tmp_path / "no model"))
    assert message in said
    assert not (tmp_path / "out").exists()


def test_rows_are_named(task, fails, model, tmp_path):
    rows = [{"a": i, "b": 1, "c": i + 1} for i in range(200)]
    blank = [*rows[:120], {"a": 1, "b": 2, "c": "  "}, *rows[120:]]
    said = fails(*finetune(task(blank), "model", examples=160))
    assert "sums.jsonl line 121" in said
    said = fails(*finetune(task(rows), "model", examples=170))
    assert "160" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mesh", "fsdp=3"], "3 devices and there are 8"),
        (["--mesh", "rows=8"], "rows=8"),
        (["--name", "../up"], "'../up' cannot name a folder"),
        (["--track", "wandb"], "pip install wandb"),
        (["--seed", "-1"], "seeds are whole numbers from 0 up"),
    ],
)
def test_what_is_wrong_with_options_is_named(task, fails, model, arguments, message):
    assert message in fails(*finetune(task(), model(), "out", 100, *arguments))


def test_what_is_wrong_with_a_model_is_named(task, fails, model, tmp_path):
    folder = model(n_positions=8)
    assert "takes 8; lower max_prompt_tokens" in fails(*finetune(task(), folder))
    assert "There is no model folder" in fails(*finetune(task(), tmp_path / "nowhere"))


def test_a_tokenizer_without_an_end_is_named(task, fails, model):
    assert "eos" in fails(*finetune(task(), model(eos_token=None)))


def test_a_batch_that_the_devices_do_not_divide_is_named(task, fails, model):
    spec = task(training={"batch_size": 12})
    assert "training.batch_size puts 12 examples in a batch" in fails(*finetune(spec, model()))


def test_the_folder_of_another_spec_is_refused(task, fails, model, tmp_path, capsys):
    folder = model()
    main([str(part) for part in ["curve", task(), "--model", folder, "--max-examples", 200, "--out", tmp_path / "out"]])
    said = capsys.readouterr().out
    assert "model, 200 examples, seed 0: test loss" in said
    kept = (tmp_path / "out" / "curves.csv").read_bytes()
    assert "holds results of another spec" in fails(*finetune(task(max_target_tokens=9), folder))
    shutil.rmtree(folder)
    model(initializer_range=0.5)
    assert "out/model holds results of another model" in fails(*finetune(task(), folder))
    assert (tmp_path / "out" / "curves.csv").read_bytes() == kept
    with pytest.raises(SystemExit, match="2"):
        main(["curve", str(task()), "--model", str(folder), "--max-examples", "100", "--out", str(tmp_path / "out")])
    assert "--max-examples is 100; the first rung of the ladder is 200" in capsys.readouterr().err
