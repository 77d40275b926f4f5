"""The loss on a set of examples, the task metrics, and their standard errors."""

import math

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import lensjax.models
from lensjax.tasks.target_bytes import UNKNOWN, target_bytes
from lensjax.tasks.task import Example
from lensjax.tasks.tokens import tokenise
from lensjax.train.evaluate import evaluate, summarise
from lensjax.train.placement import BatchPlacement
from lensjax.train.spec import FinetuneSpec
from lensjax.train.step import Programs


def test_loss_is_the_mean_over_tokens_and_its_error_that_over_examples():
    random = np.random.default_rng(0)

    def draw(n):
        counts = random.integers(1, 30, n).astype(float)
        return counts * random.gamma(4, 0.5, n), counts

    estimates = [summarise(*draw(200)) for _ in range(2000)]
    truth = np.std([found.loss for found in estimates])
    assert abs(np.mean([found.standard_error for found in estimates]) / truth - 1) < 0.05
    assert abs(np.mean([found.loss for found in estimates]) - 2.0) < 0.01


def test_counts_and_a_single_example():
    found = summarise(np.array([2.0, 4.0]), np.array([1.0, 3.0]))
    assert (found.loss, found.examples, found.tokens) == (1.5, 2, 4)
    assert math.isnan(summarise(np.array([2.0]), np.array([4.0])).standard_error)


def test_metrics_are_ratios_over_examples():
    sums, counts, hits = np.array([2.0, 4.0, 9.0]), np.array([1.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0])
    size = np.array([3, 10, 7])
    found = summarise(sums, counts, hits, np.zeros(3, bool), size)
    assert found.bits_per_byte.value == pytest.approx(15 / 20 / math.log(2), rel=1e-12)
    residuals = sums / math.log(2) - found.bits_per_byte.value * size
    assert found.bits_per_byte.standard_error == pytest.approx(math.sqrt(3 / 2 * (residuals**2).sum()) / 20, rel=1e-12)
    assert found.bytes == 20
    assert found.nats_per_example.value == 5.0
    assert found.nats_per_example.standard_error == pytest.approx(np.std(sums, ddof=1) / math.sqrt(3), rel=1e-12)
    assert found.token_accuracy.value == 6 / 8
    assert found.exact_match.value == 2 / 3
    assert found.exact_match.standard_error == pytest.approx(np.std([1, 1, 0], ddof=1) / math.sqrt(3), rel=1e-12)
    assert (found.loss, found.standard_error) == (summarise(sums, counts).loss, summarise(sums, counts).standard_error)


def test_cut_targets_are_no_match_and_their_examples_have_no_whole_loss():
    sums, counts, cut = np.array([2.0, 4.0]), np.array([2.0, 4.0]), np.array([True, False])
    found = summarise(sums, counts, counts, cut, np.array([3, 5]))
    assert found.exact_match.value == 0.5
    assert found.nats_per_example is None
    assert found.bits_per_byte.value == pytest.approx(6 / 8 / math.log(2))
    unknown = summarise(sums, counts, counts, cut, np.array([UNKNOWN, 5]))
    assert (unknown.bits_per_byte, unknown.bytes, unknown.loss) == (None, None, found.loss)


def byte_tokenizer():
    """A token for every byte, and nothing else but the end of text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["</s>", *letters])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def test_a_distribution_over_strings_has_one_loss_per_byte_with_any_tokenizer(make_tokenizer):
    """Bytes are drawn one by one, until the text ends; the loss of a token is that of its bytes."""
    random = np.random.default_rng(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    nats = dict(zip([*letters, "</s>"], -np.log(random.dirichlet(np.ones(257))), strict=True))
    texts = ["one two three", " four five é", "一二三 two", "three\nthree  {}"]
    examples = [Example("a:", text, "row") for text in texts]
    mesh = lensjax.models.make_mesh("data=1", jax.devices()[:1])
    found = []
    for tokenizer in (make_tokenizer(), byte_tokenizer()):
        names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        # The end of text alone is one unit; other special tokens are in no target.
        table = np.array(
            [nats[name] if name in nats else sum(nats.get(letter, 0) for letter in name) for name in names]
        )

        def losses(params, frozen, batch, table=table):
            labels = np.asarray(batch["labels"])
            counted = labels >= 0
            return (table[labels] * counted).sum(1), counted.sum(1), counted.sum(1)

        spec = FinetuneSpec.model_validate({"source": {"files": "none.jsonl"}, "target": "{a}"})
        tokens = tokenise(examples, tokenizer, spec, encoder_decoder=False)
        size = np.array(target_bytes(examples, tokens, tokenizer, encoder_decoder=False))
        programs = Programs(step=None, losses=losses, start=None, copy=None)
        found.append(evaluate(programs, {}, {}, tokens, (64,), BatchPlacement(mesh, 4), 0, size))
    merged, single = found
    total = sum(sum(nats[letter] for letter in letters_of(text)) + nats["</s>"] for text in texts)
    for one in found:
        assert one.bits_per_byte.value == pytest.approx(total / math.log(2) / len("".join(texts).encode()), rel=1e-6)
        assert one.nats_per_example.value == pytest.approx(total / len(texts), rel=1e-6)
    assert merged.bits_per_byte == pytest.approx(single.bits_per_byte, rel=1e-6)
    assert merged.tokens < single.tokens
    assert abs(merged.loss / single.loss - 1) > 0.05


def letters_of(text):
    """The letters that stand for a text's bytes in byte-level vocabularies."""
    return "".join(piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text))
