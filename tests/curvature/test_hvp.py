"""Products with Hessians, against dense ones in float64."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.curvature.hvp import (
    OutputLoss,
    empirical_fisher_vp_fn,
    ggn_vp_fn,
    hvp_fn,
    layer_forms,
    quadratic_form,
    softmax_hessian,
)
from lensjax.curvature.jaxpr.program import traced_program
from lensjax.curvature.kfac import kfac
from lensjax.curvature.ntk import ntk, ntk_sketch, ntk_vp
from lensjax.curvature.streaming import Batches, scanned_layers
from lensjax.measure.model_losses import target_tokens, token_cross_entropy
from lensjax.models.family import of_all_layers
from lensjax.models.lora import add_lora, join, split_trainable

N, TIME, WORDS = 3, 5, 16
_DEPTHS = ("encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers", "num_hidden_layers")
_WIDTHS = ("d_model", "hidden_size", "word_embed_proj_dim")
_HIDDEN = ("d_ff", "intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "n_inner")


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def small(tiny_config, random_model):
    """Makes a model of some hundred parameters."""

    def make(model_type, depth=1, **options):
        config = tiny_config(model_type)
        sizes = dict.fromkeys(_DEPTHS, depth) | dict.fromkeys(_WIDTHS, 8) | dict.fromkeys(_HIDDEN, 8)
        sizes |= {"vocab_size_per_layer_input": WORDS, "num_kv_shared_layers": 0}
        sizes |= {"vocab_size": WORDS, "head_dim": 2, "d_kv": 2, "max_position_embeddings": 8, "n_positions": 8}
        kinds = {} if getattr(config, "layer_types", None) is None else {"layer_types": config.layer_types[:depth]}
        changed = {name: size for name, size in sizes.items() if of_all_layers(config, name) is not None}
        if "partial_rotary_factor" in (getattr(config, "rope_parameters", None) or {}):
            changed["rope_parameters"] = config.rope_parameters | {
                "partial_rotary_factor": 1.0
            }  # heads are too narrow to rotate a share of their dimensions
        return random_model(tiny_config(model_type, **changed, **kinds), **options)

    return make


def make_batch(seed=0, n=N):
    random = np.random.default_rng(seed)
    ids = random.integers(3, WORDS, (n, TIME))
    labels = np.where(np.arange(TIME) >= 1, ids, -100)
    mask = np.ones((n, TIME), np.int64)
    mask[1, 4:], labels[1, 4:] = 0, -100  # padding
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def make_vector(params, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype), params)


def dense(loss, params, batch):
    """The Hessian [parameters, parameters]."""
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda x: loss(unravel(x), batch)))(flat))


def differences(loss, params, batch, v, step=1e-4):
    """H v by differences of gradients: d/dt of the gradient at params + t v, wrong by a term of the order of step⁶."""
    slope = jax.jit(jax.grad(loss))

    def at(length):
        return flat(slope(jax.tree.map(lambda w, x: w + length * x, params, v), batch))

    def across(length):
        return (at(length) - at(-length)) / (2 * step)

    return 1.5 * across(step) - 0.3 * across(2 * step) + across(3 * step) / 30


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0], np.float64)


def assert_close(found, expected, tolerance):
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("model_type", lensjax.models.supported())
def test_every_family_has_the_products_of_its_hessian(small, wide, model_type):
    model, batch = small(model_type, dtype="float64"), make_batch()
    v = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if "scalar" in jax.tree_util.keystr(path) else leaf,  # constants of Gemma 4
        make_vector(model.params),
    )
    product = hvp_fn(model.loss, model.params, batch, mode="direct")(v)  # which compiles less
    assert jax.tree.structure(product) == jax.tree.structure(model.params)
    known = differences(model.loss, model.params, batch, v)
    assert_close(flat(product), known, 1e-9)
    form = float(quadratic_form(model.loss, model.params, batch, v, verify=False))
    assert form == pytest.approx(flat(v) @ known, rel=1e-9)


def test_modes_agree(small, wide):
    model, batch = small("llama", dtype="float64"), make_batch()
    v = make_vector(model.params)
    linearized = hvp_fn(model.loss, model.params, batch)
    product = linearized(v)
    assert_close(flat(hvp_fn(model.loss, model.params, batch, mode="direct")(v)), flat(product), 1e-12)
    many = jax.vmap(linearized)(jax.tree.map(lambda x: jnp.stack([x, -2 * x]), v))
    assert_close(flat(many), flat(jax.tree.map(lambda x: jnp.stack([x, -2 * x]), product)), 1e-12)
    whole = flat(v) @ flat(product)
    assert float(quadratic_form(model.loss, model.params, batch, v)) == pytest.approx(whole, rel=1e-12)
    each = quadratic_form(by_example(model), model.params, batch, v, verify=False)
    assert_close(quadratic_form(by_example(model), model.params, batch, v, mode="reverse"), each, 1e-12)
    weights = np.array([4, 3, 4]) / 11  # target tokens
    assert float(each @ weights) == pytest.approx(whole, rel=1e-12)


def by_example(model):
    return lambda params, batch: model.loss(params, batch, "example")


@pytest.fixture
def regression(wide):
    """Softmax regression: its function of parameters and batch, parameters, batch, probabilities."""
    random = np.random.default_rng(0)
    batch = {"x": random.normal(size=(6, 4)), "y": random.integers(0, 3, 6)}
    params = {"w": jnp.asarray(random.normal(size=(4, 3)))}

    def logits(params, batch):
        return batch["x"] @ params["w"]

    return logits, params, batch, np.asarray(jax.nn.softmax(logits(params, batch)))


def cross_entropy(logits, batch):
    return -jax.nn.log_softmax(logits)[jnp.arange(len(batch["y"])), batch["y"]]


def test_softmax_regression_has_the_hessian_that_is_known(regression):
    logits, params, batch, p = regression
    x, v = batch["x"], make_vector(params)
    each = [np.kron(np.outer(row, row), np.diag(q) - np.outer(q, q)) for row, q in zip(x, p, strict=True)]
    known = np.mean(each, axis=0) @ flat(v)

    def losses(params, batch):
        return cross_entropy(logits(params, batch), batch)

    def loss(params, batch):
        return losses(params, batch).mean()

    written = OutputLoss(
        lambda z, batch: cross_entropy(z, batch).mean(), lambda z, _: softmax_hessian(z, jnp.full(len(z), 1 / len(z)))
    )
    for product in (
        hvp_fn(loss, params, batch),
        ggn_vp_fn(logits, written, params, batch),
        ggn_vp_fn(logits, written, params, batch, mode="direct"),
        ggn_vp_fn(logits, written.loss, params, batch),
    ):
        assert_close(flat(product(v)), known, 1e-13)
    forms = np.array([flat(v) @ h @ flat(v) for h in each])
    assert_close(quadratic_form(losses, params, batch, v), forms, 1e-13)
    gradients = [np.outer(row, q - np.eye(3)[y]).ravel() for row, q, y in zip(x, p, batch["y"], strict=True)]
    fisher = np.mean([np.outer(g, g) for g in gradients], axis=0)
    assert_close(flat(empirical_fisher_vp_fn(losses, params, batch)(v)), fisher @ flat(v), 1e-13)


def test_gauss_newton_of_a_model_is_that_of_its_dense_jacobian(small, wide):
    model, batch = small("gpt2", dtype="float64"), make_batch()
    v, output = make_vector(model.params), token_cross_entropy(model)
    vector, unravel = ravel_pytree(model.params)
    logits = model.apply(model.params, batch)
    assert float(output.loss(logits, batch)) == pytest.approx(float(model.loss(model.params, batch)), rel=1e-14)
    jacobian = np.asarray(jax.jit(jax.jacfwd(lambda x: model.apply(unravel(x), batch).ravel()))(vector))
    curve = np.asarray(jax.jit(jax.hessian(lambda z: output.loss(z.reshape(logits.shape), batch)))(logits.ravel()))
    known = jacobian.T @ (curve @ (jacobian @ flat(v)))
    assert_close(flat(ggn_vp_fn(model.apply, output, model.params, batch)(v)), known, 1e-9)


def test_blocks_are_those_of_the_dense_hessian_and_sum_to_the_whole(small, wide):
    model, batch = small("gpt2", depth=2, dtype="float64"), make_batch()
    up, down = (model.params["layers"]["blocks"]["mlp"][name]["kernel"] for name in ("up", "down"))
    params = {"up": up, "down": down, "embed": model.params["embed"]["embedding"]}

    def losses(params, batch):
        blocks = model.params["layers"]["blocks"]
        mlp = {name: layer | {"kernel": params[name]} for name, layer in blocks["mlp"].items()}
        changed = {"embed": {"embedding": params["embed"]}, "layers": {"blocks": blocks | {"mlp": mlp}}}
        return model.loss(model.params | changed, batch, "example")

    def loss(params, batch):
        return losses(params, batch) @ jnp.array([4, 3, 4]) / 11  # by target tokens

    v, hessian = make_vector(params), dense(loss, params, batch)
    assert scanned_layers(loss, params, batch) == (2, None, 2)  # down, embed, up
    vector, places = flat(v), {}
    for name, leaf in ravel_pytree(params)[1](jnp.arange(vector.size, dtype=float)).items():
        places[name] = np.asarray(leaf, int).reshape(1 if name == "embed" else 2, -1)

    def check(found, block, weights):
        for name, layers in places.items():
            rows = [(i, np.arange(vector.size) if block == "joint" else i) for i in layers]
            known = np.array([vector[i] @ hessian[np.ix_(i, others)] @ vector[others] for i, others in rows])
            whole = found[name] if weights is None else found[name] @ weights
            assert_close(whole, known if len(known) == 2 else known[0], 1e-9)

    tokens = np.array([4, 3, 4]) / 11
    joint, each = (layer_forms(f, params, batch, v, block="joint") for f in (loss, losses))
    check(joint, "joint", None)
    check(each, "joint", tokens)
    check(layer_forms(losses, params, batch, v, block="diagonal", verify=False), "diagonal", tokens)
    assert sum(float(x.sum()) for x in joint.values()) == pytest.approx(vector @ hessian @ vector, rel=1e-12)
    total = sum(x.reshape(-1, N).sum(axis=0) for x in each.values())
    assert_close(total, quadratic_form(losses, params, batch, v, verify=False), 1e-12)


@pytest.mark.parametrize("mode", [None, "linearized"])
def test_batches_have_the_product_of_all_their_tokens(small, wide, mode):
    model, batch = small("gpt2", dtype="float64"), make_batch(n=4)
    v = make_vector(model.params)
    parts = [jax.tree.map(lambda x, i=i: x[i], batch) for i in (slice(2), slice(2, 4))]
    data = Batches([*parts, jax.tree.map(lambda x: x[:0], batch)], target_tokens(model))
    whole = flat(hvp_fn(model.loss, model.params, batch, mode="direct")(v))
    assert_close(flat(hvp_fn(model.loss, model.params, data, mode=mode)(v)), whole, 1e-12)


def test_batches_have_the_forms_of_all_their_examples(regression):
    logits, params, batch, _ = regression
    parts = Batches([jax.tree.map(lambda x, i=i: x[i], batch) for i in (slice(2), slice(2, 5), slice(5, 6))])
    v = make_vector(params)

    def losses(params, batch):
        return cross_entropy(logits(params, batch), batch)

    def loss(params, batch):
        return losses(params, batch).mean()

    each = quadratic_form(losses, params, batch, v)
    assert_close(quadratic_form(losses, params, parts, v), each, 1e-13)
    assert float(quadratic_form(loss, params, parts, v)) == pytest.approx(float(each.mean()), rel=1e-13)
    for block in ("joint", "diagonal"):
        assert_close(layer_forms(losses, params, parts, v, block=block)["w"], each, 1e-13)
        found = layer_forms(loss, params, parts, v, block=block)["w"]
        assert float(found) == pytest.approx(float(each.mean()), rel=1e-13)


@pytest.mark.eight_devices
def test_devices_that_share_parameters_share_products(small, wide):
    mesh = lensjax.models.make_mesh("data=2,fsdp=2,tensor=2")
    one = small("llama", dtype="float64")
    eight, batch = small("llama", dtype="float64", mesh=mesh), make_batch(n=4)
    v = make_vector(one.params)
    shared = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), v, eight.params)
    product = hvp_fn(eight.loss, eight.params, batch)(shared)
    assert_close(flat(product), flat(hvp_fn(one.loss, one.params, batch)(v)), 1e-12)
    placed = jax.tree.map(lambda x, like: x.sharding.is_equivalent_to(like.sharding, x.ndim), product, eight.params)
    assert all(jax.tree.leaves(placed))
    assert any(len(x.sharding.device_set) == 8 and not x.is_fully_replicated for x in jax.tree.leaves(product))
    ggn = ggn_vp_fn(eight.apply, token_cross_entropy(eight), eight.params, batch)(shared)
    assert_close(flat(ggn), flat(ggn_vp_fn(one.apply, token_cross_entropy(one), one.params, batch)(v)), 1e-12)
    form = quadratic_form(by_example(eight), eight.params, batch, shared)
    assert_close(
        np.asarray(form), np.asarray(quadratic_form(by_example(one), one.params, batch, v, verify=False)), 1e-12
    )


def test_adapters_have_products_of_their_own(small, wide):
    model = add_lora(small("llama", dtype="float64"), rank=1)
    adapters, frozen = split_trainable(model.params)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)

    def loss(adapters, batch):
        return model.loss(join(adapters, frozen), batch)

    v, batch = make_vector(adapters), make_batch()
    assert_close(flat(hvp_fn(loss, adapters, batch, mode="direct")(v)), dense(loss, adapters, batch) @ flat(v), 1e-9)
    _, captured = traced_program(loss, adapters, batch)
    assert {leaf.shape for leaf in jax.tree.leaves(frozen)} <= {np.shape(x) for x in captured}  # not constants


def test_rematerialising_changes_nothing(small, wide):
    plain, batch = small("gpt2", dtype="float64"), make_batch()
    less = small("gpt2", dtype="float64", remat="full")
    v = make_vector(plain.params)
    expected = flat(hvp_fn(plain.loss, plain.params, batch, mode="direct")(v))
    assert_close(flat(hvp_fn(less.loss, plain.params, batch)(v)), expected, 1e-12)
    assert float(quadratic_form(less.loss, plain.params, batch, v, verify=False)) == pytest.approx(
        flat(v) @ expected, rel=1e-12
    )


def test_float32_is_near_float64(small):
    model, batch = small("gpt2"), make_batch()
    v = make_vector(model.params)
    product = hvp_fn(model.loss, model.params, batch, mode="direct")(v)
    assert {leaf.dtype for leaf in jax.tree.leaves(product)} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        exact = small("gpt2", dtype="float64")
        params, v = (jax.tree.map(lambda x: x.astype("float64"), tree) for tree in (model.params, v))
        assert_close(flat(product), flat(hvp_fn(exact.loss, params, batch, mode="direct")(v)), 1e-5)


def test_any_function_of_any_pytree_is_compiled_once(wide):
    random = np.random.default_rng(0)
    params = [jnp.asarray(random.normal(size=(5, 4))), {"b": (jnp.asarray(random.normal(size=4)),), "s": jnp.ones(())}]
    traces = []

    def loss(params, x):
        traces.append(1)
        hidden = jnp.tanh(x @ params[0] + params[1]["b"][0])
        return (jnp.sin(hidden @ params[0].T) * params[1]["s"]).sum() / len(x)

    xs, v = [random.normal(size=(3, 5)) for _ in range(4)], make_vector(params)
    whole = dense(loss, params, np.concatenate(xs)) @ flat(v)
    traces.clear()
    assert_close(flat(hvp_fn(loss, params, Batches(xs))(v)), whole, 1e-12)
    other = jax.tree.map(lambda x: x + 1, params)
    hvp_fn(loss, other, xs[0])(v)
    assert len(traces) == 1
    assert scanned_layers(loss, params, xs[0]) == (None, None, None)
    low = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    product = hvp_fn(loss, low, Batches(xs))(jax.tree.map(lambda x: x.astype("bfloat16"), v))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(product)} == {"bfloat16"}


@pytest.mark.parametrize(
    ("change", "x"),
    [
        (lambda: jax.default_matmul_precision("highest"), np.ones((3, 3), np.float32)),
        (lambda: jax.numpy_dtype_promotion("strict"), np.ones((3, 3), np.float32)),
        (lambda: jax.enable_x64(True), np.ones((3, 3), np.float32)),
        (nullcontext, np.ones((2, 3), np.float32)),
        (nullcontext, np.ones((3, 3), "bfloat16")),
        (nullcontext, {"x": np.ones((3, 3), np.float32)}),
    ],
)
def test_a_program_is_traced_again_where_it_would_be_another(change, x):
    precisions = []

    def loss(params, x):
        precisions.append(jax.config.jax_default_matmul_precision)
        return jnp.square(jax.tree.leaves(x)[0] @ params).sum()

    params = jnp.ones(3)
    first, _ = traced_program(loss, params, np.ones((3, 3), np.float32))
    assert traced_program(loss, 2 * params, np.zeros((3, 3), np.float32))[0] is first
    with change():
        other, _ = traced_program(loss, params, x)
        assert traced_program(loss, params, x)[0] is other
    assert other is not first
    assert len(precisions) == 2
    assert traced_program(loss, params, np.ones((3, 3), np.float32))[0] is first


NOISY = {
    "product": lambda f, losses: hvp_fn(losses, jnp.ones(3), ROWS)(jnp.ones(3)),
    "product, direct": lambda f, losses: hvp_fn(losses, jnp.ones(3), ROWS, mode="direct")(jnp.ones(3)),
    "Gauss-Newton": lambda f, losses: ggn_vp_fn(jax.vmap(f, (None, 0)), _squares, jnp.ones(3), ROWS)(jnp.ones(3)),
    "form": lambda f, losses: quadratic_form(losses, jnp.ones(3), ROWS, jnp.ones(3)),
    "forms": lambda f, losses: layer_forms(losses, {"w": jnp.ones(3)}, ROWS, {"w": jnp.ones(3)}, block="diagonal")["w"],
    "kernel": lambda f, losses: ntk(f, jnp.ones(3), ROWS),
    "operator": lambda f, losses: ntk_vp(f, jnp.ones(3), ROWS)(jnp.ones(2)),
    "features": lambda f, losses: ntk_sketch(f, jnp.ones(3), ROWS, 8).features,
    "blocks": lambda f, losses: kfac(f, jnp.ones(3), ROWS).operator()(jnp.ones(3)),
}
ROWS = np.arange(6.0, dtype=np.float32).reshape(2, 3) / 5


def _squares(z, _):
    return jnp.square(z).sum()


@pytest.mark.parametrize("what", NOISY)
def test_numbers_follow_the_settings_that_tracing_reads(what):
    """Of random numbers, and of the precision of products, here where the function itself reads it."""

    def make():
        def f(params, x):
            noise = jax.random.normal(jax.random.key(0), (3,))
            factor = {None: 1.0, "highest": 2.0}[jax.config.jax_default_matmul_precision]
            return jnp.tanh(factor * x @ (jax.tree.leaves(params)[0] + noise))

        return f, lambda params, xs: jax.vmap(f, (None, 0))(params, xs).sum()

    f, losses = make()
    settings = [nullcontext, lambda: jax.default_prng_impl("rbg"), lambda: jax.default_matmul_precision("highest")]
    found = []
    for setting in settings:
        with setting():
            found.append(np.asarray(NOISY[what](f, losses)))
            np.testing.assert_allclose(found[-1], NOISY[what](*make()), rtol=1e-6)  # of a function traced anew
    assert not any(np.allclose(found[0], other, rtol=1e-3) for other in found[1:])
    np.testing.assert_allclose(NOISY[what](f, losses), found[0], rtol=1e-6)


def test_a_program_of_weak_types_is_another():
    def f(params, x):
        return params * x

    weak, strong = (traced_program(f, jnp.ones(2, "bfloat16"), x)[0] for x in (2.0, jnp.asarray(2.0, "float32")))
    assert [program.jaxpr.outvars[0].aval.dtype.name for program in (weak, strong)] == ["bfloat16", "float32"]


def test_what_an_outer_trace_holds_does_not_outlive_it():
    held = {}

    def f(params, x):
        return held["scale"] * params @ x

    def outer(scale):
        held["scale"] = scale
        program, captured = traced_program(f, jnp.ones(3), jnp.ones(3))
        return program(captured, jnp.ones(3), jnp.ones(3))

    assert [float(jax.jit(lambda scale: outer(scale))(scale)) for scale in (1.0, 2.0)] == [3, 6]


def test_what_cannot_be_differentiated_says_what_can(wide):
    @jax.custom_vjp
    def square(x):
        return jnp.square(x)

    square.defvjp(lambda x: (square(x), x), lambda x, g: (2 * x * g,))
    params, x = {"w": jnp.arange(1.0, 4.0)}, np.ones((2, 3))
    v = make_vector(params)

    def losses(params, x):
        return (square(params["w"]) * x).sum(axis=1)

    def loss(params, x):
        return losses(params, x).mean()

    np.testing.assert_allclose(hvp_fn(loss, params, x)(v)["w"], 2 * v["w"], rtol=1e-14)
    with pytest.raises(InputError, match="custom_vjp, so no forward derivative is known; mode='reverse' can"):
        quadratic_form(loss, params, x, v, mode="forward")
    with pytest.raises(InputError, match="custom_vjp, so no forward derivative is known; hvp_fn can"):
        ggn_vp_fn(losses, lambda z, _: (z**2).sum(), params, x)(v)
    with pytest.raises(InputError, match="custom_vjp, so no forward derivative is known; hvp_fn can"):
        ggn_vp_fn(losses, lambda z, _: (z**2).sum(), params, x, mode="direct")(v)
    form = 2 * float((v["w"] ** 2).sum())
    np.testing.assert_allclose(quadratic_form(losses, params, x, v), [form, form], rtol=1e-14)
    for block in ("diagonal", "joint"):
        np.testing.assert_allclose(layer_forms(losses, params, x, v, block=block)["w"], [form, form], rtol=1e-14)

    def loop(params, x):
        return jax.lax.while_loop(lambda s: s[0] < x.sum(), lambda s: (s[0] + 1, s[1] * s[1]), (0, params["w"][0]))[1]

    with pytest.raises(InputError, match="loop that cannot be run backward; quadratic_form with mode='forward' can"):
        hvp_fn(loop, params, np.ones((1, 1)))
    assert float(quadratic_form(loop, params, np.ones((1, 1)), v)) == pytest.approx(2 * float(v["w"][0]) ** 2)


def test_bad_input_is_named():
    params, xs = {"w": jnp.ones(3), "b": {"c": jnp.ones(2)}}, np.ones((4, 3), np.float32)

    def losses(params, x):
        return (params["w"] ** 2 * x).sum(axis=1) + params["b"]["c"].sum()

    def loss(params, x):
        return losses(params, x).mean()

    hvp = hvp_fn(loss, params, xs)
    for v, message in (
        ({"w": params["w"]}, "vector has no leaf 'b/c'"),
        (params | {"d": jnp.ones(1)}, "vector has a leaf 'd' and the parameters have not"),
        (params | {"w": jnp.ones(4)}, r"Leaf 'w' of the vector is float32\(4,\) and the parameter float32\(3,\)"),
        (params | {"w": jnp.ones(3, "bfloat16")}, "Leaf 'w' of the vector is bfloat16"),
    ):
        for call in (hvp, lambda v: quadratic_form(loss, params, xs, v)):
            with pytest.raises(InputError, match=message):
                call(v)
    with pytest.raises(InputError, match="Parameter w holds int32; curvature needs floating-point parameters"):
        hvp_fn(loss, params | {"w": jnp.arange(3)}, xs)
    for empty in (xs[:0], Batches([]), Batches([xs[:0]])):
        with pytest.raises(InputError, match="The data hold no examples"):
            hvp_fn(loss, params, empty)
    with pytest.raises(InputError, match="can be read only once"):
        Batches(iter([xs]))
    with pytest.raises(InputError, match="leading axis of examples"):
        hvp_fn(loss, params, Batches([(xs, xs[:2])]))
    bad = Batches([xs, np.where(np.arange(4)[:, None] == 2, np.inf, xs).astype("float32")])
    with pytest.raises(InputError, match="The loss of batch 1 is not finite"):
        hvp_fn(loss, params, bad)(params)
    with pytest.raises(InputError, match="The loss of batch 1 is not finite"):
        hvp_fn(loss, params, bad, mode="linearized")
    with pytest.raises(InputError, match="The loss of batch 1, example 2 is not finite"):
        quadratic_form(losses, params, bad, params)
    with pytest.raises(InputError, match=r"The function gives shapes \(4,\); a scalar is needed"):
        hvp_fn(losses, params, xs)
    with pytest.raises(InputError, match=r"gives shapes \(\); one loss for each example is needed"):
        empirical_fisher_vp_fn(loss, params, xs)
    with pytest.raises(InputError, match=r"loss of outputs has shape \(4,\); it must be a scalar"):
        ggn_vp_fn(losses, lambda z, _: z, params, xs)
    with pytest.raises(InputError, match="gives whole numbers"):
        hvp_fn(lambda p, x: jnp.argmax(p["w"]), params, xs)
    with pytest.raises(InputError, match="mode is 'fast'; give 'linearized' or 'direct'"):
        hvp_fn(loss, params, xs, mode="fast")
    with pytest.raises(InputError, match="block is 'all'; give 'diagonal' or 'joint'"):
        layer_forms(loss, params, xs, params, block="all")
