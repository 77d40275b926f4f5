"""Products of rows with the matrix of their group, against products with all matrices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.core.flops import matmul_flops
from lensjax.models import grouped
from lensjax.models.grouped import grouped_dot, grouped_outer

ROWS, COUNT, INNER, OUTER = 37, 3, 5, 4  # blocks of 13 rows, which do not divide the groups


def make(seed: int = 0, rows: int = ROWS, count: int = COUNT) -> tuple[Any, ...]:
    random = np.random.default_rng(seed)
    groups = jnp.asarray(random.integers(0, count + 1, rows))  # some rows have none
    factors = (jnp.asarray(random.normal(size=shape)) for shape in ((rows, INNER), (count, INNER, OUTER)))
    return *factors, groups


def plain(rows: Any, matrices: Any, groups: Any) -> Any:
    chosen = jax.nn.one_hot(groups, len(matrices), dtype=rows.dtype)
    return jnp.einsum("ri,gio,rg->ro", rows, matrices, chosen)


def close(found: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, expected)


def energy(product: Any) -> Any:
    """A function of both factors whose derivatives of every order depend on both."""
    return lambda rows, matrices, groups: jnp.sin(
        product(jnp.tanh(product(rows, matrices, groups)) @ MIX, matrices, groups)
    ).sum()


MIX = np.random.default_rng(9).normal(size=(OUTER, INNER))


@pytest.mark.parametrize("count", [1, COUNT, 50])
def test_every_transformation_equals_that_of_the_plain_product(count: int) -> None:
    with jax.enable_x64(True):
        rows, matrices, groups = make(count=count)
        directions = make(1, count=count)[:2]
        ours, theirs = energy(grouped_dot), energy(plain)

        def all_of(f: Any) -> Any:
            gradient = jax.grad(f, argnums=(0, 1))
            many = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), (rows, matrices, directions))
            others = jnp.stack([groups, groups[::-1], jnp.full_like(groups, count)])

            def inner(rows: Any, matrices: Any) -> Any:
                return sum(jnp.vdot(a, b) for a, b in zip(gradient(rows, matrices, groups), directions, strict=True))

            return {
                "gradient": gradient(rows, matrices, groups),
                "forward over reverse": jax.jvp(lambda *x: gradient(*x, groups), (rows, matrices), directions)[1],
                "reverse over reverse": jax.grad(inner, argnums=(0, 1))(rows, matrices),
                "each its rows": jax.vmap(gradient, (0, None, 0))(many[0], matrices, others),
                "each its matrices": jax.vmap(gradient, (None, 0, None))(rows, many[1], groups),
                "all its own": jax.vmap(gradient)(many[0], many[1], others),
                "along the last axis": jax.vmap(f, (1, 3, None))(
                    jnp.moveaxis(many[0], 0, 1), jnp.moveaxis(many[1], 0, 3), groups
                ),
            }

        close(jax.jit(lambda: all_of(ours))(), jax.jit(lambda: all_of(theirs))())


def test_groups_in_order_need_no_sorting() -> None:
    with jax.enable_x64(True):
        rows, matrices, groups = make()
        groups = jnp.sort(groups)
        close(grouped_dot(rows, matrices, groups, in_order=True), plain(rows, matrices, groups))
        right = make(2)[0]
        expected = jnp.einsum("ri,ro,rg->gio", rows, right, jax.nn.one_hot(groups, COUNT, dtype=rows.dtype))
        close(grouped_outer(rows, right, groups, count=COUNT, in_order=True), expected)
        lowered = jax.jit(grouped_dot, static_argnames="in_order").lower(rows, matrices, groups, in_order=True)
        assert "stablehlo.sort" not in lowered.as_text()


def test_what_tpus_compute_is_the_same() -> None:
    with jax.enable_x64(True):
        rows, matrices, groups = make()
        sizes = grouped._sizes(groups, COUNT)
        rows = rows[jnp.argsort(groups)]
        close(grouped._ragged_dot(rows, matrices, sizes), grouped._blocked_dot(rows, matrices, sizes))
        right = make(2)[0]
        close(grouped._ragged_outer(rows, right, sizes), grouped._blocked_outer(rows, right, sizes))


def test_tpus_are_given_ragged_products() -> None:
    rows, matrices, groups = jax.tree.map(jnp.float32, make()[:2]) + make()[2:]
    traced = jax.jit(jax.grad(lambda *factors: grouped_dot(*factors, groups).sum(), argnums=(0, 1))).trace(
        rows, matrices
    )
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count("ragged_dot") >= 2
    assert "ragged_dot" not in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_every_row_meets_one_matrix_in_the_count_of_operations() -> None:
    with jax.enable_x64(True):
        arguments = make()
        assert matmul_flops(grouped_dot, *arguments) == 2 * ROWS * INNER * OUTER
        gradient = jax.grad(lambda rows, matrices: grouped_dot(rows, matrices, arguments[2]).sum(), argnums=(0, 1))
        assert matmul_flops(gradient, *arguments[:2]) == 2 * 2 * ROWS * INNER * OUTER
