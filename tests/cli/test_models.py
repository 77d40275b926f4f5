"""`lensjax models`."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from lensjax import models
from lensjax.cli.main import main
from lensjax.models import torch_check
from lensjax.models.family import supported

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `lensjax models` in this process; returns exit status, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = 0
        try:
            main(["models", *map(str, arguments)])
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, stored in bfloat16."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    models.from_config(LlamaConfig(**SIZES)).save(folder, dtype="bfloat16")
    return folder


@pytest.fixture
def llama(saved: Path, tmp_path: Path) -> Path:
    """A tiny Llama to do with as one likes."""
    return shutil.copytree(saved, tmp_path / "llama")


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_list_names_every_family(run: Run) -> None:
    status, out, _ = run("list")
    assert status == 0
    assert "openai-community/gpt2" in out
    assert "pocket:gpt2-0.2m" in out
    assert "�" not in out  # which stands for what cannot be printed
    rows = re.findall(r"^│ (\w+) +│ (decoder|encoder–decoder) +│ (\w+) ", out, re.MULTILINE)
    assert [row[0] for row in rows] == supported()
    assert ("gpt2", "decoder", "GPT2LMHeadModel") in rows
    assert ("t5", "encoder–decoder", "T5ForConditionalGeneration") in rows
    status, out, _ = run("list", "--json")
    assert status == 0
    content = json.loads(out)
    assert [(entry["model_type"], entry["kind"], entry["class"]) for entry in content] == rows
    assert all(entry["examples"] for entry in content)


def test_show_needs_neither_weights_nor_devices(llama: Path, tmp_path: Path) -> None:
    (llama / "model.safetensors").unlink()
    output = tmp_path / "table.json"
    command = ["models", "show", str(llama), "--mesh", "fsdp=4,tensor=2", "--json", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "lensjax", *command],
        env=os.environ | {"JAX_PLATFORMS": "none-at-all"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "llama: layers 2, width 32, heads 4, kv heads 2, vocabulary 96, context 64" in done.stdout
    assert "float32 on data=1 × fsdp=4 × tensor=2" in done.stdout
    assert re.search(r"layers/blocks/attention/o/kernel +│ 2 × 32 × 32 +│ –, tensor, fsdp +│ 2 × 16 × 8 ", done.stdout)
    assert f"Wrote {output}" in done.stdout
    content = json.loads(output.read_text())
    assert f"({content['parameters']:,})" in done.stdout
    assert content["parameters"] == 96 * 32 * 2 + 2 * (32 * 32 * 3 + 32 * 48 * 3 + 2 * 32) + 32
    assert "Caution" not in done.stdout


def test_show_tells_what_a_mesh_leaves_whole(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    status, out, _ = run("show", tmp_path, "--mesh", "tensor=3", "--dtype", "bfloat16")
    assert status == 0
    assert re.search(r"embed/embedding +│ 50257 × 768 +│ whole, and large ", out)
    assert "124M parameters (124,439,808), 248.9 MB; 135.6 MB on each device." in out
    assert "Caution: embed/embedding (77.2 MB) is not split by this mesh: every device holds all of it." in out
    assert "Large is 1,048,576 values and more" in out
    assert "Caution" not in run("show", tmp_path)[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_check_passes_what_torch_computes_too(dtype: str, run: Run, llama: Path) -> None:
    pytest.importorskip("torch")
    status, out, _ = run("check", llama, "--dtype", dtype)
    assert status == 0, out
    assert re.search(r"random +│ +65 │ +\d\.\de-\d\d │ +\d\.\de-\d\d │ +\d\.\d{7} │ +\d\.\d{7} │ PASS", out)
    assert f"PASS: logits and loss differ by no more than rounding in {dtype} explains." in out


def test_check_fails_what_torch_computes_otherwise(run: Run, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    load = torch_check.load

    def changed(folder: Path, **settings: Any) -> models.Model:
        model = load(folder, **settings)
        return model.with_params(jax.tree.map(lambda leaf: leaf * 1.01, model.params))

    monkeypatch.setattr(torch_check, "load", changed)
    status, out, _ = run("check", llama)
    assert status == 1
    assert "FAIL: logits or loss differ by more than rounding in float32 explains." in out


def test_export_keeps_the_stored_type_and_every_bit(
    run: Run, llama: Path, tmp_path: Path, save_tokenizer: Callable[[Path, int], None]
) -> None:
    save_tokenizer(llama, 40)
    out = tmp_path / "new" / "copy"
    status, printed, _ = run("export", llama, out)
    assert status == 0
    assert f"Wrote {out}: 21.7k parameters in bfloat16." in printed
    assert sorted(re.findall(r"^(\S+) \(", printed, re.MULTILINE)) == sorted(path.name for path in out.iterdir())
    before, after = (load_file(folder / "model.safetensors") for folder in (llama, out))
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert (out / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()


def test_export_converts_and_transformers_opens_it(run: Run, llama: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    (tmp_path / "wide").mkdir()  # an empty folder is as good as none
    status, printed, _ = run("export", llama, tmp_path / "wide", "--dtype", "float32")
    assert status == 0
    assert "in float32" in printed
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    assert opened.dtype == torch.float32
    assert AutoConfig.from_pretrained(tmp_path / "wide").architectures == ["LlamaForCausalLM"]
    for name, value in load_file(llama / "model.safetensors").items():
        np.testing.assert_array_equal(opened.state_dict()[name].numpy(), value.astype(np.float32))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_export_refuses_a_type_that_cannot_hold_the_weights(run: Run, llama: Path, tmp_path: Path) -> None:
    values = load_file(llama / "model.safetensors")
    values["model.norm.weight"] = values["model.norm.weight"] * 1e5
    save_file(values, llama / "model.safetensors")
    status, _, err = run("export", llama, tmp_path / "out", "--dtype", "float16")
    assert status == 2
    assert "has weights that float16 cannot hold; choose --dtype float32." in err
    assert not (tmp_path / "out").exists()


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def with_config(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


BAD: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "no folder": (lambda folder: None, ["show", "no/such/folder"], r"give the folder that holds its config\.json"),
    "no name": (lambda folder: None, ["check", "not a name"], "give one of them"),
    "unknown family": (with_config(model_type="mamba"), ["show", "MODEL"], "has bart, .*gpt2, .*llama"),
    "own code": (with_config(model_type="x", auto_map={"AutoConfig": "x.y"}), ["show", "MODEL"], "trust_remote_code"),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["show", "MODEL"], r"has no config\.json; give"),
    "bad config": (with_config(hidden_size="wide"), ["show", "MODEL"], r"config\.json does not describe a llama model"),
    "another config": (with_config(vocab_size=95), ["check", "MODEL"], r"2 misshapen \(.* and should be \[95, 32\]"),
    "fewer layers": (with_config(num_hidden_layers=1), ["check", "MODEL"], r"9 unexpected \(model\.layers\.1\."),
    "heads": (lambda folder: None, ["show", "MODEL", "--mesh", "tensor=3"], "does not divide the model's 4 attention"),
    "mesh": (lambda folder: None, ["show", "MODEL", "--mesh", "fsdp=two"], "write it as in data=1,fsdp=4,tensor=2"),
    "axis": (lambda folder: None, ["show", "MODEL", "--mesh", "pipe=2"], "'pipe=2' in mesh 'pipe=2'; write it as in"),
    "float64": (lambda folder: None, ["show", "MODEL", "--dtype", "float64"], "set JAX_ENABLE_X64=1"),
    "truncated": (truncate, ["export", "MODEL", "OUT"], "not a whole safetensors file"),
    "pickle": (pickle_only, ["export", "MODEL", "OUT"], r"only in pytorch_model\.bin, a pickle"),
    "not empty": (lambda folder: None, ["export", "MODEL", "MODEL"], "is there already and not an empty folder; give"),
    "file": (lambda folder: None, ["export", "MODEL", "MODEL/config.json"], "is there already and not an empty folder"),
    "under a file": (lambda folder: None, ["export", "MODEL", "MODEL/config.json/out"], "is not a folder; choose ano"),
    "unwritable": (lambda folder: None, ["export", "MODEL", "/proc/out"], "Cannot write /proc/out: .*; choose another"),
    "name too long": (
        lambda folder: None,
        ["export", "MODEL", "OUT" + "x" * 300],
        "Cannot write .*; choose another pl",
    ),
    "table in no folder": (lambda folder: None, ["show", "MODEL", "--json", "OUT/table.json"], "there is no folder"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_exits_with_2_and_one_sentence_and_writes_nothing(
    kind: str, run: Run, llama: Path, tmp_path: Path
) -> None:
    spoil, arguments, message = BAD[kind]
    spoil(llama)
    before = snapshot(tmp_path)
    places = {"MODEL": str(llama), "OUT": str(tmp_path / "out")}
    status, _, err = run(*(re.sub("MODEL|OUT", lambda found: places[found[0]], part) for part in arguments))
    assert status == 2
    assert re.fullmatch(r"lensjax: [^\n]{10,700}\.\n", err), err
    assert re.search(message, err), err
    assert snapshot(tmp_path) == before


def test_export_refuses_the_tokenizer_of_another_model(
    run: Run, llama: Path, tmp_path: Path, save_tokenizer: Callable[[Path, int], None]
) -> None:
    save_tokenizer(llama, 97)
    status, _, err = run("export", llama, tmp_path / "out")
    assert status == 2
    assert "has 97 tokens and the model 96 embeddings; take tokenizer and weights from one model." in err
    assert not (tmp_path / "out").exists()


def test_a_type_that_there_is_not_names_those_there_are(run: Run, llama: Path) -> None:
    status, _, err = run("show", llama, "--dtype", "int8")
    assert status == 2
    assert all(name in err for name in ("float32", "bfloat16", "float16", "float64"))


def test_offline_is_said_at_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    begin = time.monotonic()
    status, _, err = run("show", "openai-community/gpt2")
    assert time.monotonic() - begin < 5
    assert status == 2
    assert "(HF_HUB_OFFLINE is set); download it first, or give a folder." in err


@pytest.mark.parametrize("command", ["list", "show", "check", "export"])
def test_help_has_worked_examples(command: str, run: Run) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    assert out.count(f"lensjax models {command}") >= 3  # one is the usage


def test_listing_loads_neither_transformers_nor_torch() -> None:
    code = (
        "import sys; from lensjax.cli.main import main; main(['models', 'list', '--json']); "
        "print([name for name in ('transformers', 'torch', 'tensorflow_datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("]\n[]\n")
