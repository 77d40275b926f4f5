"""A task of real examples, and tiny models of every family to fine-tune on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lensjax.data.spec import read_spec
from lensjax.train.spec import FinetuneSpec

_ONES = tuple("zero one two three four five six seven eight nine ten eleven twelve".split())  # noqa: SIM905
_ONES += tuple(f"{start}teen" for start in ("thir", "four", "fif", "six", "seven", "eigh", "nine"))
_TENS = ("zero", "ten", *(f"{start}ty" for start in ("twen", "thir", "for", "fif", "six", "seven", "eigh", "nine")))


def number_words(n: int) -> str:
    """A number below 1000 in English."""
    if n < 20:
        return _ONES[n]
    if n < 100:
        return _TENS[n // 10] + (f" {_ONES[n % 10]}" if n % 10 else "")
    return f"{_ONES[n // 100]} hundred" + (f" {number_words(n % 100)}" if n % 100 else "")


@pytest.fixture
def save_task(tmp_path: Path) -> Callable[..., Path]:
    """Writes the task of spelling out the numbers below 1000 and its spec; arguments are fields of `training`."""

    def save(folder: Path = tmp_path, validation: int = 24, test: int = 40, **training: Any) -> Path:
        rows = [{"number": n, "words": number_words(n)} for n in range(1000)]
        (folder / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = {
            "source": {"files": "numbers.jsonl"},
            "prompt": "{number}:",
            "target": " {words}",
            "validation": validation,
            "test": test,
            "training": {"learning_rate": 3e-3, "batch_size": 16, "epochs": 2} | training,
        }
        path = folder / "numbers.yaml"
        path.write_text(json.dumps(content))  # which is YAML too
        return path

    return save


@pytest.fixture
def make_spec(save_task: Callable[..., Path]) -> Callable[..., FinetuneSpec]:
    """Makes the spec of that task; arguments are those of `save_task`."""
    return lambda **settings: read_spec(save_task(**settings), FinetuneSpec)


@pytest.fixture(scope="session")
def pretrained(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any], make_tokenizer: Callable[..., Any]
) -> Callable[[str], Path]:
    """The folder of a tiny model of a family, with a tokenizer and random weights; made once."""
    import lensjax.models

    made: dict[str, Path] = {}

    def folder(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = tmp_path_factory.mktemp("models") / model_type
            config = tiny_config(model_type, vocab_size=288, eos_token_id=2, pad_token_id=0, bos_token_id=1)
            lensjax.models.from_config(config).save(made[model_type])
            make_tokenizer(pad_token="<pad>", bos_token="<s>").save_pretrained(made[model_type])
        return made[model_type]

    return folder
