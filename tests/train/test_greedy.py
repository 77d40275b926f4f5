"""Exact match beside real greedy decoding: `generate` of `transformers`, which begins from the prompt alone.

LENSJAX_TEST_GREEDY sets the number of rows, of every family; by default two families have a few.
"""

import os

import jax
import numpy as np
import pytest

import lensjax.models
from lensjax.models.family import supported
from lensjax.tasks.tokens import Tokens
from lensjax.train.evaluate import evaluate
from lensjax.train.placement import BatchPlacement
from lensjax.train.spec import TrainingSpec
from lensjax.train.step import make_programs

ROWS = int(os.environ.get("LENSJAX_TEST_GREEDY", "0"))
FAMILIES = supported() if ROWS else ("gpt2", "t5")
PROMPT, LENGTH = 6, 5  # tokens
SEEDS = {"pegasus": 3}  # with 0 it writes one token, whatever it reads
ENDS = [*range(3, 96, 4)]  # so many that most answers of random models come to one


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_match_is_greedy_decoding(family, tiny_config, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    rows, random = ROWS or 24, np.random.default_rng(0)
    torch.manual_seed(SEEDS.get(family, 0))
    config = tiny_config(family)
    seq2seq = config.is_encoder_decoder
    theirs = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # or models would write one token whatever they read
    theirs.generation_config.forced_eos_token_id = None  # BART's, which is no decoding of the model's
    theirs.save_pretrained(tmp_path / "model")
    mesh = lensjax.models.make_mesh("data=1", jax.devices()[:1])
    model = lensjax.models.load(tmp_path / "model", mesh=mesh)
    prompts = random.integers(3, 96, (rows, PROMPT))

    def decode(ends, **more):
        settings = {"do_sample": False, "max_new_tokens": LENGTH, "eos_token_id": ends, "pad_token_id": 0} | more
        written = theirs.generate(torch.tensor(prompts), attention_mask=torch.ones(rows, PROMPT), **settings).numpy()
        for row in written[:, 1 if seq2seq else PROMPT :].tolist():
            ended = [place for place, token in enumerate(row) if token in ends]
            yield row[: ended[0] + 1] if ended else row[:LENGTH]

    if family == "mbart":  # whose decoder begins with the token that a target ends with
        tried = zip(*(decode([end], decoder_start_token_id=end) for end in ENDS), strict=True)
        greedy = [
            next(
                (row for row, end in zip(some, ENDS, strict=True) if row[-1] == end and 0 not in row),
                [*some[0][:-1], 0],
            )
            for some in tried
        ]
    else:
        greedy = [*decode(ENDS)]
    targets = [row if row[-1] in ENDS else [*row[:-1], ENDS[0]] for row in greedy]
    for row in range(0, rows, 5):  # some differ in another place than the last
        targets[row] = [targets[row][0] % 95 + 1, *targets[row][1:]]
    expected = [decoded == target for decoded, target in zip(greedy, targets, strict=True)]
    assert 0.05 < np.mean(expected) < 0.95

    ids = [token for prompt, target in zip(prompts, targets, strict=True) for token in (*prompt, *target)]
    ends = np.cumsum([PROMPT + len(target) for target in targets])
    none = np.zeros(rows, bool)
    learned = np.concatenate([np.arange(PROMPT + len(target)) >= PROMPT for target in targets])
    starts = np.array([0, *ends], np.int64)
    tokens = Tokens(np.array(ids, np.int32), starts, np.full(rows, PROMPT, np.int32), none, none, learned, ~none)
    programs = make_programs(model, TrainingSpec(dtype="float32"), mesh)
    lengths = (8, 8) if seq2seq else (16,)
    found = evaluate(programs, model.params, {}, tokens, lengths, BatchPlacement(mesh, 8), 0)
    assert found.exact_match.value == np.mean(expected)

    logits, labels = [], []
    with torch.no_grad():
        for prompt, target in zip(torch.tensor(prompts), map(torch.tensor, targets), strict=True):
            if seq2seq:
                logits.append(theirs(input_ids=prompt[None], labels=target[None]).logits[0])
            else:
                logits.append(theirs(input_ids=torch.cat([prompt, target])[None]).logits[0, PROMPT - 1 : -1])
            labels.append(target)
    logits, labels = torch.cat(logits), torch.cat(labels)
    assert found.token_accuracy.value == pytest.approx(float((logits.argmax(-1) == labels).double().mean()), abs=1e-12)
    nats = float(torch.nn.functional.cross_entropy(logits.double(), labels))
    assert found.loss == pytest.approx(nats, rel=1e-5)
    assert found.nats_per_example.value == pytest.approx(nats * len(labels) / rows, rel=1e-5)
