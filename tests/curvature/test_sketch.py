"""Random features of gradients, beside the kernels that they estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from transformers import GPT2Config

from lensjax.core.errors import InputError
from lensjax.curvature.ntk import ntk, ntk_sketch, sketch_plan
from lensjax.measure.functionals.loss import loss
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options

N, VOCABULARY, WIDTH = 70, 300, 6  # more than a batch of 64; more words than features at a time


@pytest.fixture(scope="module")
def problem():
    """A tied table, weights that a scan slices, and a parameter that nothing multiplies; two outputs."""
    random = np.random.default_rng(0)
    params = {
        "e": jnp.asarray(random.normal(size=(VOCABULARY, WIDTH)) / 2, jnp.float32),
        "w": jnp.asarray(random.normal(size=(3, WIDTH, WIDTH)) / 2, jnp.float32),
        "b": jnp.asarray(random.normal(size=WIDTH), jnp.float32),
    }

    def f(params, ids):
        hidden, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w) + h, None), params["e"][ids], params["w"])
        return ((hidden + params["b"]) @ params["e"].T).mean(axis=0)[jnp.array([3, 290])]

    return f, params, random.integers(0, VOCABULARY, (N, 4))


def test_errors_are_as_large_as_they_say_and_the_mean_is_the_kernel(problem):
    f, params, xs = problem
    theta, sketch = ntk(f, params, xs), ntk_sketch(f, params, xs, 3000)  # no multiple of what is made at a time
    assert sketch.features.shape == (N, 2, 3000)
    assert sketch.features.nbytes == sketch_plan(f, params, xs, 3000).host_bytes
    found = sketch.kernel()
    scores = ((found.value - theta) / found.standard_error)[np.triu_indices(N)]
    assert abs(scores.mean()) < 1  # entries share features
    assert 0.7 < np.sqrt(np.mean(scores**2)) < 1.4
    scale = np.sqrt(np.outer(np.diag(theta), np.diag(theta)))
    assert np.median(found.standard_error / scale) < 3 / np.sqrt(3000)
    trace = sketch.trace()
    assert abs(trace.value - np.trace(theta)) < 4 * trace.standard_error
    assert trace.standard_error < 0.1 * np.trace(theta)


def test_sketches_of_other_examples_can_be_multiplied(problem):
    f, params, xs = problem
    one, other, third = (ntk_sketch(f, params, some, 256, seed=s) for some, s in ((xs, 0), (xs[:5], 0), (xs[:5], 1)))
    np.testing.assert_allclose(other.features, one.features[:5], rtol=1e-4, atol=1e-5)
    assert one.kernel(other).value.shape == (N, 5)
    with pytest.raises(InputError, match="other projections; make both with one seed and dimension"):
        one.kernel(third)
    with pytest.raises(InputError, match="The dimension is 1; give 2 or more"):
        ntk_sketch(f, params, xs, 1)


@pytest.mark.eight_devices
def test_devices_that_share_the_work_do_not_change_it(problem):
    f, params, xs = problem
    everywhere = NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec())
    shared = ntk_sketch(f, jax.device_put(params, everywhere), xs[:13], 64)
    np.testing.assert_allclose(shared.features, ntk_sketch(f, params, xs[:13], 64).features, rtol=1e-4, atol=1e-5)


def test_twenty_thousand_examples_of_gpt2_fit_into_the_memory_that_is_stated():
    model = abstract_model(GPT2Config(bos_token_id=0, eos_token_id=0), make_options())
    xs = {"input_ids": np.zeros((20_000, 128), np.int32)}
    limit = 8_000_000_000
    plan = sketch_plan(loss(model), model.params, xs, 4096, memory_limit=limit)
    assert plan.device_bytes <= limit
    assert plan.host_bytes == 20_000 * 4096 * 4
    assert plan.batch > 1
    gradients = 20_000 * 6 * 128 * 124_000_000
    assert gradients < plan.flops < 4 * gradients
    with pytest.raises(InputError, match=r"memory_limit is 1,000,000 bytes; these examples need [0-9,]+ at least"):
        sketch_plan(loss(model), model.params, xs, 4096, memory_limit=1_000_000)
