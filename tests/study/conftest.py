"""Studies of tiny models on the task of writing letters for digits, whose examples all have one short shape."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_LETTERS = str.maketrans("0123456789", "abcdefghij")
_SPECIAL = {"vocab_size": 288, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}


@pytest.fixture(scope="session")
def tiny_models(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any], make_tokenizer: Callable[..., Any]
) -> Callable[..., list[str]]:
    """Folders of tiny models of families, with a tokenizer and random weights; each made once."""
    import lensjax.models

    root = tmp_path_factory.mktemp("candidates")

    def folders(*families: str) -> list[str]:
        for family in families:
            if not (root / family).exists():
                lensjax.models.from_config(tiny_config(family, **_SPECIAL)).save(root / family)
                make_tokenizer(pad_token="<pad>", bos_token="<s>").save_pretrained(root / family)
        return [str(root / family) for family in families]

    return folders


@pytest.fixture(scope="session")
def write_study(tiny_models: Callable[..., list[str]]) -> Callable[..., Path]:
    """Writes a study of families in a folder; arguments replace fields of the spec, `target_text` that of the task."""

    def write(folder: Path, *families: str, name: str = "study", target_text: str = "{letters}", **fields: Any) -> Path:
        numbers = (f"{n:04}" for n in range(4000))
        rows = (
            {"n": n, "letters": n.translate(_LETTERS), "words": " ".join(_DIGITS[int(d)] for d in n)} for n in numbers
        )
        (folder / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        content: dict[str, Any] = {
            "candidates": tiny_models(*families),
            "task": {
                "source": {"files": "numbers.jsonl"},
                "prompt": "{n}:",
                "target": target_text,
                "validation": 32,
                "test": 32,
            },
            "training": {"learning_rate": 3e-3, "batch_size": 16, "epochs": 1},
            "budget": 400,
            "target": 3200,
            "samples": 0,  # which would compile one more program for every model
            "evidence": {"ntk": False},
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content | fields))
        return path

    return write
