"""Accuracy among choices, against losses that torch computes of each by itself."""

import jax
import numpy as np
import pytest

import lensjax.models
from lensjax.tasks.choices import Choices, choice_facts, wrong_choices
from lensjax.tasks.task import Example
from lensjax.tasks.tokens import Tokens, tokenise
from lensjax.train.evaluate import evaluate, summarise
from lensjax.train.placement import BatchPlacement
from lensjax.train.spec import FinetuneSpec, TrainingSpec
from lensjax.train.step import make_programs

WORDS = (" one", " two three", " four four four", " five", " é")


def test_ties_count_for_their_share_and_bytes_divide():
    sums, counts = np.array([2.0, 3.0, 6.0, 1.0]), np.ones(4)
    of, size = np.array([0, 0, 1, 1, 2, 3, 3]), np.array([1, 1, 9, 1, 1, 1, 1])
    others = np.array([2.5, 2.1, 3.0, 3.0, 5.0, 9.0, 0.9])
    same = np.array([False] * 6 + [True])  # its loss differs by rounding alone
    cut = np.zeros(7, bool)
    none = Tokens(np.zeros(0, np.int32), np.zeros(8, np.int64), np.zeros(7, np.int32), cut, cut, cut[:0], ~cut)
    found = summarise(sums, counts, None, None, np.array([1, 3, 3, 1]), Choices(none, (8,), of, size, same), others)
    assert found.choice_accuracy.value == np.mean([1, 1 / 3, 0, 1 / 2])
    assert found.choice_accuracy.standard_error == pytest.approx(np.std([1, 1 / 3, 0, 1 / 2], ddof=1) / 2)
    assert found.choice_accuracy_per_byte.value == np.mean([1, 0, 1, 1 / 2])
    assert summarise(sums, counts).choice_accuracy is None


@pytest.mark.parametrize("model_type", ["gpt2", "t5"])
def test_accuracy_is_that_of_losses_of_each_choice_alone(model_type, pretrained):
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    folder, random, seq2seq = pretrained(model_type), np.random.default_rng(0), model_type == "t5"
    theirs = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(folder).eval()
    examples = []
    for n in range(30):
        offered = tuple(random.permutation(WORDS)[: random.integers(2, 6)])
        examples.append(Example(f"number {n}:" * (1 + n % 2), offered[0], f"row {n}", choices=offered))
    mesh = lensjax.models.make_mesh("data=1", jax.devices()[:1])
    model = lensjax.models.load(folder, mesh=mesh)
    spec = FinetuneSpec.model_validate({"source": {"files": "none.jsonl"}, "target": "{a}"})
    test, others = (
        tokenise(rows, model.tokenizer, spec, encoder_decoder=seq2seq) for rows in (examples, wrong_choices(examples))
    )
    facts = {
        k: np.array(v)
        for k, v in choice_facts(examples, test, others, model.tokenizer, encoder_decoder=seq2seq).items()
    }
    lengths = (32, 24) if seq2seq else (48,)
    choices = Choices(others, lengths, facts["examples"], facts["bytes"], facts["same"].astype(bool))

    def loss(tokens, i):
        prompt, target = (torch.tensor(np.array(part))[None].long() for part in (tokens.prompt(i), tokens.target(i)))
        with torch.no_grad():
            if seq2seq:
                logits = theirs(input_ids=prompt, labels=target).logits[0]
            else:
                logits = theirs(input_ids=torch.cat([prompt, target], 1)).logits[0, prompt.shape[1] - 1 : -1]
        return float(torch.nn.functional.cross_entropy(logits.double(), target[0], reduction="sum"))

    size = np.array([len(example.target.encode()) for example in examples])
    truth, wrong = (np.array([loss(tokens, i) for i in range(len(tokens))]) for tokens in (test, others))
    plain, per_byte = (
        np.array([t < w[facts["examples"] == i].min() for i, t in enumerate(true)])
        for true, w in ((truth, wrong), (truth / size, wrong / facts["bytes"]))
    )
    assert 0 < plain.mean() < 1
    assert np.any(plain != per_byte)
    programs = make_programs(model, TrainingSpec(dtype="float32"), mesh)
    found = evaluate(programs, model.params, {}, test, lengths, BatchPlacement(mesh, 8), 0, size, choices)
    assert found.choice_accuracy.value == pytest.approx(plain.mean(), abs=1e-12)
    assert found.choice_accuracy_per_byte.value == pytest.approx(per_byte.mean(), abs=1e-12)
