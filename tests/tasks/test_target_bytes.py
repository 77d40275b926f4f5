"""The bytes of targets, whole and cut."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.target_bytes import UNKNOWN, target_bytes
from lensjax.tasks.task import Example
from lensjax.tasks.tokens import tokenise

TEXTS = [("one:", " two three"), ("", "four"), ("five ", "é 一二三"), ("six", "one  two one two")]


def counted(tokenizer: Any, limit: int, encoder_decoder: bool) -> tuple[Any, list[int]]:
    spec = TaskSpec(
        name="t",
        source={"files": {"train": ["none.jsonl"]}},
        target="{a}",
        max_target_tokens=limit,  # type: ignore[arg-type]
    )
    examples = [Example(prompt, target, "row") for prompt, target in TEXTS]
    tokens = tokenise(examples, tokenizer, spec, encoder_decoder=encoder_decoder)
    return tokens, target_bytes(examples, tokens, tokenizer, encoder_decoder=encoder_decoder)


def lossy() -> Any:
    """Without letters beyond ASCII, and in lower case."""
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), *((chr(code), -3.0) for code in range(33, 127)), ("▁", -2.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("encoder_decoder", [True, False])
def test_whole_targets_are_their_texts(make_tokenizer: Any, encoder_decoder: bool) -> None:
    expected = [len(target.encode()) for _, target in TEXTS]
    for tokenizer in (make_tokenizer("<s> $A </s>", bos_token="<s>"), lossy(), ByT5Tokenizer()):
        assert counted(tokenizer, 100, encoder_decoder)[1] == expected


@pytest.mark.parametrize("encoder_decoder", [True, False])
@pytest.mark.parametrize("template", [None, "<s> $A </s>"])
def test_cut_targets_are_what_their_tokens_spell(make_tokenizer: Any, template: Any, encoder_decoder: bool) -> None:
    tokenizer = make_tokenizer(template, bos_token="<s>")
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    for limit in range(2, 20):
        tokens, found = counted(tokenizer, limit, encoder_decoder)
        for i, (_, target) in enumerate(TEXTS):
            spelt = tokenizer.decode(tokens.target(i), skip_special_tokens=True, clean_up_tokenization_spaces=False)
            spelt = spelt.rstrip("�")  # a character that was cut
            assert target.startswith(spelt)
            assert found[i] == len(spelt.encode())


def test_what_has_no_place_is_unknown() -> None:
    tokens, found = counted(ByT5Tokenizer(), 5, True)
    np.testing.assert_array_equal(np.array(found) == UNKNOWN, tokens.target_cut)
    assert tokens.target_cut.tolist() == [True, False, True, True]


def test_a_cut_in_unknown_text_counts_no_byte_that_follows() -> None:
    tokens, found = counted(lossy(), 3, True)
    for (_, target), cut, count in zip(TEXTS, tokens.target_cut, found, strict=True):
        assert 0 < count <= len(target.encode())
        assert count < len(target.encode()) or not cut
