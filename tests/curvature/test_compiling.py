"""Kernels are exact as XLA compiles them by default, at sizes at which it chooses other code than for tiny ones."""

import subprocess
import sys

CODE = """
import jax, jax.numpy as jnp, numpy as np
from lensjax.curvature.ntk.ntk import ntk

random = np.random.default_rng(0)
shapes = {"w": (256, 256), "u": (256, 8)}
params = {name: jnp.asarray(random.normal(size=shape) / 16, jnp.float32) for name, shape in shapes.items()}

def f(params, x):
    hidden = x @ params["w"]
    centred = hidden - hidden.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) @ params["u"]).sum(0)

xs = jnp.asarray(random.normal(size=(8, 64, 256)), jnp.float32)
jacobian = jax.jit(jax.jacrev(f))
each = [[np.asarray(leaf, np.float64).reshape(8, -1) for leaf in jax.tree.leaves(jacobian(params, x))] for x in xs]
expected = sum(np.einsum("nkp,mkp->nm", *2 * [np.stack(leaf)]) for leaf in zip(*each))
print(np.abs(ntk(f, params, xs) - expected).max() / np.abs(expected).max())
"""


def test_a_norm_and_several_outputs():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env={"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5
