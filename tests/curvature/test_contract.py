"""Both ways to contract factors of gradients, for every kind of use, beside the gradients themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.curvature.ntk import contract as contracting
from lensjax.curvature.ntk import gram as by_rows
from lensjax.curvature.ntk.contract import contract
from lensjax.curvature.ntk.costs import Sides, Ways, Work, ways
from lensjax.curvature.ntk.factor import Factor

FIRST, SECOND, OUTPUTS = 37, 11, 3  # no multiples of tiles
QUICK = {"xla_backend_optimization_level": 0}


def factors(n, seed, kinds):
    """Products with outputs on the right, and on the left, and lookups, some of whose rows are void."""
    random = np.random.default_rng(seed)

    def numbers(*shape):
        return jnp.asarray(random.normal(size=shape))

    made = {
        "right": Factor(numbers(n, 4, FIRST), numbers(n, OUTPUTS, 4, SECOND)),
        "left": Factor(numbers(n, OUTPUTS, 5, FIRST), numbers(n, 5, SECOND)),
        "rows": Factor(jnp.asarray(random.integers(-1, FIRST, (n, 7))), numbers(n, OUTPUTS, 7, SECOND)),
    }
    return [made[kind] for kind in kinds]


def gradients(some):
    total = np.zeros((some[0].examples, OUTPUTS, FIRST, SECOND))
    for factor in some:
        left, right = (np.asarray(x) for x in (factor.left, factor.right))
        if factor.looks_up:
            left = (left[..., None] == np.arange(FIRST)).astype(float)
        left, right = (x if x.ndim == 4 else x[:, None] for x in (left, right))
        total += np.einsum("nkrf,nlrs->nklfs", left, right).reshape(total.shape)
    return total


@pytest.mark.parametrize("chosen", ["form", "gram"])
@pytest.mark.parametrize("output", ["trace", "diagonal", "full"])
def test_both_ways_have_the_products_of_gradients(monkeypatch, chosen, output):
    work = {"form": Ways(Work(0, 0), Work(1, 1)), "gram": Ways(Work(1, 1), Work(0, 0))}[chosen]
    assert work.chosen == chosen
    monkeypatch.setattr(contracting, "ways", lambda *args, **kwargs: work)
    monkeypatch.setattr(contracting, "PANEL", 3)
    monkeypatch.setattr(by_rows, "ROWS", 12)
    spec = {"trace": "nkfs,mkfs->nm", "diagonal": "nkfs,mkfs->nmk", "full": "nkfs,mlfs->nmkl"}[output]
    with jax.enable_x64(True):
        for kinds in (["right", "left", "rows"], ["rows", "rows"]) if output == "trace" else (["left", "rows"],):
            a, b = factors(7, 0, kinds), factors(5, 1, kinds)
            one, other = gradients(a), gradients(b)
            for right in (None, b):

                def compute(a, b):
                    return contract(a, a if b is None else b, FIRST, output, 2000)

                found = jax.jit(compute, compiler_options=QUICK)(a, right)
                expected = np.einsum(spec, one, one if right is None else other)
                np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


def test_the_way_is_chosen_by_operations():
    dense, head, rows = (Sides(16, kind == "rows", kind == "head") for kind in ("dense", "head", "rows"))
    one = Sides(1, looks_up=False, outputs_left=False)
    mlp = ways([one], (16, 0), (784, 1024), 10, "trace")
    assert mlp.chosen == "gram"
    assert mlp.gram.flops < 2e-3 * mlp.form.flops
    tied = ways([head, rows], (64, 0), (50257, 768), 1, "trace")
    assert tied.chosen == "gram"
    assert 3.9 * tied.gram.flops < tied.form.flops
    assert ways([dense], (64, 0), (256, 1024), 1, "trace").chosen == "gram"  # measured: half of the time
    assert ways([dense], (512, 0), (256, 1024), 1, "trace").chosen == "form"
    assert ways([Sides(64, False, False)], (64, 0), (256, 1024), 1, "trace").chosen == "form"
    half, whole = ways([dense], (64, 0), (256, 256), 1, "trace"), ways([dense], (64, 64), (256, 256), 1, "trace")
    assert half.gram.flops < whole.gram.flops
    stacked = ways([dense], (64, 0), (256, 256), 1, "trace", layers=3)
    assert stacked == Ways(
        Work(3 * half.form.flops, 3 * half.form.moved), Work(3 * half.gram.flops, 3 * half.gram.moved)
    )
