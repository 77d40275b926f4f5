"""Tokenizers as `transformers` makes them, beside their tokenizer.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lensjax.core.errors import InputError
from lensjax.models.tokenizer_check import TEXTS, compare_tokenizer

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path, tiny_config: Callable[..., Any], make_tokenizer: Callable[..., Any]) -> MakeFolder:
    """Makes a folder of a configuration and a tokenizer whose file puts <s> before every text; names its class."""

    def make(family: str, name: str | None = None) -> Path:
        tiny_config(family, vocab_size=400).save_pretrained(tmp_path)
        make_tokenizer("<s> $A", bos_token="<s>", pad_token="<pad>").save_pretrained(tmp_path)
        file = tmp_path / "tokenizer_config.json"
        settings = json.loads(file.read_text())
        file.write_text(json.dumps(settings | ({} if name is None else {"tokenizer_class": name})))
        return tmp_path

    return make


def test_a_tokenizer_that_is_its_file(make_folder: MakeFolder) -> None:
    assert compare_tokenizer(make_folder("llama")) == []


def test_a_class_that_drops_what_the_file_adds_is_told_of(make_folder: MakeFolder) -> None:
    found = compare_tokenizer(make_folder("gpt_neox", "GPTNeoXTokenizer"))
    assert found is not None
    assert len(found) == len(TEXTS)
    assert all(one.stored == ["<s>", *one.ours] for one in found)
    assert str(found[0]).startswith("'Which of these language models")
    assert "begins with 'W' 'h'" in str(found[0])
    assert str(found[-1]) == "'' begins with none where tokenizer.json has '<s>'"


def test_a_class_that_adds_what_the_file_does_not_is_told_of(make_folder: MakeFolder) -> None:
    found = compare_tokenizer(make_folder("bart", "BartTokenizer"))
    assert found is not None
    assert str(found[-1]) == "'' has, after 1 equal tokens, '</s>' where tokenizer.json has none"


def test_without_a_file_there_is_nothing_to_compare(make_folder: MakeFolder) -> None:
    folder = make_folder("llama")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read \(.+\); fetch it again"):
        compare_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    assert compare_tokenizer(folder) is None
