"""Kernels as operators: in any type, of functions of several outputs, and within the memory that is stated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import GPT2Config

from lensjax.core.errors import InputError
from lensjax.curvature import kfac as kfac_module
from lensjax.curvature import lanczos as lanczos_module
from lensjax.curvature.kfac import kfac, kfac_plan
from lensjax.curvature.low_rank import lanczos, lanczos_plan
from lensjax.curvature.ntk import ntk_vp, products_plan
from lensjax.curvature.ntk.plan import filler
from lensjax.curvature.ntk.products import _by_batches, _rows, _values_of
from lensjax.measure.functionals.loss import loss
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options

RANDOM = np.random.default_rng(0)
W, XS = RANDOM.normal(size=(6, 3)).astype(np.float32), RANDOM.normal(size=(5, 6)).astype(np.float32)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_several_outputs_count_as_one_vector(batch_size):
    def several(p, x):
        return {"a": jnp.tanh(x @ p)[:, None], "b": jnp.sin(x @ p).sum()}

    def one(p, x):
        return jnp.concatenate([jnp.tanh(x @ p), jnp.sin(x @ p).sum()[None]])

    v = RANDOM.normal(size=(5, 4)).astype(np.float32)
    found, expected = (ntk_vp(f, W, XS, batch_size)(v) for f in (several, one))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_many_batches_are_summed_in_float32():
    ones = np.ones((2000, 2))
    xs, w = jnp.asarray(ones, jnp.bfloat16), jnp.ones(2, jnp.bfloat16)
    product = ntk_vp(lambda p, x: x @ p, w, xs, 4)(jnp.ones(2000, jnp.bfloat16))
    np.testing.assert_allclose(np.asarray(product, np.float32), 4000, rtol=0.01)


def test_batches_are_as_large_as_the_memory_allows():
    f = lambda p, x: jnp.tanh(x @ p)  # noqa: E731
    whole = products_plan(f, W, XS)
    assert (whole.batch, products_plan(f, W, XS, 2).batch) == (5, 2)
    with pytest.raises(InputError, match="these examples need"):
        ntk_vp(f, W, XS, memory_limit=100)
    small = products_plan(f, W, XS, memory_limit=whole.device_bytes)
    assert small.device_bytes <= whole.device_bytes
    assert 1 <= products_plan(f, W, XS, memory_limit=whole.device_bytes - 1).batch < 5


@pytest.mark.parametrize("what", ["product", "kfac"])
def test_twenty_thousand_examples_of_gpt2_fit_into_the_memory_that_is_stated(what):
    model = abstract_model(GPT2Config(bos_token_id=0, eos_token_id=0), make_options())
    xs = {"input_ids": np.zeros((20_000, 128), np.int32)}
    make, limit = {"product": (products_plan, 8_000_000_000), "kfac": (kfac_plan, 24_000_000_000)}[what]
    plan = make(loss(model), model.params, xs, memory_limit=limit)
    assert plan.batch > 1
    assert plan.device_bytes <= limit
    gradients = 20_000 * 6 * 128 * 124_000_000
    assert gradients < plan.flops < 12 * gradients
    with pytest.raises(InputError, match=r"memory_limit is 1,000,000 bytes; these examples need [0-9,]+ at least"):
        make(loss(model), model.params, xs, memory_limit=1_000_000)


def test_a_compiled_product_takes_no_more_than_is_stated(tiny_config, random_model):
    config = tiny_config("gpt2", vocab_size=700, hidden_size=64, n_positions=128)
    model = random_model(config)
    xs = {"input_ids": np.zeros((32, 64), np.int32)}
    plan = products_plan(loss(model), model.params, xs, 4)
    rows = _rows(32, 4)
    stacked = {name: x[rows] for name, x in xs.items()}
    step = jax.jit(lambda *args: _by_batches(_values_of(loss(model)), 32, *args))
    taken = step.lower(model.params, stacked, jnp.zeros(32)).compile().memory_analysis().temp_size_in_bytes
    assert 0.2 * plan.device_bytes < taken < plan.device_bytes


class Compiled:
    """A jitted function whose calls note the memory of what was compiled for them."""

    def __init__(self, function, taken):
        self.function, self.taken = function, taken

    def __call__(self, *args):
        memory = self.function.lower(*args).compile().memory_analysis()
        self.taken.append(memory.temp_size_in_bytes + memory.output_size_in_bytes)
        return self.function(*args)


def test_compiled_passes_of_kfac_take_no_more_than_is_stated(tiny_config, random_model, monkeypatch):
    """What one call takes, beside what is held: moments, eigenvectors, and eigenvalues of all parameters."""
    model = random_model(tiny_config("gpt2", vocab_size=700, hidden_size=64, n_positions=128))
    xs, taken, f = {"input_ids": np.zeros((8, 64), np.int32)}, [], loss(model)
    plan = kfac_plan(f, model.params, xs)
    for name in ("_moments", "_along"):
        monkeypatch.setattr(kfac_module, name, Compiled(getattr(kfac_module, name), taken))
    made = Compiled(filler(), taken)
    monkeypatch.setattr(kfac_module, "filler", lambda: made)
    blocks = kfac(f, model.params, xs, verify=False).blocks
    held = sum(x.nbytes for x in jax.tree.leaves(blocks))
    assert 0.5 * plan.host_bytes < held <= plan.host_bytes
    assert 0.2 * plan.device_bytes < max(taken) + held < plan.device_bytes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_compiled_steps_of_lanczos_take_no_more_than_is_stated(dtype, monkeypatch):
    """Where the basis takes more than products."""
    with jax.enable_x64(True):
        xs, w, taken = RANDOM.normal(size=(4000, 6)).astype(dtype), W.astype(dtype), []
        for name in ("_put", "_orthogonalized", "_combined", "_combined_in_place"):
            monkeypatch.setattr(lanczos_module, name, Compiled(getattr(lanczos_module, name), taken))
        f = lambda p, x: jnp.tanh(x @ p)  # noqa: E731
        plan = lanczos_plan(f, w, xs, 6)
        basis = 12_000 * np.dtype(dtype).itemsize * 22
        found = lanczos(ntk_vp(f, w, xs), 6)
        assert found.vectors.nbytes == plan.host_bytes
        assert 0.2 * plan.device_bytes < basis + max(taken) < plan.device_bytes
