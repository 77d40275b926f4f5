"""Tokenizers that lose something say which texts they cannot write."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lensjax.core.errors import InputError
from lensjax.tasks import writing
from lensjax.tasks.conversations import Turn
from lensjax.tasks.target_bytes import target_bytes
from lensjax.tasks.task import Example, load_task
from lensjax.tasks.tokens import tokenise
from lensjax.tasks.writing import Writing, examine, in_words, sample

LETTERS = [chr(code) for code in range(33, 127) if chr(code) not in "{}<>"]
SPECIAL = ["<unk>", "</s>"]


def wrapped(model: Any, decoder: Any, before: Any = None, normalizer: Any = None, **settings: Any) -> Any:
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder
    tokenizer.pre_tokenizer = before
    tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"eos_token": "</s>", "unk_token": "<unk>"} | settings)


def numbered(tokens: list[str]) -> dict[str, int]:
    return {token: place for place, token in enumerate(tokens)}


def unigram(**settings: Any) -> Any:
    """As T5's: neither accents nor braces, any white space a single space."""
    pieces = [(token, -3.0) for token in (*SPECIAL, *LETTERS, "▁")]
    spaces = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " "), normalizers.Replace("  ", " ")])
    model = models.Unigram(pieces, unk_id=0)
    return wrapped(model, decoders.Metaspace(), pre_tokenizers.Metaspace(), spaces, **settings)


def word_piece() -> Any:
    """As BERT's: lower case without accents, words and marks apart."""
    tokens = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    model = models.WordPiece(numbered(tokens), unk_token="<unk>")
    before = pre_tokenizers.BertPreTokenizer()
    return wrapped(model, decoders.WordPiece(cleanup=False), before, normalizers.BertNormalizer(lowercase=True))


def words(**settings: Any) -> Any:
    model = models.WordLevel(numbered([*SPECIAL, "hola", "la", "one", "two"]), unk_token="<unk>")
    return wrapped(model, None, pre_tokenizers.Whitespace(), **settings)


def dropping() -> Any:
    """Without an unknown token, so that what is not in the vocabulary goes without a trace."""
    model, scheme = models.BPE(numbered([*SPECIAL, *LETTERS, "▁"]), []), {"prepend_scheme": "never"}
    return wrapped(model, decoders.Metaspace(**scheme), pre_tokenizers.Metaspace(**scheme), unk_token=None)


def lower_case() -> Any:
    model = models.BPE(numbered([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]), [])
    before = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return wrapped(model, decoders.ByteLevel(), before, normalizers.Lowercase(), unk_token="</s>")


# An accent, braces, a line end, two spaces, a capital, a comma, another script.
TARGETS = ("día", '{"a": 1}', "one\ntwo", "one  two", "Hola", "one, two", "一二三")
EXPECTED = {  # U where a target has unknown tokens, C where it only changes
    unigram: "UUCC..U",
    word_piece: "CUCCCCU",
    words: "UUCCUUU",
    dropping: "CCC...C",
    lower_case: "....C..",
}


def examples(*targets: str, prompt: str = "one: ") -> list[Example]:
    return [Example(prompt, target, f"row {i}") for i, target in enumerate(targets, 1)]


@pytest.mark.parametrize("encoder_decoder", [True, False])
@pytest.mark.parametrize("make", EXPECTED, ids=lambda make: make.__name__)
def test_every_target_that_is_lost_is_counted(make: Callable[[], Any], encoder_decoder: bool) -> None:
    tokenizer, marks = make(), ""
    for target in TARGETS:
        # Of two examples, as one alone that is unknown is refused.
        found = examine(examples(target, "one"), tokenizer, encoder_decoder=encoder_decoder, model="mine")
        marks += "U" if found.unknown_targets else "C" if found.changed_targets else "."
        assert found.unknown_targets <= found.changed_targets <= 1
    assert marks == EXPECTED[make]


