"""`lensjax models mesh`, and `lensjax plan --mesh auto`: what is said, and what is refused."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from lensjax.cli.main import main
from lensjax.train import pods
from lensjax.train.pods import Advice

BOUNDS = {
    "compute": 0.4,
    "memory": 0.3,
    "core": 0.45,
    "networks": {"links fsdp": 0.2},
    "seconds": 0.5,
    "overlapped": 0.4,
    "serial": 0.6,
    "binding": "compute",
    "tokens_per_second": 4096.0,
    "utilisation": 0.35,
    "utilisation_causal": 0.34,
    "kernels": {},
}
ADVICE = {
    "topology": "v5e:2x2",
    "chips": 4,
    "model_type": "llama",
    "parameters": 1000,
    "batch_size": 4,
    "lengths": [512],
    "considered": 40,
    "fitting": 5,
    "placements": [
        {"mesh": "fsdp=4", "accumulation": 1, "remat": "cheap", "memory": 8_100_000_000, "bounds": BOUNDS},
        {"mesh": "fsdp=2,tensor=2", "accumulation": 2, "remat": "none", "problem": "it takes 21.40G of 15.75G"},
    ],
    "reason": "fsdp=4, remat cheap takes 0.5 s a step at least, which compute binds; nothing else fits.",
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 4, **sizes}
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--topology", "v5e"), "'v5e' is no topology; write chip and shape of a TPU slice as in v5e:16x16"),
        (("--topology", "v9:2x2"), "Nothing is known about the chip 'v9', only about v4, v5e"),
        (("--topology", "v5e:16"), "'v5e:16' has no shape; write it as in v5e:4x4"),
        (("--topology", "h100:2x4"), "h100 chips are behind switches; write their number as in h100:16."),
        (("--topology", "h100:12"), "nothing stands in for; give one of 4, 8, 16"),
        (("--topology", "v5e:2x2", "--length", "0"), "--length is 0; give a number from 1 up."),
        (("--topology", "v5e:2x2", "--batch-size", "-1"), "--batch-size is -1; give a number from 1 up."),
        (("--topology", "v5e:2x2", "--compiled", "0"), "--compiled is 0; give a number from 1 up."),
    ],
)
def test_bad_input_is_one_sentence(model: str, arguments: tuple[str, ...], sentence: str, capsys, tmp_path) -> None:
    out = tmp_path / "mesh.json"
    with pytest.raises(SystemExit) as ended:
        main(["models", "mesh", model, *arguments, "--json", str(out)])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not out.exists()


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
def test_advice_is_told_and_written(model: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(pods, "advise", lambda work, compiled, progress: Advice.model_validate(ADVICE))
    main(["models", "mesh", model, "--topology", "v5e:2x2", "--json", str(tmp_path / "mesh.json")])
    said = capsys.readouterr().out
    assert Advice.model_validate_json((tmp_path / "mesh.json").read_text()) == Advice.model_validate(ADVICE)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in said.splitlines() if "fsdp=" in line]
    assert rows[0] == ["fsdp=4", "1", "cheap", "8.1 GB", "0.5 s", "4,096", "35 %", "compute"]
    assert rows[1] == ["fsdp=2,tensor=2", "2", "none", "–", "–", "–", "–", "no room"]
    assert ADVICE["reason"] in said


def test_a_chip_of_a_file_must_be_that_of_the_topology(model: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "chip.yaml").write_text("name: v9\ntera: 1\nmemory_gb: 1\nmemory_gbps: 1\nlink_gbps: 1\n")
    with pytest.raises(SystemExit) as ended:
        main(["models", "mesh", model, "--topology", "v5e:2x2", "--chip", str(tmp_path / "chip.yaml")])
    assert ended.value.code == 2
    assert "describes the chip 'v9', not v5e" in capsys.readouterr().err
