"""Losses whose vocabulary is taken a chunk of tokens at a time have the derivatives of those that hold all logits."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.curvature.hvp import ggn_vp_fn, hvp_fn, quadratic_form
from lensjax.curvature.jaxpr.program import traced_program
from lensjax.curvature.ntk.ntk import ntk
from lensjax.measure.functionals.fisher_sketch import fisher_sketch
from lensjax.measure.model_losses import head_cross_entropy, token_cross_entropy
from lensjax.models import make_mesh, vocabulary
from lensjax.models.family import supported
from lensjax.models.gradient import loss_and_gradient
from lensjax.models.lora import add_lora, join, split_trainable
from lensjax.models.sharding import abstract_mesh

ROWS, TIME, WORDS = 3, 7, 53
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture
def hold(monkeypatch):
    """Says how many tokens a chunk has at most: 21 tokens by 5 are 5 chunks, of which the last is not full."""
    return lambda tokens: monkeypatch.setattr(vocabulary, "_HELD", {"cpu": tokens * WORDS})


def make_batch(rows=ROWS, time=TIME):
    random = np.random.default_rng(1)
    batch = {name: random.integers(3, WORDS, (rows, time)) for name in ("input_ids", "labels")}
    batch["labels"][:, ::3] = -100
    batch["labels"][0, 3:] = -100
    return batch


def vector(params, seed=2):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(random.standard_normal(x.shape), x.dtype), params)


def assert_close(found, expected, tolerance=1e-11):
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


@pytest.fixture
def make_head(tiny_config, random_model):
    def make(model_type, **settings):
        whole = random_model(tiny_config(model_type, vocab_size=settings.pop("words", WORDS)), **settings)
        params = {key: value for key, value in whole.params.items() if key in ("embed", "head")}

        def hidden(params, batch):
            ids = jnp.asarray(batch["input_ids"])
            x = params["embed"]["embedding"].at[ids].get(mode="fill")
            return jnp.tanh(3 * x).astype(whole.options.dtype)

        assert whole._shapes  # of all parameters, from now on
        known = copy.copy(whole)
        object.__setattr__(known, "hidden", hidden)
        object.__setattr__(known, "params", params)
        return known

    return make


@pytest.mark.parametrize("model_type", supported())
def test_chunks_change_nothing(model_type, make_head, hold):
    def everything(params, v):
        slope = jax.grad(model.loss)
        _, product = jax.jvp(lambda p: slope(p, batch), (params,), (v,))
        (_, tokens), summed = loss_and_gradient(model, params, {}, batch)
        bent = jax.jvp(lambda p: jax.jvp(lambda q: model.token_losses(q, batch)[0], (p,), (v,))[1], (params,), (v,))[1]
        mean = jax.tree.map(lambda x: x / tokens, summed)
        return model.token_scores(params, batch), slope(params, batch), mean, product, bent

    found, batch = [], make_batch()
    with jax.enable_x64(True):
        for tokens in (21, 5):
            hold(tokens)
            model = make_head(model_type, dtype="float64")
            assert model.chunks((ROWS, TIME)) == (None if tokens == 21 else vocabulary.Chunks(ROWS, TIME, 1, 5, 5))
            found.append(jax.jit(everything, compiler_options=QUICK)(model.params, vector(model.params)))
        whole, parts = found
        assert_close(whole[2], whole[1])
        for one, other in zip(parts, whole, strict=True):
            assert_close(one, other)


@pytest.mark.long
def test_products_and_forms_of_a_whole_model(tiny_config, random_model, hold):
    config, batch = tiny_config("gpt2", vocab_size=WORDS, num_hidden_layers=1), make_batch()
    with jax.enable_x64(True):
        whole, parts = (random_model(config, dtype="float64") for _ in range(2))
        v = vector(whole.params)
        ggn = ggn_vp_fn(whole.apply, token_cross_entropy(whole), whole.params, batch)(v)
        assert_close(ggn_vp_fn(*head_cross_entropy(whole), whole.params, batch)(v), ggn)
        product, form = (f(whole.loss, whole.params, batch) for f in (hvp_fn, lambda *a: quadratic_form(*a, v)))
        product = product(v)
        hold(5)
        loss = parts.loss
        assert_close(ggn_vp_fn(*head_cross_entropy(parts), parts.params, batch)(v), ggn)
        operator = hvp_fn(loss, parts.params, batch)
        assert_close(operator(v), product)
        assert_close(quadratic_form(loss, parts.params, batch, v), form)
        held = jax.make_jaxpr(operator)(v).consts
        assert not [x for x in held if x.ndim > 2 and x.shape[-1] == WORDS]  # not a logit is kept


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox"])
def test_kernels_have_factors_of_the_head_all_the_same(model_type, make_head, hold):
    hold(5)
    model, xs = make_head(model_type), make_batch(4, 12)

    def f(params, example):
        return -model.token_losses(params, example)[0]

    uses = traced_program(f, model.params, jax.tree.map(lambda x: x[0], xs))[0].uses.uses.values()
    (head,) = [use for use in uses if use.kind == "product"]
    assert (head.steps, head.rows, head.all_rows, head.layers) == (3, 4, 12, None)
    assert {use.leaf for use in uses} == set(range(len(jax.tree.leaves(model.params))))
    jacobian = jax.jit(jax.vmap(jax.jacrev(f), in_axes=(None, 0)))(model.params, xs)
    flat = np.concatenate([np.asarray(x, np.float64).reshape(4, 12, -1) for x in jax.tree.leaves(jacobian)], axis=2)
    expected = np.einsum("nkp,mkp->nm", flat, flat)
    for limit in (None, 700_000):
        theta = ntk(f, model.params, xs, memory_limit=limit)
        np.testing.assert_allclose(theta, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_kernels_of_matrices_that_every_step_of_a_loop_has():
    random = np.random.default_rng(0)
    params = {name: jnp.asarray(random.standard_normal((5, 5)) / 3) for name in ("bias", "read", "table", "turn")}
    xs = random.standard_normal((3, 4, 5)).astype(np.float32)

    def f(p, x):
        def step(h, token):
            rows = jnp.take(p["table"], jnp.int32(token[:2] > 0), axis=0)
            h = jnp.tanh(h @ p["turn"] + token @ p["turn"].T + p["bias"][0] + rows.sum(axis=0))
            return h, h @ p["read"]

        return jax.lax.scan(step, jnp.zeros(5), x)[1].sum(axis=0)

    uses = traced_program(f, params, xs[0])[0].uses.uses.values()
    assert {use.steps for use in uses} == {4}
    assert {use.leaf for use in uses} == {1, 2, 3}  # the bias is added
    jacobian = jax.tree.leaves(jax.vmap(jax.jacrev(f), in_axes=(None, 0))(params, xs))
    flat = np.concatenate([np.asarray(leaf, np.float64).reshape(3, 5, -1) for leaf in jacobian], axis=2)
    for output, spec in (("trace", "nkp,mkp->nm"), ("full", "nkp,mlp->nmkl")):
        theta = ntk(f, params, xs, output=output)
        np.testing.assert_allclose(theta, np.einsum(spec, flat, flat), rtol=2e-5, atol=2e-5)


@pytest.mark.eight_devices
def test_chunks_on_a_mesh_change_nothing(make_head, monkeypatch):
    batch = make_batch(8, 7)
    monkeypatch.setattr(vocabulary, "_HELD", {"cpu": 10**6})

    def everything(model, params):
        (_, tokens), summed = loss_and_gradient(model, params, {}, batch)
        slope = jax.grad(model.loss)
        _, product = jax.jvp(lambda p: slope(p, batch), (params,), (vector(params),))
        return model.token_scores(params, batch), jax.tree.map(lambda x: x / tokens, summed), product

    with jax.enable_x64(True):
        one = make_head("llama", words=56, dtype="float64")
        expected = jax.jit(everything, static_argnums=0)(one, one.params)
        monkeypatch.setattr(vocabulary, "_HELD", {"cpu": 3 * 56})
        for axes, chunks in (("data=2,fsdp=2,tensor=2", (4, 3, 5)), ("fsdp=8", (8, 3, 3))):
            model = make_head("llama", words=56, dtype="float64", mesh=make_mesh(axes))
            made = model.chunks((8, 7))
            assert (made.shards, made.count, made.size) == chunks
            for one, other in zip(jax.jit(everything, static_argnums=0)(model, model.params), expected, strict=True):
                assert_close(one, other)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_gradients_of_chunks_are_summed_in_float32(dtype, make_head, hold):
    batch, exact = make_batch(16, 16), make_head("gpt2")
    tokens = (batch["labels"][:, 1:] != -100).sum()
    half = jax.tree.map(lambda x: x.astype(dtype), exact.params)
    expected = jax.grad(exact.loss)(jax.tree.map(lambda x: x.astype(jnp.float32), half), batch)["embed"]["embedding"]
    errors = []
    for held in (256, 5):  # 1 and 52 chunks
        hold(held)
        model = make_head("gpt2", dtype=dtype)
        slope = jax.jit(jax.grad(model.loss), compiler_options=QUICK)(half, batch)
        _, summed = jax.jit(lambda p, m=model: loss_and_gradient(m, p, {}, batch), compiler_options=QUICK)(half)
        for found in (slope["embed"]["embedding"], summed["embed"]["embedding"] / tokens.astype(dtype)):
            assert found.dtype == dtype
            errors.append(float(jnp.abs(found.astype(jnp.float32) - expected).max() / jnp.abs(expected).max()))
    assert max(errors[2:]) < 1.5 * max(errors[:2]) < 0.05


def test_a_frozen_head_gets_no_gradient(tiny_config, random_model, hold):
    hold(5)
    model = add_lora(random_model(tiny_config("llama", vocab_size=WORDS, num_hidden_layers=1)), rank=2)
    trained, frozen = split_trainable(model.params)
    batch = make_batch()

    def total(trained):
        losses, weights = model.token_losses(join(trained, frozen), batch)
        return losses.sum(), weights.sum()

    expected = jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=QUICK)(trained)

    def step(*parts):
        return loss_and_gradient(model, *parts)

    found = jax.jit(step, compiler_options=QUICK)(trained, frozen, batch)
    assert jax.tree.structure(found[1]) == jax.tree.structure(trained)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    equations = jax.make_jaxpr(step)(trained, frozen, batch).eqns
    (loop,) = [one for one in equations if one.primitive.name == "scan" and one.params["length"] == 5]
    assert (32, WORDS) not in {var.aval.shape for var in loop.outvars}


def test_a_mesh_without_devices_has_chunks(hold):
    hold(5)
    for tensor, tokens in ((1, 5), (53, 5 * 53)):  # each device has its part of the vocabulary
        mesh = abstract_mesh({"data": 2, "fsdp": 2, "tensor": tensor})
        chunks = vocabulary.chunks_of((8, 300), WORDS, mesh)
        assert (chunks.shards, chunks.count) == (4, -(-600 // tokens))


def test_no_array_of_all_logits_is_made(make_head, hold):
    hold(5)
    model, batch = make_head("gpt2"), make_batch()
    for program in (jax.grad(model.loss), model.token_scores, lambda p, b: loss_and_gradient(model, p, {}, b)):
        text = jax.jit(program).lower(model.params, batch).as_text()
        assert "5x53x" in text
        assert f"{ROWS}x{TIME}x53x" not in text
        assert "5x5x53x" not in text


def test_projections_of_a_few_tokens_at_a_time_are_those_of_all(make_head, hold):
    model, example = make_head("gpt2"), {name: x[0] for name, x in make_batch().items()}
    f = fisher_sketch(model, 4)
    made, slopes = [], []
    for held in (10**6, 4 * 5):  # 1 chunk, and of 5 tokens each
        hold(held)
        made.append(f(model.params, example))
        slopes.append(jax.jit(jax.jacrev(f), compiler_options=QUICK)(model.params, example))
    np.testing.assert_allclose(*made, rtol=1e-4, atol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, slopes), strict=True):
        assert_close(one, other, 1e-4)
    text = jax.jit(lambda p: f(p, example)).lower(model.params).as_text()
    assert f"x{TIME}x{WORDS}x" not in text
