"""The loss against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lensjax.models.losses import IGNORED, greedy_hits, reduce_losses, shift_right, token_losses

BATCH, TIME, VOCABULARY = 3, 5, 7


def reference(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The loss of every token by the definition, 0 where it is ignored."""
    logits = logits.astype(np.float64)
    peak = logits.max(-1, keepdims=True)
    log_probabilities = logits - peak - np.log(np.exp(logits - peak).sum(-1, keepdims=True))
    rows, columns = np.indices(labels.shape)
    return np.where(labels == IGNORED, 0.0, -log_probabilities[rows, columns, np.where(labels == IGNORED, 0, labels)])


logits_strategy = hnp.arrays(np.float64, (BATCH, TIME, VOCABULARY), elements=st.floats(-50, 50))
labels_strategy = hnp.arrays(np.int64, (BATCH, TIME), elements=st.sampled_from([IGNORED, *range(VOCABULARY)]))


@given(logits_strategy, labels_strategy)
def test_equals_numpy(logits: np.ndarray, labels: np.ndarray) -> None:
    expected = reference(logits, labels)
    counted = labels != IGNORED
    with jax.enable_x64(True):
        losses, weights = token_losses(jnp.asarray(logits), jnp.asarray(labels))
        assert losses.dtype == np.float64
        np.testing.assert_allclose(losses, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(weights, counted)
        mean = reduce_losses(losses, weights, "mean")
        each = reduce_losses(losses, weights, "example")
    np.testing.assert_allclose(mean, expected.sum() / max(counted.sum(), 1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(each, expected.sum(1) / np.maximum(counted.sum(1), 1), rtol=1e-12, atol=1e-12)
    losses, _ = token_losses(jnp.asarray(logits), jnp.asarray(labels))
    assert losses.dtype == np.float32
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-4)


@given(logits_strategy, labels_strategy)
def test_examples_one_by_one_equal_the_batch(logits: np.ndarray, labels: np.ndarray) -> None:
    together = token_losses(jnp.asarray(logits), jnp.asarray(labels))
    single = jax.vmap(token_losses)(jnp.asarray(logits)[:, None], jnp.asarray(labels)[:, None])
    for one, all_ in zip(single, together, strict=True):
        np.testing.assert_allclose(one[:, 0], all_, rtol=1e-6, atol=1e-6)
    means = jax.vmap(lambda x, w: reduce_losses(x, w, "mean"))(*together)
    np.testing.assert_allclose(means, reduce_losses(*together, "example"), rtol=1e-6, atol=1e-6)


def test_half_precision_is_summed_in_float32() -> None:
    logits = jax.random.normal(jax.random.key(0), (2, 4, 1000)).astype(jnp.bfloat16)
    labels = jnp.arange(8).reshape(2, 4)
    losses, _ = token_losses(logits, labels)
    assert losses.dtype == np.float32
    np.testing.assert_allclose(losses, reference(np.asarray(logits), np.asarray(labels)), rtol=1e-6)


def test_nothing_to_predict_is_no_loss_and_no_gradient() -> None:
    logits = jnp.ones((2, TIME, VOCABULARY))
    labels = jnp.array([[IGNORED] * TIME, [1] * TIME])

    def examples(logits: jax.Array) -> jax.Array:
        return reduce_losses(*token_losses(logits, labels), "example")

    np.testing.assert_allclose(examples(logits), [0.0, np.log(VOCABULARY)], rtol=1e-6)
    gradient = jax.jacobian(examples)(logits)
    assert not gradient[0].any()
    assert np.isfinite(gradient).all()
    assert reduce_losses(*token_losses(logits[:1], labels[:1]), "mean") == 0.0


@pytest.mark.parametrize("label", [VOCABULARY, 10**6, -1, -99, -101])
def test_a_label_outside_the_vocabulary_is_loud(label: int) -> None:
    labels = jnp.array([[0, label, IGNORED]])
    losses, weights = token_losses(jnp.zeros((1, 3, VOCABULARY)), labels)
    np.testing.assert_array_equal(np.isnan(losses), [[False, True, False]])
    assert np.isnan(reduce_losses(losses, weights, "mean"))


def test_a_decoder_is_given_its_targets_one_later() -> None:
    labels = jnp.array([[5, 6, IGNORED, IGNORED], [5, 6, 7, 8]])
    np.testing.assert_array_equal(shift_right(labels, start=2, padding=1), [[2, 5, 6, 1], [2, 5, 6, 7]])


@given(hnp.arrays(np.float32, (BATCH, TIME, VOCABULARY), elements=st.integers(-2, 2)), labels_strategy)
def test_hits_are_argmaxes_also_where_logits_are_equal(logits: np.ndarray, labels: np.ndarray) -> None:
    losses, _ = token_losses(jnp.asarray(logits), jnp.asarray(labels))
    hits = jax.jit(greedy_hits)(jnp.asarray(logits), jnp.asarray(labels), losses)
    np.testing.assert_array_equal(hits, logits.argmax(-1) == labels)


def test_hits_of_many_ties_in_half_precision() -> None:
    logits = (4 * jax.random.normal(jax.random.key(0), (8, 16, 300))).round().astype(jnp.bfloat16)
    highest = logits == logits.max(-1, keepdims=True)
    for labels in (logits.argmax(-1), 299 - highest[..., ::-1].argmax(-1)):
        losses, _ = token_losses(logits, labels)
        np.testing.assert_array_equal(greedy_hits(logits, labels, losses), logits.argmax(-1) == labels)


def test_labels_and_logits_without_an_argmax_are_no_hits() -> None:
    logits = jnp.asarray([[[1.0, 2.0], [jnp.nan, 2.0], [1.0, 2.0]]])
    labels = jnp.asarray([[IGNORED, 1, 2]])
    assert not greedy_hits(logits, labels, token_losses(logits, labels)[0]).any()
