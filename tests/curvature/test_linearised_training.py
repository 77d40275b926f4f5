"""What the kernel predicts of training, against training."""

import jax
import jax.numpy as jnp
import numpy as np

import lensjax.models
from lensjax.curvature.dynamics import residual_loss
from lensjax.curvature.ntk.ntk import ntk
from lensjax.measure.functionals.label_logits import label_logits

EXAMPLES, TIME, LABELS, STEPS = 8, 8, [3, 5], 200


def test_residuals_are_those_of_gradient_descent_of_a_wide_model(tiny_config):
    config = tiny_config("gpt2", hidden_size=256, num_hidden_layers=1)
    model = lensjax.models.from_config(config)
    random = np.random.default_rng(0)
    ids = random.integers(3, 96, (EXAMPLES, TIME))
    xs = {"input_ids": ids, "labels": np.where(np.arange(TIME) == TIME - 1, ids, -100)}
    f = label_logits(model, LABELS)
    size = EXAMPLES * len(LABELS)
    theta = ntk(f, model.params, xs, output="full").transpose(0, 2, 1, 3).reshape(size, size)
    y = np.eye(2)[random.integers(0, 2, EXAMPLES)].ravel()

    def outputs(params):
        return jax.vmap(f, in_axes=(None, 0))(params, xs).ravel()

    @jax.jit
    def step(params, _):
        values, gradient = jax.value_and_grad(lambda p: jnp.mean((outputs(p) - y) ** 2))(params)
        return jax.tree.map(lambda w, g: w - eta * g / 2, params, gradient), values

    eta = 0.005 * size / np.linalg.eigvalsh(theta)[-1]
    _, real = jax.lax.scan(step, model.params, length=STEPS + 1)
    predicted = residual_loss(theta, outputs(model.params), y, np.arange(STEPS + 1.0), eta)
    assert predicted[-1] < 0.6 * predicted[0]
    np.testing.assert_allclose(real, predicted, rtol=0.01)
