"""Kernels that check themselves: wrong ones are found, by the name of the parameter, and mended."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curvature.jaxpr.linear_uses import _Prober
from lensjax.curvature.kfac import kfac
from lensjax.curvature.ntk import ntk_sketch
from lensjax.curvature.ntk.ntk import ntk
from lensjax.curvature.ntk.plan import prepare
from lensjax.curvature.ntk.proof import _NORMS, WrongKernelError, _dots

RANDOM = np.random.default_rng(0)
PARAMS = {"layers": 0.5 * RANDOM.normal(size=(3, 5, 5)), "head": RANDOM.normal(size=(5, 2)), "bias": np.zeros(2)}
PARAMS = {name: leaf.astype(np.float32) for name, leaf in PARAMS.items()}
XS = RANDOM.normal(size=(6, 4, 5)).astype(np.float32)


def make():
    """A function that nothing is known of yet."""

    def f(p, x):
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["layers"])
        return h.mean(0) @ p["head"] + p["bias"]

    return f


def dense(f, ys=None):
    one, other = (jax.vmap(jax.jacrev(f), in_axes=(None, 0))(PARAMS, x) for x in (XS, XS if ys is None else ys))
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return sum(np.einsum("nkp,mlp->nmkl", a.reshape(*a.shape[:2], -1), b.reshape(*b.shape[:2], -1)) for a, b in pairs)


@pytest.fixture
def wrong_rule(monkeypatch):
    """Factors of products within loops are 1 % too large."""
    right = _Prober.rules["dot_general"]

    def rule(self, equation, inputs, key):
        outputs = right(self, equation, inputs, key)
        if len(key) > 1:
            self.captured[key] = 1.01 * self.captured[key]
        return outputs

    monkeypatch.setitem(_Prober.rules, "dot_general", rule)


@pytest.mark.parametrize("output", ["trace", "diagonal", "full"])
def test_the_kernel_says_what_was_verified(output):
    f = make()
    theta = ntk(f, PARAMS, XS, XS[:3], output=output)
    said = theta.verified
    assert len(said.rows) == len(said.columns) == 1
    assert said.entries == (5 if output == "trace" else 10)  # three layers, two parameters; an output, or two
    assert 0 < said.largest < 0.5
    assert said.seconds > 0
    assert str(said).startswith(f"{said.entries} entries of examples {said.rows[0]} with {said.columns[0]} of ys agree")
    parts = ntk(f, PARAMS, XS, output=output, by_parameter=True)
    assert len(parts["layers"].verified.rows) == 2
    assert parts["layers"].verified.entries == (20 if output == "trace" else 40)
    assert ntk(f, PARAMS, XS, output=output, verify=False).verified is None


@pytest.mark.usefixtures("wrong_rule")
@pytest.mark.parametrize("output", ["trace", "full"])
def test_a_wrong_kernel_is_refused_by_name_or_mended(output):
    f = make()
    with pytest.raises(WrongKernelError, match=r"part of layers, layer \d is .* on_mismatch='dense'"):
        ntk(f, PARAMS, XS, output=output)
    mended = ntk(f, PARAMS, XS, output=output, on_mismatch="dense")
    assert mended.verified.dense == ("layers",)
    assert str(mended.verified).endswith("by plain gradients alone: layers")
    expected = dense(f) if output == "full" else np.einsum("nmkk->nm", dense(f))
    np.testing.assert_allclose(mended, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(ntk(f, PARAMS, XS, output=output, verify=False) - expected).max() > 1e-3  # nobody looked


def test_small_kernels_are_compared_as_often_as_takes_little_time():
    f, theta, since = make(), None, []
    for _ in range(40):
        theta = ntk(f, PARAMS, XS)
        since.append(theta.verified.since)
    assert since[:3] == [0, 1, 2]
    checked = [i for i, kernels in enumerate(since) if not kernels]
    gaps = np.diff(checked)
    assert len(checked) > 1
    assert len(set(gaps)) == 1
    assert str(ntk(f, PARAMS, XS).verified).startswith("no entries of this kernel, but of one ")
    assert ntk(f, PARAMS, XS, verify="always").verified.entries
    assert ntk(f, PARAMS, XS[:5]).verified.entries  # of another size
    job = prepare(f, PARAMS, XS, None, "exact", None)
    assert job.share(job.sample("trace", 0)) == pytest.approx(0.03 * gaps[0], abs=0.03)
    many = prepare(f, PARAMS, np.repeat(XS, 100, axis=0), None, "exact", None)
    assert many.share(many.sample("trace", 0)) < 0.03


def test_after_a_wrong_kernel_the_next_one_is_compared(wrong_rule, monkeypatch):
    f = make()
    with pytest.raises(WrongKernelError):
        ntk(f, PARAMS, XS)
    with pytest.raises(WrongKernelError):
        ntk(f, PARAMS, XS)


def test_numbers_that_are_none_are_wrong(monkeypatch):
    module = sys.modules["lensjax.curvature.ntk.ntk"]
    monkeypatch.setattr(module, "_contract", lambda *args: np.full((1, 6, 6), np.nan))
    with pytest.raises(WrongKernelError, match="nan"):
        ntk(make(), PARAMS | {"layers": PARAMS["layers"][:1]}, XS)


def test_what_to_do_has_two_ways():
    with pytest.raises(InputError, match="'raise' or 'dense'"):
        ntk(make(), PARAMS, XS, on_mismatch="ignore")


def test_results_are_arrays_to_all():
    theta = ntk(make(), PARAMS, XS)
    assert jnp.asarray(theta).shape == jax.jit(lambda x: x + 1)(theta).shape == (6, 6)
    assert theta[:2].verified is None


SAMPLED = {
    "features": lambda f, **how: np.square(ntk_sketch(f, PARAMS, XS, 512, **how).features).sum((1, 2)),
    "blocks": lambda f, **how: kfac(f, PARAMS, XS, **how).blocks["layers"].eigenvalues.sum((1, 2)),
}


@pytest.mark.usefixtures("wrong_rule")
@pytest.mark.parametrize("kind", SAMPLED)
def test_what_is_made_of_wrong_factors_is_refused_or_mended(kind, monkeypatch):
    measured, f = SAMPLED[kind], make()
    with pytest.raises(WrongKernelError, match=r"part of layers, layer \d is .* on_mismatch='dense'"):
        measured(f)
    mended, wrong = measured(f, on_mismatch="dense"), measured(f, verify=False)
    monkeypatch.undo()
    right = measured(make())
    assert np.abs(wrong / right - 1).max() > 1e-3  # nobody looked
    slack = 1e-4 if kind == "blocks" else 0.5  # traces, or projections that differ
    np.testing.assert_allclose(mended, right, rtol=slack)


def test_factors_are_compared_once_for_each_function():
    f = make()
    one, other = ntk_sketch(f, PARAMS, XS, 64), kfac(f, PARAMS, XS)
    assert "agree with plain gradients" in str(one.verified)
    assert one.verified is other.verified


def test_products_of_large_tables_are_summed_to_rounding():
    """As of embeddings, a few of whose rows have nearly all of the gradient."""
    a = np.full((2, 1, 2**22), 1e-2, np.float32)
    a[..., :64] = 300
    exact = np.square(a[0], dtype=np.float64).sum()
    np.testing.assert_allclose(jax.jit(_dots)(a, a), exact, rtol=2e-6)  # one sum of all is off by 1.6e-5


@pytest.mark.parametrize("size", [0, 1, 7, 4096, 8197])
def test_products_of_gradients_of_any_size_are_whole(size):
    a, b = np.random.default_rng(size).normal(size=(2, 3, 2, size)).astype(np.float32)
    np.testing.assert_allclose(_dots(a, b), np.einsum("slp,tlp->lst", a, b), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(_dots(a, a, _NORMS), np.einsum("slp,slp->ls", a, a), rtol=1e-5)
