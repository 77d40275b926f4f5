"""Losses per byte of models with different tokenizers: one distribution over strings has one, whatever its tokens."""

import math
from typing import Any

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

import lensjax.models
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.target_bytes import target_bytes
from lensjax.tasks.task import Example
from lensjax.tasks.tokens import Tokens, tokenise
from lensjax.train.evaluate import Evaluation, evaluate
from lensjax.train.placement import BatchPlacement
from lensjax.train.step import Programs

SPEC = TaskSpec(name="t", source={"files": {"train": ["none.jsonl"]}}, target="{a}")  # type: ignore[arg-type]
TEXTS = ["one two three", " four five é", "一二三 two", "three\nthree  {}", "ñ{"]
NATS = -np.log(np.random.default_rng(0).dirichlet(np.ones(257)))  # of each byte, and of the end of a text
BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}
MESH = lensjax.models.make_mesh("data=1", jax.devices()[:1])


def nats_of(written: bytes) -> float:
    """Bytes are drawn one by one, until the text ends."""
    return float(NATS[list(written)].sum())


def unigram() -> Any:
    """As SentencePiece makes them: spaces are part of pieces, and some characters are unknown."""
    pieces = [*"abcdefghijklmnopqrstuvwxyz:", "▁", "▁two", "▁three", "one"]
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), *((piece, -9.0 / len(piece)) for piece in pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def written_by(tokenizer: Any, ids: list[int], prompt: str, target: str) -> list[bytes]:
    """What each token of a target stands for, but for the last one, which ends the text."""
    if isinstance(tokenizer, ByT5Tokenizer):
        return [bytes([number - tokenizer.offset]) for number in ids]
    if type(tokenizer.backend_tokenizer.model) is models.BPE:
        return [bytes(BYTES[letter] for letter in token) for token in tokenizer.convert_ids_to_tokens(ids)]
    places = tokenizer(prompt + target, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [(prompt + target)[first:last].encode() for first, last in places[-len(ids) :]]


def evaluated(tokenizer: Any, pairs: list[tuple[str, str]], encoder_decoder: bool) -> tuple[Evaluation, Tokens]:
    """Targets after prompts, in whose place an encoder–decoder has another text; the loss of a token is its bytes'."""
    examples = [Example(prompt, target, "row") for prompt, target in pairs]
    tokens = tokenise(examples, tokenizer, SPEC, encoder_decoder=encoder_decoder)
    rows = []
    for i, (prompt, target) in enumerate(pairs):
        ids = tokens.target(i).tolist()
        assert ids.pop() == tokenizer.eos_token_id
        pieces = written_by(tokenizer, ids, "" if encoder_decoder else prompt, target)
        rows.append([*map(nats_of, pieces), float(NATS[256])])
    left = iter(rows)

    def losses(params: Any, frozen: Any, batch: Any) -> tuple[Any, ...]:
        counts = (np.asarray(batch["labels"]) >= 0).sum(1)
        here = [next(left, []) for _ in counts]
        assert [len(row) for row in here] == counts.tolist()
        return np.array([sum(row) for row in here]), counts, counts

    size = np.array(target_bytes(examples, tokens, tokenizer, encoder_decoder=encoder_decoder))
    programs = Programs(step=None, losses=losses, start=None, copy=None)  # type: ignore[arg-type]
    lengths = (64, 64) if encoder_decoder else (64,)
    return evaluate(programs, {}, {}, tokens, lengths, BatchPlacement(MESH, 4), 0, size), tokens


def test_bits_per_byte_are_those_of_the_distribution_with_any_tokenizer(make_tokenizer: Any) -> None:
    total = sum(nats_of(text.encode()) + float(NATS[256]) for text in TEXTS)
    bits = total / math.log(2) / len("".join(TEXTS).encode())
    pairs = [("a:", text) for text in TEXTS]
    found = [evaluated(make_tokenizer(), pairs, False), evaluated(unigram(), pairs, False)]
    found.append(evaluated(ByT5Tokenizer(extra_ids=0), pairs, True))
    for one, _ in found:
        assert one.bits_per_byte is not None
        assert one.nats_per_example is not None
        assert one.bits_per_byte.value == pytest.approx(bits, rel=1e-6)
        assert one.bits_per_byte.standard_error == pytest.approx(found[0][0].bits_per_byte.standard_error, rel=1e-6)
        assert one.nats_per_example.value == pytest.approx(total / len(TEXTS), rel=1e-6)
        assert one.bytes == len("".join(TEXTS).encode())
    assert (found[1][1].ids == 0).any()  # characters that the second one lacks
    losses = sorted(one.loss for one, _ in found)
    assert losses[1] > 1.05 * losses[0]
    assert losses[2] > 1.05 * losses[1]


def test_a_token_that_holds_the_end_of_the_prompt_too_gains_nothing(make_tokenizer: Any) -> None:
    """Its loss counts whole, and of its bytes those of the target alone."""
    apart, _ = evaluated(make_tokenizer(), [("a:", "two three")], False)
    joined, tokens = evaluated(make_tokenizer(), [("a: ", "two three")], False)
    assert make_tokenizer().decode(tokens.target(0)[:1]).startswith(" t")
    assert apart.bytes == joined.bytes == len("two three")
    assert apart.bits_per_byte is not None
    assert joined.bits_per_byte is not None
    more = joined.bits_per_byte.value - apart.bits_per_byte.value
    assert more == pytest.approx(nats_of(b" ") / math.log(2) / len("two three"), rel=1e-6)
