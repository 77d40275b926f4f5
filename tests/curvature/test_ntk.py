"""The exact kernel, against dense Jacobians in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.core.flops import matmul_flops
from lensjax.curvature.ntk import ntk, ntk_flops, ntk_vp
from lensjax.measure.functionals.fisher_sketch import fisher_sketch
from lensjax.measure.functionals.label_logits import label_logits
from lensjax.measure.functionals.loss import loss
from lensjax.measure.functionals.target_logprob import target_logprob
from lensjax.models.lora import add_lora, join, split_trainable

N, TIME = 4, 6
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


def make_examples(seed=0, n=N):
    random = np.random.default_rng(seed)
    ids = random.integers(3, 96, (n, TIME))
    labels = np.where(np.arange(TIME) >= 2, ids, -100)
    mask = np.ones((n, TIME), np.int64)
    mask[1, 5:], labels[1, 5:] = 0, -100  # padding
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def jacobian(f, params, xs):
    """Dense Jacobians [examples, outputs, parameters] in float64."""
    function = jax.jit(jax.vmap(jax.jacrev(f), in_axes=(None, 0)), compiler_options=QUICK)
    leaves = jax.tree.leaves(function(params, xs))
    n = len(leaves[0])
    outputs = int(np.prod(jax.eval_shape(f, params, jax.tree.map(lambda x: x[0], xs)).shape))
    return np.concatenate([np.asarray(leaf, np.float64).reshape(n, outputs, -1) for leaf in leaves], axis=-1)


def assert_close(found, expected, tolerance):
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_every_kind_of_block_has_the_kernel_of_its_dense_jacobian(tiny_config, random_model, wide, distinct_type):
    config, xs = tiny_config(distinct_type), make_examples()
    narrow, model = (random_model(config, dtype=dtype) for dtype in ("float32", "float64"))
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), narrow.params)
    f = loss(model)
    dense = jacobian(f, params, xs)[:, 0]
    theta = ntk(f, params, xs)
    assert_close(theta, dense @ dense.T, 1e-10)
    assert theta.dtype == np.float64
    np.testing.assert_array_equal(theta, theta.T)
    rounded = ntk(loss(narrow), narrow.params, xs)
    assert rounded.dtype == np.float32
    # Keys of a delta rule are divided by their norm, which is small in some heads of so small a random model.
    assert_close(rounded, dense @ dense.T, 1e-4 if distinct_type == "qwen3_5_text" else 1e-5)


@pytest.mark.parametrize("model_type", ["llama", "bart"])
def test_padding_does_not_change_it(tiny_config, random_model, wide, model_type):
    model = random_model(tiny_config(model_type), dtype="float64")
    f, xs = loss(model), make_examples()
    filled = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    padded = {name: np.pad(rows, ((0, 0), (0, 3)), constant_values=filled[name]) for name, rows in xs.items()}
    assert_close(ntk(f, model.params, padded), ntk(f, model.params, xs), 1e-10)


@pytest.mark.parametrize("model_type", ["gpt2", pytest.param("t5", marks=pytest.mark.long)])
def test_outputs_and_pairs_of_sets(tiny_config, random_model, wide, model_type):
    model = random_model(tiny_config(model_type), dtype="float64")
    f, xs, ys = label_logits(model, [5, 9, 7]), make_examples(), make_examples(1, 3)
    one, other = jacobian(f, model.params, xs), jacobian(f, model.params, ys)
    full = np.einsum("nkp,mlp->nmkl", one, other)
    assert_close(ntk(f, model.params, xs, ys, output="full"), full, 1e-10)
    assert_close(ntk(f, model.params, xs, ys, output="diagonal"), np.einsum("nmkk->nmk", full), 1e-10)
    assert_close(ntk(f, model.params, xs, ys, output="trace"), np.einsum("nmkk->nm", full), 1e-10)


@pytest.mark.parametrize("output", [pytest.param("trace", marks=pytest.mark.long), "full"])
def test_parts_of_parameters_and_of_examples_do_not_change_it(tiny_config, random_model, wide, output):
    model = random_model(tiny_config("gpt2"), dtype="float64")
    f, xs, ys = label_logits(model, [5, 9]), make_examples(n=7), make_examples(1, 3)
    theta = ntk(f, model.params, xs, ys, output=output)
    with pytest.raises(InputError, match="these examples need") as refused:
        ntk(f, model.params, xs, ys, output=output, memory_limit=1)
    least = int(re.search("need ([0-9,]+)", str(refused.value))[1].replace(",", ""))
    calls = []
    parts = ntk(f, model.params, xs, ys, output=output, memory_limit=least, progress=lambda *done: calls.append(done))
    assert len(calls) > 20  # one example at a time, and more than one part
    assert calls == [(i, len(calls)) for i in range(1, len(calls) + 1)]
    assert_close(parts, theta, 1e-12)


def test_parts_of_parameters_sum_to_it(tiny_config, random_model, wide):
    model = random_model(tiny_config("gpt2"), dtype="float64")
    f, xs = loss(model), make_examples(n=5)
    for limit in (None, 450_000):
        parts = ntk(f, model.params, xs, by_parameter=True, memory_limit=limit)
        assert parts["layers/blocks/mlp/up/kernel"].shape == (2, 5, 5)
        total = sum(part.sum(axis=0) if part.ndim == 3 else part for part in parts.values())
        assert_close(total, ntk(f, model.params, xs), 1e-12)


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    ("model_type", "axes", "limit"),
    [
        ("llama", "data=2,fsdp=2,tensor=2", None),
        ("llama", "tensor=4", None),  # where the model itself says where activations lie
        pytest.param("gpt2", "data=2,fsdp=4", 216_000, marks=pytest.mark.long),
    ],
)
def test_devices_that_share_the_work_do_not_change_it(tiny_config, random_model, model_type, axes, limit):
    mesh = lensjax.models.make_mesh(axes, jax.devices()[: 4 if axes == "tensor=4" else 8])
    one, eight = (random_model(tiny_config(model_type), mesh=where) for where in (None, mesh))
    xs, ys = make_examples(n=29), None if limit is None else make_examples(1, 3)
    shared = ntk(loss(eight), eight.params, xs, ys, memory_limit=limit)
    assert_close(shared, ntk(loss(one), one.params, xs, ys), 1e-5)


def test_rounded_factors_and_models_of_half_precision_are_near(tiny_config, random_model):
    model = random_model(tiny_config("llama"))
    f, xs = loss(model), make_examples(n=6)
    exact, rounded = ntk(f, model.params, xs), ntk(f, model.params, xs, factors="bfloat16")
    assert 0 < np.abs(rounded - exact).max() < 2e-2 * exact.max()
    half = random_model(tiny_config("llama"), dtype="bfloat16")
    computed = ntk(loss(half), half.params, xs)
    assert computed.dtype == np.float32
    assert np.abs(computed - exact).max() < 0.15 * exact.max()  # what the model computes is rounded


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 0.7, 1.5])
def test_the_memory_that_a_message_asks_for_suffices(wide, share):
    """Whichever parts it is for: of a stack, parameters together or one by one."""
    random = np.random.default_rng(0)
    shapes = {"deep": (2, 4, 4), "shift": (2, 4), "out": (4, 4), "bias": (5,)}
    params = {name: jnp.asarray(random.normal(size=shape)) for name, shape in shapes.items()}
    xs = random.normal(size=(24, 3, 4))

    def f(p, x):
        h, _ = jax.lax.scan(lambda h, own: (jnp.tanh(h @ own[0] + own[1]), None), x, (p["deep"], p["shift"]))
        return (h @ p["out"]).sum() * jnp.square(p["bias"]).sum()

    with pytest.raises(InputError, match="these examples need") as refused:
        ntk(f, params, xs, memory_limit=1)
    least = int(re.search("need ([0-9,]+)", str(refused.value))[1].replace(",", ""))
    theta = ntk(f, params, xs, memory_limit=int(least * (1 + share)))
    np.testing.assert_allclose(theta, ntk(f, params, xs), rtol=1e-10)


def test_it_is_positive(tiny_config, random_model):
    model = random_model(tiny_config("llama"))
    theta = ntk(loss(model), model.params, make_examples(n=12))
    assert np.linalg.eigvalsh(theta.astype(np.float64)).min() > -1e-5 * theta.max()


def test_products_with_vectors(tiny_config, random_model, wide):
    model = random_model(tiny_config("gpt2"), dtype="float64")
    f, xs = label_logits(model, [5, 9]), make_examples()
    full = ntk(f, model.params, xs, output="full")
    v = np.random.default_rng(0).normal(size=(N, 2))
    for batch_size in (None, 3):
        assert_close(ntk_vp(f, model.params, xs, batch_size)(v), np.einsum("nmkl,ml->nk", full, v), 1e-10)


def test_products_and_bytes_are_counted(tiny_config, random_model):
    model = random_model(tiny_config("gpt2"))
    f, xs = loss(model), make_examples(n=6)
    one, two = (ntk_flops(f, model.params, make_examples(n=n)) for n in (6, 12))
    assert 1.9 * one < two < 4.1 * one  # between gradients, linear in N, and products of them
    gradients = 6 * matmul_flops(jax.grad(f), model.params, {name: rows[0] for name, rows in xs.items()})
    assert 0.5 * gradients < one < 3 * gradients
    assert ntk_flops(f, model.params, xs, memory_limit=300_000) > one  # values are computed again for every part


def test_any_function_of_any_pytree(wide):
    random = np.random.default_rng(0)
    params = [jnp.asarray(random.normal(size=(5, 4))), {"b": (jnp.asarray(random.normal(size=4)),), "s": jnp.ones(())}]

    def f(params, x):
        hidden = jnp.tanh(x @ params[0] + params[1]["b"][0])
        return jnp.sin(hidden @ params[0].T) * params[1]["s"] + params[0].sum()  # not only multiplied by

    xs = random.normal(size=(6, 5))
    dense = jacobian(f, params, xs)
    assert_close(ntk(f, params, xs, output="full"), np.einsum("nkp,mlp->nmkl", dense, dense), 1e-12)


def test_adapters_have_a_kernel_of_their_own(tiny_config, random_model, wide):
    model = add_lora(random_model(tiny_config("llama"), dtype="float64"), rank=2)
    trained, frozen = split_trainable(model.params)
    trained = jax.tree.map(lambda leaf: leaf + 0.1, trained)
    xs = make_examples()

    def f(adapters, example):
        return model.loss(join(adapters, frozen), example)

    dense = jacobian(f, trained, xs)[:, 0]
    assert_close(ntk(f, trained, xs), dense @ dense.T, 1e-10)


@pytest.mark.long
def test_sketches_estimate_the_fisher_weighted_kernel(tiny_config, random_model, wide):
    model = random_model(tiny_config("gpt2"), dtype="float64")
    xs = {key: rows[:, :3] for key, rows in make_examples(n=2).items()}
    dense = jacobian(lambda p, x: model.apply(p, x)[1], model.params, xs)  # one target token, predicted at 1
    roots = []
    for i in range(2):
        p = np.asarray(jax.nn.softmax(model.apply(model.params, {k: v[i] for k, v in xs.items()})[1]))
        roots.append(np.diag(np.sqrt(p)) - np.outer(p, np.sqrt(p)))
    weighted = [root.T @ jac for root, jac in zip(roots, dense, strict=True)]
    truth = np.array([[np.sum(a * b) for b in weighted] for a in weighted])
    each = ntk(fisher_sketch(model, 400), model.params, xs, output="diagonal")
    error = each.std(axis=-1, ddof=1) / np.sqrt(400)
    assert np.all(np.abs(each.mean(axis=-1) - truth) < 4 * error)
    assert np.all(error < 0.15 * truth.max())


def test_log_probabilities_sum_to_the_loss(tiny_config, random_model):
    model = random_model(tiny_config("gpt2"))
    example = {key: rows[1] for key, rows in make_examples().items()}
    each = target_logprob(model)(model.params, example)
    assert each.shape == (TIME,)
    assert float(-each.sum() / 3) == pytest.approx(float(model.loss(model.params, example)), rel=1e-5)


def test_bad_input_is_named(tiny_config):
    params, xs = {"w": jnp.ones(3)}, np.ones((4, 3))
    with pytest.raises(InputError, match="Parameter w holds int32; curvature needs floating-point parameters"):
        ntk(lambda p, x: (p["w"] * x).sum(), {"w": jnp.arange(3)}, xs)
    with pytest.raises(InputError, match="not finite for example 2"):
        ntk(lambda p, x: (p["w"] * x).sum(), params, np.where(np.arange(4)[:, None] == 2, np.nan, xs))
    with pytest.raises(InputError, match="xs and ys hold examples of different shapes"):
        ntk(lambda p, x: (p["w"] * x).sum(), params, xs, np.ones((4, 2)))
    with pytest.raises(InputError, match="leading axis of examples"):
        ntk(lambda p, x: (p["w"] * x["a"]).sum(), params, {"a": np.ones((4, 3)), "b": np.ones(3)})
    with pytest.raises(InputError, match=r"memory_limit is 10 bytes; these examples need \d+ at least"):
        ntk(lambda p, x: jnp.dot(p["w"], x), params, xs, memory_limit=10)
