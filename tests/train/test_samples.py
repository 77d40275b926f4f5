"""What fine-tuned models write for a few test examples."""

import json

import numpy as np
import pytest

import lensjax.models
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import load_task
from lensjax.tasks.tokens import tokenise
from lensjax.train.samples import sample_answers


@pytest.fixture(scope="module")
def model():
    return lensjax.models.load("pocket:gpt2-0.2m")


def tokens_of(model, folder):
    rows = [{"q": f"one two {n}", "a": "three four"} for n in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    templates = {"prompt": "{q}:", "target": " {a}"}
    spec = TaskSpec(name="t", source={"files": str(folder / "rows.jsonl")}, validation=10, test=10, **templates)
    return tokenise(load_task(spec).test, model.tokenizer, spec, encoder_decoder=False, embeddings=None)


def test_answers_are_what_the_model_writes_after_each_prompt(model, tmp_path):
    tokens = tokens_of(model, tmp_path)
    samples = sample_answers(model.without_params(), model.params, tokens, 3)
    assert len(samples) == 3
    assert all(sample.prompt.startswith("one two") and sample.prompt.endswith(":") for sample in samples)
    assert {sample.target.strip() for sample in samples} == {"three four"}
    new = int(tokens.target_lengths.max())
    for row, sample in enumerate(samples):
        ids = tokens.prompt(row)[None]
        (written,) = model.generate(
            model.params, {"input_ids": ids}, max_new_tokens=new, ends=[int(tokens.target(row)[-1])]
        )
        assert sample.answer == model.tokenizer.decode(written, skip_special_tokens=True)


def test_a_model_that_cannot_write_has_none(model, tmp_path, monkeypatch):
    tokens = tokens_of(model, tmp_path)

    def refuse(*args, **more):
        raise NotImplementedError

    monkeypatch.setattr(type(model), "generate", refuse)
    assert sample_answers(model, model.params, tokens, 3) == ()
    assert sample_answers(model, model.params, tokens, 0) == ()


def test_turns_of_conversations_have_none(model, tmp_path):
    turns = [
        {"role": role, "content": f"word {n}"} for n, role in enumerate(["user", "assistant", "user", "assistant"])
    ]
    (tmp_path / "chat.jsonl").write_text(
        "".join(json.dumps({"messages": [{"role": "user", "content": f"{n}"}, *turns[1:]]}) + "\n" for n in range(60))
    )
    spec = TaskSpec(name="t", source={"files": str(tmp_path / "chat.jsonl")}, validation=10, test=10)
    tokens = tokenise(load_task(spec).test, model.tokenizer, spec, encoder_decoder=False, embeddings=None)
    assert not np.all([tokens.learned_of(row).all() for row in range(len(tokens))])
    assert sample_answers(model, model.params, tokens, 3) == ()
