"""Several examples in one row compute what each does in a row of its own."""

import jax
import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.models.family import family_of, supported
from lensjax.models.masks import positions

TIME, LENGTHS = 16, (9, 5, 3, 7)  # longer than the windows of tiny models
PACKED = ([0, 3], [1, 2], [], [])
# The row that holds several examples must not stretch rotary embeddings that depend on the length of a sequence.
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
CHANGES = {"llama": {"max_position_embeddings": max(LENGTHS), "rope_parameters": DYNAMIC}}
SAME_BLOCKS = ("gemma", "qwen2", "qwen3")  # as others, whose gradients are compared
CAUSAL = [name for name in supported() if not family_of(name).encoder_decoder]


def rows_of(examples, places):
    """A batch whose row r holds the examples places[r], one after another."""
    batch = {name: np.zeros((len(places), TIME), np.int32) for name in ("input_ids", "segment_ids", "labels")}
    batch["labels"] -= 100
    for row, held in enumerate(places):
        at = 0
        for number, example in enumerate(held, 1):
            ids, labels = examples[example]
            here = row, slice(at, at + len(ids))
            batch["input_ids"][here], batch["labels"][here], batch["segment_ids"][here] = ids, labels, number
            at += len(ids)
    return batch


def make_examples(lengths, vocabulary, labelled_from=2):
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, vocabulary, length) for length in lengths]
    return [(ids, np.where(np.arange(len(ids)) < labelled_from, -100, ids)) for ids in texts]


@pytest.mark.parametrize("model_type", CAUSAL)
def test_packed_rows_have_the_loss_and_gradients_of_unpacked_ones(model_type, tiny_config, random_model):
    model = random_model(tiny_config(model_type, **CHANGES.get(model_type, {})))
    examples = make_examples(LENGTHS, model.config.vocab_size)
    alone, packed = rows_of(examples, [[0], [1], [2], [3]]), rows_of(examples, PACKED)
    compiled = jax.jit(model.loss if model_type in SAME_BLOCKS else jax.value_and_grad(model.loss))
    expected, found = compiled(model.params, alone), compiled(model.params, packed)  # one program for both
    if model_type not in SAME_BLOCKS:
        (expected, wanted), (found, gradients) = expected, found
        scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale), gradients, wanted)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    plain = {name: alone[name][:, : max(LENGTHS)] for name in ("input_ids", "labels")}
    np.testing.assert_allclose(jax.jit(model.loss)(model.params, plain), expected, rtol=1e-5)


def test_the_next_example_is_not_predicted_and_positions_begin_anew(tiny_config, random_model):
    model = random_model(tiny_config("gpt2"))
    batch = rows_of(make_examples(LENGTHS, model.config.vocab_size, labelled_from=0), PACKED)
    labels = model.targets(batch)
    assert (labels != -100).sum() == sum(LENGTHS) - len(LENGTHS)  # the first token of an example has none before it
    del batch["labels"]
    np.testing.assert_array_equal(model.targets(batch), labels)
    expected = np.concatenate([np.arange(9), np.arange(7)]), np.concatenate([np.arange(5), np.arange(3), np.zeros(8)])
    np.testing.assert_array_equal(positions(batch)[:2], expected)
    assert positions(batch | {"position_ids": 7}) == 7


def test_models_that_cannot_keep_segments_apart_refuse_them(tiny_config, random_model):
    model = random_model(tiny_config("t5"))
    with pytest.raises(InputError, match="The batch has segment_ids, of which t5 makes no use"):
        model.loss(model.params, rows_of(make_examples(LENGTHS, 96), PACKED))