@pytest.mark.parametrize("encoder_decoder", [True, False])
def test_prompts_are_counted_apart(encoder_decoder: bool) -> None:
    tokenizer = unigram()
    rows = [Example("día ", "hola", "row"), Example("one\n\n", "hola", "row"), Example("one ", "día", "row")]
    found = examine(rows, tokenizer, encoder_decoder=encoder_decoder, model="mine")
    assert (found.unknown_prompts, found.changed_prompts) == (1, 1)
    assert (found.unknown_targets, found.changed_targets) == (1, 1)
    assert found.examples == (("día", "d<unk>a"),)
    assert found.shares == ["33 %", "33 %", "33 %", "33 %"]


def test_the_reason_has_three_examples_short_and_escaped() -> None:
    long = "one two three four five six seven eight one\ntwo " + "three " * 20
    found = examine(examples("día", long, "{", "}", "one"), unigram(), encoder_decoder=True, model="mine")
    assert found.why_not(0.8) == ""
    assert found.why_not(0.001) == (
        "it cannot write 80 % of the 5 targets looked at, more than 0.1 %: 'día' is read back as 'd<unk>a', "
        "'…en eight one\\ntwo three three t…' is read back as '…en eight one two three three t…', "
        "'{' is read back as '<unk>'"
    )
    assert "must write all" in found.why_not(0.0)
    assert in_words([found]).startswith("Of 5 examples looked at: texts with unknown tokens")
    assert in_words([Writing(rows=1)]) == (
        "The tokenizer gives back the prompts and targets of all 1 example looked at as they were written."
    )


def test_a_conversation_is_written_where_every_learned_turn_is() -> None:
    turns = [Turn("user", "día"), Turn("assistant", "{", True), Turn("user", "one"), Turn("assistant", "two", True)]
    rows = [Example("User: {", "two", "row", tuple(turns[start:])) for start in (0, 2)]
    found = examine(rows, unigram(), encoder_decoder=False, model="mine")
    assert (found.unknown_targets, found.changed_targets, found.examples) == (1, 1, (("{", "<unk>"),))
    assert examine(rows, unigram(), encoder_decoder=True, model="mine").changed_targets == 1
    assert found.unknown_prompts == 2


def test_where_every_target_is_unknown_the_model_is_refused() -> None:
    message = (
        r"tokenizer of org/mine can write none of the 2 targets looked at \('一二三' is read back as '<unk>', '語'"
    )
    with pytest.raises(InputError, match=message):
        examine(examples("一二三", "語"), unigram(), encoder_decoder=True, model="org/mine")
    for make in (unigram, words):  # of which only its model knows which token is the unknown one
        with pytest.raises(InputError, match="can write none"):
            examine(examples("一二三", "語"), make(unk_token=None), encoder_decoder=False, model="org/mine")
    known = examine(examples("One", "Two"), lower_case(), encoder_decoder=True, model="mine")
    assert (known.unknown_targets, known.unwritable) == (0, 1)


def test_the_sample_is_what_is_held_out_and_then_training_examples(
    save_jsonl: Any, make_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_jsonl("train.jsonl", ({"a": i, "b": 0, "c": f"{i:05}"} for i in range(40)))
    task = load_task(make_spec(test=5, validation=4))
    order = [*task.test, *task.validation, *task.shuffled(0)]
    assert sample(task) == order
    monkeypatch.setattr(writing, "MOST_ROWS", 11)
    assert sample(task) == order[:11]
    monkeypatch.setattr(writing, "MOST_CHARACTERS", 30)
    assert 3 <= len(sample(task)) <= 4


def test_a_target_of_which_nothing_is_left_is_the_end_alone(make_spec: Any, save_jsonl: Any) -> None:
    save_jsonl("train.jsonl", [])
    tokenizer = dropping()
    for encoder_decoder in (True, False):
        tokens = tokenise(examples("一二三", "one"), tokenizer, make_spec(), encoder_decoder=encoder_decoder)
        assert tokens.target(0).tolist() == [tokenizer.eos_token_id]
        # Its loss is over the bytes of the text as it is written, so that it gains nothing.
        bytes_ = target_bytes(examples("一二三", "one"), tokens, tokenizer, encoder_decoder=encoder_decoder)
        assert bytes_ == [9, 3]
    assert examine(examples("一", "one"), tokenizer, encoder_decoder=True, model="mine").examples == (("一", ""),)
