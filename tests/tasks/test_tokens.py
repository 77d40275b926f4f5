"""Tokens: special tokens, cutting, and files."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensjax.core.errors import InputError
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import Example, together
from lensjax.tasks.tokens import Tokens, tokenise

BOS, EOS = 1, 2
BOTH = "<s> $A </s>"
MakeTokenizer = Callable[..., Any]
TEXTS = [("one two", " three"), ("", "four"), ("five </s>", " é\n"), ("one two three four five", " one")]


def spec(**fields: Any) -> TaskSpec:
    return TaskSpec(name="t", source={"files": {"train": ["none.jsonl"]}}, target="{a}", **fields)


def examples(texts: list[tuple[str, str]]) -> list[Example]:
    return [Example(prompt, target, f"a.jsonl line {i}") for i, (prompt, target) in enumerate(texts, 1)]


def pairs(tokens: Tokens) -> list[tuple[list[int], list[int]]]:
    return [(tokens.prompt(i).tolist(), tokens.target(i).tolist()) for i in range(len(tokens))]


def plain(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize("template", [None, "<s> $A", "$A </s>", BOTH], ids=["none", "bos", "eos", "both"])
def test_causal(template: str | None, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template, bos_token="<s>")
    tokens = tokenise(examples(TEXTS), tokenizer, spec(), encoder_decoder=False)
    opening = [BOS] if template and "<s>" in template else []
    for (prompt, target), (prompt_ids, target_ids) in zip(TEXTS, pairs(tokens), strict=True):
        assert prompt_ids == (opening + plain(tokenizer, prompt) or [BOS])  # nothing closes it
        assert target_ids == [*plain(tokenizer, target), EOS]
    assert not tokens.prompt_cut.any()
    assert not tokens.target_cut.any()
    assert (tokens.ids.dtype, tokens.starts.dtype, tokens.prompts.dtype) == (np.int32, np.int64, np.int32)
    assert tokens.prompt_lengths.tolist() == [len(prompt) for prompt, _ in pairs(tokens)]
    assert tokens.target_lengths.tolist() == [len(target) for _, target in pairs(tokens)]


def test_without_a_beginning_the_end_stands_for_an_empty_prompt(make_tokenizer: MakeTokenizer) -> None:
    tokens = tokenise(examples([("", "one")]), make_tokenizer(), spec(), encoder_decoder=False)
    assert tokens.prompt(0).tolist() == [EOS]


@pytest.mark.parametrize("template", [None, "$A </s>", BOTH], ids=["none", "T5", "BART"])
def test_encoder_decoder(template: str | None, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(template, bos_token="<s>")
    tokens = tokenise(examples(TEXTS), tokenizer, spec(), encoder_decoder=True)
    before = [BOS] if template == BOTH else []
    after = [EOS] if template else []
    for (prompt, target), (prompt_ids, target_ids) in zip(TEXTS, pairs(tokens), strict=True):
        written = plain(tokenizer, prompt)
        assert prompt_ids == (before + written + ([] if written[-1:] == after else after) or [EOS])
        assert target_ids == [*before, *plain(tokenizer, target), EOS]


@pytest.mark.parametrize(
    ("template", "encoder_decoder", "end", "expected"),
    [
        (BOTH, False, "end", lambda text: [BOS, *text[:4]]),
        (BOTH, False, "start", lambda text: [BOS, *text[-4:]]),
        (None, False, "start", lambda text: text[-5:]),
        (BOTH, True, "end", lambda text: [BOS, *text[:3], EOS]),
        (BOTH, True, "start", lambda text: [BOS, *text[-3:], EOS]),
        ("$A </s>", True, "start", lambda text: [*text[-4:], EOS]),
    ],
)
def test_long_prompts_are_cut_in_their_text(
    template: str | None, encoder_decoder: bool, end: Any, expected: Any, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(template, bos_token="<s>")
    text = "abcdefghij"
    ids = plain(tokenizer, text)
    assert len(ids) == 10
    given_spec = spec(max_prompt_tokens=5, cut_prompt=end)
    tokens = tokenise(examples([(text, "x"), ("a", "x")]), tokenizer, given_spec, encoder_decoder=encoder_decoder)
    assert tokens.prompt(0).tolist() == expected(ids)
    assert tokens.prompt_cut.tolist() == [True, False]


@pytest.mark.parametrize("end", ["start", "end"])
@pytest.mark.parametrize(("limit", "causal", "encoded"), [(1, [BOS], [EOS]), (2, [BOS], [BOS, EOS])])
def test_special_tokens_are_the_last_to_go(
    limit: int, causal: list[int], encoded: list[int], end: Any, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(BOTH, bos_token="<s>")
    for encoder_decoder, expected in ((False, causal), (True, encoded)):
        given_spec = spec(max_prompt_tokens=limit, cut_prompt=end)
        tokens = tokenise(examples([("abc", "x")]), tokenizer, given_spec, encoder_decoder=encoder_decoder)
        found = tokens.prompt(0).tolist()
        assert found[: len(expected)] == expected
        assert len(found) == limit


def test_long_targets_are_cut_after_the_end_was_added(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    ids = plain(tokenizer, "abcd")
    for limit, expected in ((3, ids[:3]), (4, ids), (5, [*ids, EOS])):
        for encoder_decoder in (False, True):
            given_spec = spec(max_target_tokens=limit)
            tokens = tokenise(examples([("a", "abcd")]), tokenizer, given_spec, encoder_decoder=encoder_decoder)
            assert tokens.target(0).tolist() == expected
            assert tokens.target_cut.tolist() == [limit < 5]


@given(
    texts=st.lists(st.tuples(st.text(max_size=20), st.text(min_size=1, max_size=20)), max_size=12),
    limits=st.tuples(st.integers(1, 12), st.integers(2, 12)),
    n=st.integers(0, 15),
    encoder_decoder=st.booleans(),
)
def test_batches_change_nothing_and_lengths_are_kept(
    texts: list[tuple[str, str]], limits: tuple[int, int], n: int, encoder_decoder: bool, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(BOTH, bos_token="<s>")
    given_spec = spec(max_prompt_tokens=limits[0], max_target_tokens=limits[1])
    rows = examples(texts)
    together = tokenise(rows, tokenizer, given_spec, encoder_decoder=encoder_decoder)
    alone = [pairs(tokenise([row], tokenizer, given_spec, encoder_decoder=encoder_decoder))[0] for row in rows]
    assert pairs(together) == alone
    assert all(1 <= length <= limits[0] for length in together.prompt_lengths)
    assert all(1 <= length <= limits[1] for length in together.target_lengths)
    assert pairs(together.take(n)) == alone[:n]
    assert pairs(together.take(n)) == pairs(tokenise(rows[:n], tokenizer, given_spec, encoder_decoder=encoder_decoder))


def test_more_examples_than_a_batch(make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, tokenizer = examples(TEXTS * 3), make_tokenizer()
    whole = pairs(tokenise(iter(rows), tokenizer, spec(), encoder_decoder=False))
    monkeypatch.setattr("lensjax.tasks.task._TOGETHER", 5)
    assert pairs(tokenise(iter(rows), tokenizer, spec(), encoder_decoder=False)) == whole


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_prompts_of_ten_thousand_tokens_are_whole_or_cut_as_asked(
    encoder_decoder: bool, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer, long = make_tokenizer(), "one two three " * 4_000
    texts = [(long, " four"), ("one", " two"), (f"five {long}", " one")]
    written = [plain(tokenizer, prompt) for prompt, _ in texts]
    assert len(written[0]) > 10_000
    whole = tokenise(examples(texts), tokenizer, spec(max_prompt_tokens=100_000), encoder_decoder=encoder_decoder)
    assert [whole.prompt(i).tolist() for i in range(3)] == written
    assert not whole.prompt_cut.any()
    cut = tokenise(examples(texts), tokenizer, spec(max_prompt_tokens=10_000), encoder_decoder=encoder_decoder)
    assert cut.prompt_lengths.tolist() == [10_000, len(written[1]), 10_000]
    assert cut.prompt_cut.tolist() == [True, False, True]


def test_no_warning_of_lengths(make_tokenizer: MakeTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tokenizer(model_max_length=2)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)  # it does not propagate
    try:
        tokenise(examples([("one two three" * 9, "one two" * 9)]), tokenizer, spec(), encoder_decoder=False)
        assert not caplog.records
        tokenizer("one two three" * 9)
        assert "longer than the specified maximum" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


def test_no_end_of_text_token(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(eos_token=None, name_or_path="models/mine")
    message = "The tokenizer in models/mine has no end-of-text token, which targets end with; name its eos_token in"
    with pytest.raises(InputError, match=message):
        tokenise(examples(TEXTS), tokenizer, spec(), encoder_decoder=False)


@pytest.mark.parametrize("encoder_decoder", [True, False])
@pytest.mark.parametrize("target", ["", "</s>"])
def test_targets_without_tokens(encoder_decoder: bool, target: str, make_tokenizer: MakeTokenizer) -> None:
    rows = examples([("one", "two"), ("one", target)])
    with pytest.raises(InputError, match=r"a\.jsonl line 2 has a target without tokens; fill it in or remove the row"):
        tokenise(rows, make_tokenizer(BOTH), spec(), encoder_decoder=encoder_decoder)


def test_targets_cut_to_nothing(make_tokenizer: MakeTokenizer) -> None:
    message = r"max_target_tokens is 1, which leaves nothing of the target of a\.jsonl line 1; allow more\."
    with pytest.raises(InputError, match=message):
        tokenise(examples(TEXTS), make_tokenizer(BOTH), spec(max_target_tokens=1), encoder_decoder=True)


@pytest.mark.parametrize("texts", [TEXTS, []], ids=["some", "none"])
def test_files(texts: list[tuple[str, str]], tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    tokens = tokenise(examples(texts), make_tokenizer(), spec(max_prompt_tokens=3), encoder_decoder=False)
    tokens.save(tmp_path / "cache" / "train")
    read = Tokens.load(tmp_path / "cache" / "train")
    for name in ("ids", "starts", "prompts", "prompt_cut", "target_cut"):
        before, after = getattr(tokens, name), getattr(read, name)
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype
        assert isinstance(after, np.memmap)
    assert os.listdir(tmp_path / "cache") == ["train"]
    assert (tmp_path / "cache" / "train").stat().st_mode & 0o777 == (tmp_path / "cache").stat().st_mode & 0o777
    with pytest.raises(InputError, match="train is there already and not an empty folder; give a new one"):
        tokens.save(tmp_path / "cache" / "train")


def test_a_failed_save_leaves_nothing(
    tmp_path: Path, make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    tokens = tokenise(examples(TEXTS), make_tokenizer(), spec(), encoder_decoder=False)
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match=r"Cannot write .*train: No space left on device; choose another place\."):
        tokens.save(tmp_path / "train")
    assert not os.listdir(tmp_path)


def test_files_that_are_not_whole(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    def message() -> str:
        with pytest.raises(InputError) as raised:
            Tokens.load(tmp_path / "train")
        return str(raised.value)

    assert re.search("does not hold whole token files", message())
    tokenise(examples(TEXTS), make_tokenizer(), spec(), encoder_decoder=False).save(tmp_path / "train")
    path = tmp_path / "train" / "ids.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    changed = r"train is damaged \(the content of ids.npy is not what was written\); remove it, and it is made again\."
    assert re.search(changed, message())
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert re.search(changed, message())
    path.write_bytes(whole)
    assert len(Tokens.load(tmp_path / "train")) == len(TEXTS)


def test_long_rows_are_encoded_a_few_at_a_time_and_none_is_lost():
    rows = [(Example("p" * size, "t", str(size)), True) for size in [10] * 2500 + [1 << 19] * 3]
    parts = [*together(iter(rows))]
    assert [len(part) for part in parts] == [1000, 1000, 502, 1]
    assert [row for part in parts for row in part] == rows
