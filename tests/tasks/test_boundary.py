"""Prompt and target of a causal model are one text: no tokenizer adds to it, and the target begins where it should."""

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lensjax.tasks import boundary
from lensjax.tasks.batches import collate
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import Example
from lensjax.tasks.tokens import Tokens, padding_token, tokenise
from lensjax.tasks.writing import Writing, examine

SPEC = TaskSpec(name="t", source={"files": {"train": ["none.jsonl"]}}, target="{a}", max_target_tokens=512)
CORPUS = ["English: hello there Spanish: hola amigo", "a b a b () \n\n é語 語é (la", "yes no hola. Answer:\nyes"] * 9
BYTES = [f"<0x{i:02X}>" for i in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]
PIECES = ["▁", *sorted(set("".join(CORPUS)) - {" ", "é", "語", "\n"}), "▁hol", "la", "a▁", "▁a", "▁a▁", "▁hola", "ho"]


def byte_level(*, regex: bool = True, trim: bool = False, corpus: list[str] = CORPUS) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def metaspace(prepend: str | None, *, split: bool = True) -> Any:
    """BPE as in Llama, whose space is "▁"; without `prepend`, a normaliser puts it before every text as Llama 2's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    if prepend is None:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend, split=split)
    spaces = [] if prepend == "never" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *spaces]
    )
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([line.replace("é", "") for line in CORPUS], trainer)
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {token: len(vocabulary) + place for place, token in enumerate(BYTES)}
    content["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(content))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def unigram() -> Any:
    pieces = [(piece, -float(place + 2) / 4) for place, piece in enumerate(reversed(PIECES))]
    vocabulary = [(token, -20.0) for token in (*SPECIAL, *BYTES)] + pieces
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def of_class(name: str, special: list[str]) -> Any:
    """A tokenizer of a class of `transformers`, built without files."""
    vocabulary = {token: place for place, token in enumerate([*special, *BYTES, *PIECES, "\n"])}
    merges = [("h", "o"), ("l", "a"), ("a", "▁"), ("▁", "a")]
    return getattr(transformers, name)(vocab=vocabulary, merges=merges)


def byte_class(name: str) -> Any:
    alphabet = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ho", "Ġho", "aĠ"]
    vocabulary = {token: place for place, token in enumerate(alphabet)}
    tokens = {"eos_token": "</s>", "unk_token": "</s>", "bos_token": "</s>", "pad_token": "</s>"}
    merges = [("h", "o"), ("Ġ", "ho"), ("a", "Ġ")]
    return getattr(transformers, name)(vocab=vocabulary, merges=merges, **tokens)


LOSSLESS: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level,
    "byte-level, over spaces": lambda: byte_level(regex=False),
    "byte-level, trimmed": lambda: byte_level(regex=False, trim=True),
    "byte-level, inside characters": lambda: byte_level(regex=False, corpus=["é語é語", "語é語é", "ñé", "ñ語"] * 9),
    "GPT2Tokenizer": lambda: byte_class("GPT2Tokenizer"),
    "GPTNeoXTokenizer": lambda: byte_class("GPTNeoXTokenizer"),
    "Metaspace first": lambda: metaspace("first"),
    "Metaspace always": lambda: metaspace("always"),
    "Metaspace never": lambda: metaspace("never"),
    "Metaspace unsplit": lambda: metaspace("first", split=False),
    "Llama 2": lambda: metaspace(None),
    "LlamaTokenizer": lambda: of_class("LlamaTokenizer", ["<pad>", *SPECIAL]),
    "GemmaTokenizer": lambda: of_class("GemmaTokenizer", ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]),
    "Unigram": unigram,
    "ByT5Tokenizer": lambda: transformers.ByT5Tokenizer(extra_ids=0),
}


@functools.cache
def made(name: str) -> Any:
    return LOSSLESS[name]()


def encoded(tokenizer: Any, *texts: tuple[str, str], encoder_decoder: bool = False) -> Tokens:
    rows = [Example(prompt, target, f"row {i}") for i, (prompt, target) in enumerate(texts, 1)]
    return tokenise(rows, tokenizer, SPEC, encoder_decoder=encoder_decoder)


def pair(tokenizer: Any, prompt: str, target: str, **settings: Any) -> tuple[list[str], list[str]]:
    tokens = encoded(tokenizer, (prompt, target), **settings)
    names: list[list[str]] = [
        tokenizer.convert_ids_to_tokens(ids.tolist()) for ids in (tokens.prompt(0), tokens.target(0))
    ]
    return names[0], names[1]


def decoded(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def width(tokenizer: Any, ids: list[int]) -> int:
    """Number of bytes that tokens write."""
    skipped = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    tokens = [
        token for number, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True) if number not in skipped
    ]
    if not tokenizer.is_fast or "ByteLevel" in str(tokenizer.backend_tokenizer.decoder):
        return sum(map(len, tokens))
    return sum(1 if token in BYTES else len(token.replace("▁", " ").encode()) for token in tokens)


@pytest.mark.parametrize("encoder_decoder", [False, True])
@pytest.mark.parametrize("name", LOSSLESS)
def test_what_loses_nothing_can_write_everything(name: str, encoder_decoder: bool) -> None:
    texts = [
        "hola",
        "  hola  la",
        'día ñ\n\n{"a": [1]}',
        "\n\n  語é😀  b",
        "cafe\u0301 n",
        "a , b . don't",
        "<s>hola",
        "h</s>",
    ]
    rows = [
        Example(prompt, target, "row") for prompt in ("", "Spanish: ", "é\n(", "<s>e") for target in [*texts, "\u0301a"]
    ]
    found = examine(rows, made(name), encoder_decoder=encoder_decoder, model="mine")
    assert found == Writing(rows=len(rows))
    assert found.is_whole
    assert found.why_not(0.0) == ""


parts = st.text(st.sampled_from("ahol é語ñ\n(:😀"), max_size=12)


@pytest.mark.parametrize("name", LOSSLESS)
@given(prompt=parts, target=parts)
def test_tokens_say_the_text_and_the_target_begins_where_it_was_written(name: str, prompt: str, target: str) -> None:
    text, tokenizer = prompt + target, made(name)
    assume(target.strip())
    assume(not text.startswith(" ") or "byte" in name.lower() or name.startswith("G"))  # "▁" is in its place
    tokens = encoded(tokenizer, (prompt, target))
    ids = tokens.ids.tolist()
    assert decoded(tokenizer, ids) == text
    joint = tokenizer(text, add_special_tokens=False)["input_ids"]
    opening = ids[: len(ids) - len(joint) - 1]
    assert ids == [*opening, *joint, tokenizer.eos_token_id]
    bos = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    assert opening in ([], [bos])
    first = tokens.prompt(0).tolist(), tokens.target(0).tolist()[0]
    added = width(tokenizer, ids) - len(text.encode())  # "▁" before the text
    assert added in (0, 1)
    before = width(tokenizer, first[0]) - (added if len(first[0]) > len(opening) else 0)
    assert before <= len(prompt.encode())  # no token of the prompt writes any of the target
    if not tokenizer.is_fast:
        return
    after = width(tokenizer, [*first[0], first[1]]) - added
    assert after > len(prompt.encode()) or not prompt  # and the first of the target does


@pytest.mark.parametrize(
    ("name", "prompt", "target", "expected"),
    [
        ("Metaspace first", "Spanish:", " hola", ["▁hola"]),
        ("Metaspace first", "Spanish:", "hola", ["h", "ola"]),
        ("Metaspace first", "Spanish: ", "hola", ["▁hola"]),
        ("Metaspace first", "(", "hola)", ["h", "ola", ")"]),
        ("Metaspace first", "", "hola", ["▁hola"]),
        ("Metaspace always", "(", "hola)", ["h", "ola", ")"]),
        ("Llama 2", "Answer:\n", "hola", ["h", "ola"]),
        ("Unigram", "Spanish: ", "hola", ["▁hola"]),
        ("Unigram", "Spanish:", "hola", ["ho", "la"]),
        ("byte-level", "Spanish:", " hola", ["Ġhola"]),
        ("byte-level", "Spanish: ", "hola", ["Ġhola"]),
        ("byte-level, over spaces", "a", " b", ["aĠ", "b"]),
        ("ByT5Tokenizer", "é", "ñ ", ["Ã", "±", " "]),
    ],
)
def test_targets_of_one_text(name: str, prompt: str, target: str, expected: list[str]) -> None:
    assert pair(made(name), prompt, target)[1] == [*expected, "</s>"]


def wordpiece(model: Any, **settings: Any) -> Any:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    tokens = {"unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"} | settings
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


WORDS = {
    token: i for i, token in enumerate(["[UNK]", "[CLS]", "[SEP]", "the", "ans", "##wer", ":", "ho", "##la", "hola"])
}


def test_words_and_unknown_ones() -> None:
    for model in (models.WordPiece(WORDS, unk_token="[UNK]"), models.WordLevel(WORDS, unk_token="[UNK]")):
        tokenizer = wordpiece(model)
        assert pair(tokenizer, "the:", "hola") == (["[CLS]", "the", ":"], ["hola", "[SEP]"])
        assert pair(tokenizer, "the: ", "語語 hola") == (["[CLS]", "the", ":"], ["[UNK]", "hola", "[SEP]"])
        assert pair(tokenizer, "the 語", "語") == (["[CLS]", "the"], ["[UNK]", "[SEP]"])  # one of both
        assert pair(tokenizer, "the xx", "yy") == (["[CLS]", "the"], ["[UNK]", "[SEP]"])
    split = wordpiece(models.WordPiece(WORDS, unk_token="[UNK]"))
    assert pair(split, "ans", "wer") == (["[CLS]", "ans"], ["##wer", "[SEP]"])
    bert = transformers.BertTokenizer(vocab=WORDS | {"[PAD]": 10, "[MASK]": 11}, eos_token="[SEP]")
    assert pair(bert, "THE ans", "wer: hola")[1] == ["##wer", ":", "hola", "[SEP]"]


def test_unigram_with_unknown_characters() -> None:
    vocabulary = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", -9.0),
        ("▁", -2.0),
        ("a", -3.0),
        ("▁hola", -2.5),
        (":", -3.0),
    ]
    t5 = transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0)
    assert pair(t5, "a:", " hola") == (["▁", "a", ":"], ["▁hola", "</s>"])
    assert pair(t5, "a: ", "hola") == (["▁", "a", ":"], ["▁hola", "</s>"])
    assert pair(t5, "a:", "語a") == (["▁", "a", ":"], ["<unk>", "a", "</s>"])
    assert pair(t5, "語", "語a") == (["▁"], ["<unk>", "a", "</s>"])  # which is of both
    xglm = transformers.XGLMTokenizer(vocab=[("<s>", 0.0), *vocabulary])
    assert pair(xglm, "a:", " hola")[1] == ["▁hola", "</s>"]


def test_characters_that_a_normaliser_joins() -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    prompt, target = pair(tokenizer, "ae", "\u0301o")
    assert (prompt, "".join(target)) == (["a"], "Ã©o</s>")


def test_a_special_token_that_takes_in_white_space_stays_with_its_side() -> None:
    tokenizer = byte_level()
    turn = AddedToken("<turn>", lstrip=True, rstrip=True, special=True)
    tokenizer.add_tokens([turn], special_tokens=True)
    assert pair(tokenizer, "a <turn>", " a") == (["a", "<turn>"], ["a", "</s>"])
    assert pair(tokenizer, "a ", "<turn> a") == (["a"], ["<turn>", "a", "</s>"])
    assert pair(tokenizer, "a <tu", "rn> a") == (["a"], ["<turn>", "a", "</s>"])


def with_template(template: str, **settings: Any) -> Any:
    tokenizer = metaspace("first")
    special = [(token, SPECIAL.index(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("template", ["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
def test_special_tokens_that_are_written_are_not_added(template: str) -> None:
    tokenizer, opens = with_template(template), template.startswith("<s>")
    before = ["<s>"] if opens else []
    assert pair(tokenizer, "<s>(", "hola") == (["<s>", "("], ["h", "ola", "</s>"])
    assert pair(tokenizer, "(", "hola</s>") == ([*before, "▁("], ["h", "ola", "</s>"])
    assert pair(tokenizer, "<s>", "(hola</s></s>") == (["<s>"], ["(", "h", "ola", "</s>"])
    assert pair(tokenizer, "", "<s>(hola") == (["<s>"], ["(", "h", "ola", "</s>"])
    assert pair(tokenizer, "(</s>", "h</s>h")[1] == ["h", "</s>", "h", "</s>"]  # in the middle they are text

    after = ["</s>"] if template.endswith("</s>") else []
    for prompt, target in (("<s>(", "<s>(</s>"), ("<s>(</s>", "<s>(</s></s>")):
        read, written = pair(tokenizer, prompt, target, encoder_decoder=True)
        assert read == ["<s>", "(", *(after or ["</s>"] * prompt.endswith("</s>"))]
        assert written == ["<s>", "(", "</s>"]
    assert pair(tokenizer, "", "(", encoder_decoder=True)[0] == (before + after or ["</s>"])


@pytest.mark.parametrize("encoder_decoder", [False, True])
@pytest.mark.parametrize("target", ["hola", "hola</s>", "hola</s></s>"])
def test_one_end_is_learned_also_where_it_is_the_padding(target: str, encoder_decoder: bool) -> None:
    tokenizer = with_template("<s> $A </s>")
    tokenizer.pad_token = "</s>"
    end = padding_token(tokenizer, len(tokenizer))
    assert end == tokenizer.eos_token_id
    tokens = encoded(tokenizer, ("(", target), ("(hola hola hola", "hola"), encoder_decoder=encoder_decoder)
    lengths = (32, 16) if encoder_decoder else (32,)
    labels = collate(tokens, np.array([0, 1]), [0, 1, 2], lengths, end)["labels"]
    for row in labels[:2]:
        learned = row[row != -100]
        assert learned[-1] == end
        assert (learned[1:] == end).sum() == 1
    assert (labels[2] == -100).all()


def test_cutting_keeps_its_meaning() -> None:
    tokenizer = with_template("<s> $A")
    rows = [Example("<s>(((( ", "hola</s>", "row 1")]
    for end, limit, kept in (("end", 3, ["<s>", "(", "("]), ("start", 2, ["<s>", "("]), ("end", 1, ["<s>"])):
        given_spec = SPEC.model_copy(update={"max_prompt_tokens": limit, "cut_prompt": end, "max_target_tokens": 1})
        tokens = tokenise(rows, tokenizer, given_spec, encoder_decoder=False)
        assert tokenizer.convert_ids_to_tokens(tokens.prompt(0).tolist()) == kept
        assert tokenizer.convert_ids_to_tokens(tokens.target(0).tolist()) == ["▁hola"]
        assert (tokens.prompt_cut.tolist(), tokens.target_cut.tolist()) == ([True], [True])


def test_tokenizers_are_left_as_they_are() -> None:
    tokenizer = byte_level(trim=True)
    before = json.loads(tokenizer.backend_tokenizer.to_str())
    pair(tokenizer, "a ", "b")
    assert json.loads(tokenizer.backend_tokenizer.to_str()) == before


def test_a_copy_with_whole_offsets_is_made_once_for_each_state_of_a_tokenizer() -> None:
    tokenizer = byte_level(regex=False, trim=True)
    twin = boundary._with_whole_offsets(tokenizer)
    assert twin is not tokenizer
    assert boundary._with_whole_offsets(tokenizer) is twin
    tokenizer.add_tokens(["hola"])
    assert pair(tokenizer, "a: ", "hola") == (["a", ":", "Ġ"], ["hola", "</s>"])
    assert boundary._with_whole_offsets(tokenizer) is not twin
    untrimmed = byte_level(regex=False)
    assert boundary._with_whole_offsets(untrimmed) is untrimmed
