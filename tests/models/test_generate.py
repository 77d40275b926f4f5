"""Writing on from prompts: beside `generate` of `transformers`, greedily, and by sampling.

LENSJAX_TEST_GREEDY compares every family; by default those do that keep something of their own.
"""

import os

import numpy as np
import pytest

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.models.family import supported
from lensjax.models.generate import Sampling

SOME = ("gemma2", "gemma4_text", "t5", "lfm2", "qwen3_5_text", "mbart")
FAMILIES = supported() if os.environ.get("LENSJAX_TEST_GREEDY") else SOME
ENDS = [*range(3, 96, 6)]
NEW = 12


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family, tiny_config, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    config = tiny_config(family)
    both_sides = config.is_encoder_decoder
    theirs = (AutoModelForSeq2SeqLM if both_sides else AutoModelForCausalLM).from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.generation_config.forced_eos_token_id = theirs.generation_config.eos_token_id = None
    theirs.save_pretrained(tmp_path / "model")
    model = lensjax.models.load(tmp_path / "model")
    ids = np.random.default_rng(0).integers(3, 96, (9, 7))
    mask = np.ones_like(ids)
    mask[1, :2] = mask[3, :5] = 0
    ends = ENDS if family in ("gemma2", "t5") else []  # others write all they can
    settings = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": ends or None, "pad_token_id": 0}
    start = [*range(7, 7 + len(ids))] if family == "mbart" else None  # a language for each row
    if start is not None:
        settings["decoder_start_token_id"] = start
    written = theirs.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **settings).numpy()
    expected = []
    for row in written[:, 1 if both_sides else 7 :].tolist():
        ended = [place for place, token in enumerate(row) if token in ends]
        expected.append(row[: ended[0] + 1] if ended else row)
    found = model.generate(
        model.params, {"input_ids": ids, "attention_mask": mask}, max_new_tokens=NEW, ends=ends, start=start
    )
    assert found == expected
    assert len({tuple(row) for row in expected}) > 2  # or any model would do


@pytest.mark.parametrize("family", ["qwen3_5_text", "lfm2"])
def test_states_after_long_prompts_are_those_of_a_whole_pass(family, tiny_config, random_model):
    model = random_model(tiny_config(family))
    ids = np.random.default_rng(0).integers(3, 96, (2, 70))  # more than the backward pass has in a chunk
    new = np.array(model.generate(model.params, {"input_ids": ids}, max_new_tokens=6, ends=()))
    whole = np.asarray(model.apply(model.params, {"input_ids": np.concatenate([ids, new], axis=1)}))
    np.testing.assert_array_equal(whole[:, 69:-1].argmax(-1), new)


@pytest.fixture(scope="module")
def pocket():
    return lensjax.models.load("pocket:gpt2-0.2m")


def test_texts_are_written_whatever_they_are_batched_with(pocket):
    texts = ["Two roads diverged in a yellow wood, and", "The"]
    both = pocket.generate(pocket.params, texts, max_new_tokens=8)
    assert both == [pocket.generate(pocket.params, text, max_new_tokens=8) for text in texts]
    ids = np.array([pocket.tokenizer(texts[1])["input_ids"] + [0] * 3])
    mask = (np.arange(ids.shape[1]) < ids.shape[1] - 3)[None].astype(int)  # padding after it, too
    (row,) = pocket.generate(pocket.params, {"input_ids": ids, "attention_mask": mask}, max_new_tokens=8)
    assert pocket.tokenizer.decode(row, skip_special_tokens=True) == both[1]


def test_draws_are_of_the_models_distribution(pocket):
    ids = np.tile(pocket.tokenizer("The")["input_ids"], (4000, 1))
    logits = np.asarray(pocket.apply(pocket.params, {"input_ids": ids[:1]}))[0, -1].astype(float) / 0.7
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    drawn = pocket.generate(pocket.params, {"input_ids": ids}, max_new_tokens=1, temperature=0.7, ends=())
    counts = np.bincount([row[0] for row in drawn], minlength=len(shares)) / len(drawn)
    assert np.abs(counts - shares).max() < 4 * np.sqrt(shares.max() / len(drawn))
    again = pocket.generate(pocket.params, {"input_ids": ids}, max_new_tokens=1, temperature=0.7, ends=())
    assert drawn == again
    assert drawn != pocket.generate(
        pocket.params, {"input_ids": ids}, max_new_tokens=1, temperature=0.7, ends=(), seed=1
    )


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [(Sampling(1.0, top_k=2), {0, 2}), (Sampling(1.0, top_p=0.7), {0, 2}), (Sampling(1.0, top_p=1e-6), {2})],
)
def test_top_k_and_top_p_leave_out_the_rest(sampling, kept):
    import jax
    import jax.numpy as jnp

    logits = jnp.log(jnp.array([0.3, 0.1, 0.5, 0.1]))
    drawn = sampling.choose(jnp.tile(logits, (500, 1)), jax.random.key(0))
    assert set(np.asarray(drawn).tolist()) == kept


def test_what_cannot_be_written_is_refused(pocket, tiny_config, random_model):
    model = random_model(tiny_config("mbart"))
    with pytest.raises(InputError, match="Answers of mbart start with the token of a language"):
        model.generate(model.params, {"input_ids": [[5, 6]]})
    for start in ([7, 8, 9], -1, 96.5, model.config.vocab_size):
        with pytest.raises(InputError, match=r"^start is .*; give "):
            model.generate(model.params, {"input_ids": [[5, 6]] * 2}, start=start)
    with pytest.raises(InputError, match="gpt2 has no encoder; put it in the prompts"):
        pocket.generate(pocket.params, "The", start=5)
    with pytest.raises(InputError, match="top_p above 0 and up to 1"):
        pocket.generate(pocket.params, "The", top_p=0.0)
    with pytest.raises(InputError, match="max_new_tokens is 0; give 1 or more"):
        pocket.generate(pocket.params, "The", max_new_tokens=0)
    with pytest.raises(InputError, match="A prompt has no tokens"):
        pocket.generate(pocket.params, {"input_ids": [[5]], "attention_mask": [[0]]})
    with pytest.raises(InputError, match="labels, of which generating makes no use"):
        pocket.generate(pocket.params, {"input_ids": [[5]], "labels": [[5]]})
    with pytest.raises(InputError, match=r"the model has learned \d+; lower max_new_tokens"):
        pocket.generate(pocket.params, "The", max_new_tokens=100_000)
