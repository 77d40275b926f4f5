"""`lensjax finetune` and `lensjax curve`, from outside."""

import shutil
from pathlib import Path

import pytest

from lensjax.cli.main import main


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
def test_what_is_wrong_with_a_task_is_named_before_the_model_is_read(save_sums, fails, fields, message, tmp_path):
    said = fails(*finetune(save_sums(**fields), tmp_path / "no model"))
    assert message in said
    assert not (tmp_path / "out").exists()


def test_rows_are_named(save_sums, fails, save_model, tmp_path):
    rows = [{"a": i, "b": 1, "c": i + 1} for i in range(200)]
    blank = [*rows[:120], {"a": 1, "b": 2, "c": "  "}, *rows[120:]]
    said = fails(*finetune(save_sums(blank), "model", examples=160))
    assert "sums.jsonl line 121" in said
    said = fails(*finetune(save_sums(rows), "model", examples=170))
    assert "160" in said


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mesh", "fsdp=3"], "3 devices and there are 8"),
        (["--mesh", "rows=8"], "rows=8"),
        (["--name", "../up"], "'../up' cannot name a folder"),
        (["--track", "wandb"], "pip install wandb"),
        (
            ["--set", "training.method=lora", "training.lora_targets=[gate]"],
            "targets has 'gate', which is none of the linear maps",
        ),
        (["--set", "training.lora_ranks.q=0"], "training.lora_ranks.q is '0'"),
        (["--seed", "-1"], "seeds are whole numbers from 0 up"),
    ],
)
def test_what_is_wrong_with_options_is_named(save_sums, fails, save_model, arguments, message):
    assert message in fails(*finetune(save_sums(), save_model(), "out", 100, *arguments))


def test_what_is_wrong_with_a_model_is_named(save_sums, fails, save_model, tmp_path):
    folder = save_model(n_positions=8)
    assert "takes 8; lower max_prompt_tokens" in fails(*finetune(save_sums(), folder))
    assert "There is no model folder" in fails(*finetune(save_sums(), tmp_path / "nowhere"))


def test_a_tokenizer_without_an_end_is_named(save_sums, fails, save_model):
    assert "eos" in fails(*finetune(save_sums(), save_model(eos_token=None)))


@pytest.mark.eight_devices
def test_a_batch_that_the_devices_do_not_divide_is_named(save_sums, fails, save_model):
    spec = save_sums(training={"batch_size": 12})
    assert "training.batch_size puts 12 examples in a batch" in fails(*finetune(spec, save_model()))


def test_the_folder_of_another_spec_is_refused(save_sums, fails, save_model, tmp_path, capsys):
    folder = save_model()
    main(
        [
            str(part)
            for part in ["curve", save_sums(), "--model", folder, "--max-examples", 200, "--out", tmp_path / "out"]
        ]
    )
    said = capsys.readouterr().out
    assert "model, 200 examples, seed 0: test loss" in said
    assert "Caution: In 1 of 1 runs (the smallest on 200 examples) the validation loss was lowest at the last" in said
    kept = (tmp_path / "out" / "curves.csv").read_bytes()
    assert "holds results of another spec" in fails(*finetune(save_sums(max_target_tokens=9), folder))
    shutil.rmtree(folder)
    save_model(initializer_range=0.5)
    assert "out/model holds results of another model" in fails(*finetune(save_sums(), folder))
    assert (tmp_path / "out" / "curves.csv").read_bytes() == kept
    with pytest.raises(SystemExit, match="2"):
        main(
            ["curve", str(save_sums()), "--model", str(folder), "--max-examples", "100", "--out", str(tmp_path / "out")]
        )
    assert "--max-examples is 100; the first rung of the ladder is 200" in capsys.readouterr().err
