"""The bound's terms, against dense Hessians in float64."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lensjax.core.errors import InputError
from lensjax.curvature.bound import bound_terms, difference, layer_terms, layer_terms_flops
from lensjax.curvature.streaming import Batches

DEPTH, WIDTH, N = 2, 3, 5


def losses(params, batch):
    """Squared errors of a network that is not convex, with a stack of layers that a scan slices."""
    hidden, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), batch["x"], params["stack"])
    return jnp.square(hidden @ params["out"] + params["shift"] - batch["y"])


def mean_loss(params, batch):
    return losses(params, batch).mean()


@pytest.fixture
def pair():
    """Pretrained and fine-tuned parameters, a batch, and blocks of the dense Hessian of every example, by layer."""
    with jax.enable_x64(True):
        random = np.random.default_rng(0)

        def draw(*shape):
            return jnp.asarray(random.normal(size=shape))

        before, after = ({"out": draw(WIDTH), "shift": draw(), "stack": draw(DEPTH, WIDTH, WIDTH)} for _ in range(2))
        batch = {"x": draw(N, WIDTH), "y": draw(N)}
        flat, unravel = ravel_pytree(after)
        dense = np.asarray(jax.hessian(lambda p: losses(unravel(p), batch))(flat))
        v = np.asarray(flat - ravel_pytree(before)[0])
        ends = np.cumsum([0, WIDTH, 1, *[WIDTH**2] * DEPTH])
        parts = [slice(*two) for two in itertools.pairwise(ends)]
        yield SimpleNamespace(before=before, after=after, batch=batch, dense=dense, v=v, parts=parts)


def test_forms_are_those_of_dense_blocks(pair):
    diagonal = [[pair.v[p] @ h[p, p] @ pair.v[p] for h in pair.dense] for p in pair.parts]
    joint = [[pair.v[p] @ h[p] @ pair.v for h in pair.dense] for p in pair.parts]
    halves = Batches([{name: x[rows] for name, x in pair.batch.items()} for rows in (slice(2), slice(2, N))])
    for block, expected in (("diagonal", diagonal), ("joint", joint)):
        for batch in (pair.batch, halves):
            found = layer_terms(losses, pair.before, pair.after, batch, block=block)
            assert found.layers == ("out", "shift", "stack[0]", "stack[1]")
            assert (found.block, found.over) == (block, "examples")
            np.testing.assert_allclose(found.forms, expected, rtol=1e-10, atol=1e-12)
    assert min(np.min(joint), np.min(diagonal)) < 0  # so that there is something to be cut off
    np.testing.assert_allclose(found.largest, np.maximum(np.max(joint, axis=1), 0), rtol=1e-10)
    np.testing.assert_allclose(found.mean, np.mean(joint, axis=1), rtol=1e-10)
    np.testing.assert_allclose(found.distances, [pair.v[p] @ pair.v[p] for p in pair.parts], rtol=1e-12)
    np.testing.assert_allclose(found.losses, losses(pair.after, pair.batch), rtol=1e-12)


def test_the_positive_part_is_that_of_dense_blocks(pair):
    expected = []
    for part in pair.parts:
        values, vectors = np.linalg.eigh(pair.dense[:, part, part])
        along = np.einsum("nij,i->nj", vectors, pair.v[part])
        expected.append((np.square(along) * np.maximum(values, 0)).sum(axis=1))
    told = []
    found = layer_terms(
        losses, pair.before, pair.after, pair.batch, positive_steps=WIDTH**2, progress=lambda *now: told.append(now)
    )
    np.testing.assert_allclose(found.positive, expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.largest, np.max(expected, axis=1), rtol=1e-8, atol=1e-10)
    assert np.all(found.positive >= found.forms - 1e-10)
    assert told == [(1, 1)]
    one = layer_terms(losses, pair.before, pair.after, pair.batch, positive_steps=1)
    np.testing.assert_allclose(one.positive, np.maximum(one.forms, 0), rtol=1e-8, atol=1e-10)


def test_a_scalar_loss_gives_a_column_for_every_batch(pair):
    halves = [{name: x[rows] for name, x in pair.batch.items()} for rows in (slice(2), slice(2, N))]
    found = layer_terms(mean_loss, pair.before, pair.after, Batches(halves), positive_steps=WIDTH**2)
    assert (found.over, found.forms.shape) == ("batches", (4, 2))
    means = [pair.dense[:2].mean(axis=0), pair.dense[2:].mean(axis=0)]
    for row, part in enumerate(pair.parts):
        expected = [pair.v[part] @ h[part, part] @ pair.v[part] for h in means]
        np.testing.assert_allclose(found.forms[row], expected, rtol=1e-9, atol=1e-12)
        assert np.all(found.positive[row] >= found.forms[row] - 1e-10)


def test_a_pair_of_one_model_has_terms_of_zero(pair):
    found = layer_terms(losses, pair.after, pair.after, pair.batch, positive_steps=2)
    assert not found.forms.any()
    assert not found.positive.any()
    assert not found.distances.any()


def test_operations_are_counted_without_computing(pair):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), pair.after)
    forward = 2 * N * (DEPTH * WIDTH**2 + WIDTH)
    # The loss takes 1; a product 3 to go forward, 3 backward, and 2 for what is linear in it of the weights' gradients.
    joint = layer_terms_flops(losses, shapes, pair.batch, block="joint")
    assert joint == (1 + 8) * forward
    assert layer_terms_flops(losses, shapes, Batches([pair.batch] * 2), block="joint") == 2 * joint
    line = {"w": pair.after["out"]}
    assert layer_terms_flops(lambda p, x: jnp.tanh(x @ p["w"]), line, pair.batch["x"]) == (1 + 2) * 2 * N * WIDTH
    forms, one, two = (layer_terms_flops(losses, shapes, pair.batch, positive_steps=k) for k in (None, 1, 2))
    assert one - forms > 4 * forward  # a gradient at least, of every layer
    assert two > one


def test_pairs_that_do_not_match_are_named(pair):
    before, after = pair.before, pair.after
    for other, said in (
        ({**after, "stack": jnp.zeros((DEPTH, WIDTH, 4))}, r"'stack' has shape \(2, 3, 3\) in the pretrained"),
        ({**after, "bias": jnp.zeros(2)}, "Only the fine-tuned model has a parameter 'bias'"),
        ({"out": after["out"]}, "Only the pretrained model has a parameter 'shift'"),
        ({**after, "out": after["out"].at[1].set(jnp.nan)}, "'out' is not finite in both"),
        ({**after, "out": jnp.ones(WIDTH, int)}, "out holds int64"),
    ):
        with pytest.raises(InputError, match=said):
            difference(before, other)
    with pytest.raises(InputError, match="give block='diagonal' with positive_steps"):
        layer_terms(losses, before, after, pair.batch, block="joint", positive_steps=4)
    with pytest.raises(InputError, match="positive_steps is 0"):
        layer_terms(losses, before, after, pair.batch, positive_steps=0)
    with pytest.raises(InputError, match="block is 'both'"):
        layer_terms(losses, before, after, pair.batch, block="both")
    with pytest.raises(InputError, match="batch 0, example 3 is not finite"):
        layer_terms(losses, before, after, {**pair.batch, "y": pair.batch["y"].at[3].set(jnp.inf)})
    with pytest.raises(InputError, match="hold no examples"):
        layer_terms(losses, before, after, {name: x[:0] for name, x in pair.batch.items()})


def test_the_bound_has_the_terms_that_are_written():
    found = bound_terms(400, 0.5, np.array([4.0, 9.0]), 4.0, epsilon=0.1, remainder=8.0)
    assert found.empirical == pytest.approx(1.1 * 0.5)
    assert found.hessian == pytest.approx(1.1 * (2 * 2 + 2 * 3) / 20)
    assert found.remainder == pytest.approx(8 * 400**-0.75)
    assert found.total == pytest.approx(found.empirical + found.hessian + found.remainder)
    with pytest.raises(InputError, match=r"epsilon \(ε\) is 0\.0"):
        bound_terms(400, 0.5, np.array([4.0]), 4.0, epsilon=0.0)
    with pytest.raises(InputError, match=r"loss_bound \(C\) is inf"):
        bound_terms(400, 0.5, np.array([4.0]), np.inf)
    with pytest.raises(InputError, match="the training loss nan"):
        bound_terms(400, np.nan, np.array([4.0]), 4.0)
    with pytest.raises(InputError, match="n is 0"):
        bound_terms(0, 0.5, np.array([4.0]), 4.0)
