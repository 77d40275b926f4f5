"""Matrix products are counted exactly, wherever in a function they are."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec

from lensjax.core.flops import matmul_flops
from lensjax.models import from_config, make_mesh
from lensjax.models.lora import add_lora, join, split_trainable


def abstract(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


SQUARE = abstract(4, 4)
ONE = 2 * 4**3  # of a product of two such


@jax.custom_jvp
def with_jvp(x: Any) -> Any:
    return x @ x


@jax.custom_vjp
def with_vjp(x: Any) -> Any:
    return x @ x


def with_gradient(function: Callable[[Any], Any], x: Any) -> tuple[Any, Any]:
    value, pull = jax.vjp(function, x)
    return value, pull(x)


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0]))
with_vjp.defvjp(lambda x: (with_vjp(x), x), lambda x, gradient: (gradient @ x @ x,))


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda x: x + x, 0),
        (lambda x: x @ x, 1),
        (jax.jit(lambda x: jax.jit(lambda y: y @ y)(x) @ x), 2),
        (with_jvp, 1),
        (with_vjp, 1),
        (lambda x: with_gradient(with_vjp, x), 3),
        (lambda x: with_gradient(with_vjp, x)[1], 2),  # which does not need the value
        (lambda x: with_gradient(jax.checkpoint(lambda y: jnp.sin(y @ y) @ y), x), 7),  # 2, of which 1 again, and 4
        (lambda x: lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x), 2),
        (lambda x: lax.switch(1, [lambda y: y, lambda y: y @ y, lambda y: y + 1], x), 1),
        (lambda x: lax.scan(lambda c, _: (c @ c, None), x, None, length=7), 7),
        (lambda x: lax.scan(lambda c, _: (c @ c, c @ c @ c), x, None, length=7)[0], 7),
        (lambda x: lax.scan(lambda c, _: (lax.fori_loop(0, 5, lambda _, y: y @ y, c), None), x, None, length=3), 15),
        (lambda x: lax.while_loop(lambda y: (y @ y)[0, 0] < 1, lambda y: y @ y, x), 2),
        (lambda x: jax.vmap(lambda y: x @ y)(x), 1 / 4 * 4),
        (lambda x: jnp.linalg.solve(x, x), 0),
        (lambda x: lax.map(lambda row: row @ x, x), 1),
    ],
)
def test_products_are_found_wherever_they_are(function: Callable[[Any], Any], products: int) -> None:
    assert matmul_flops(function, SQUARE) == products * ONE


@given(
    sizes=st.tuples(*[st.integers(1, 9)] * 6),
    subscripts=st.sampled_from(["abcd,bced->abe", "abd,cbd->bac", "abc,de->abcde", "abcd,abcd->", "fab,fbc->fac"]),
)
def test_dimensions_that_are_shared_count_once(sizes: tuple[int, ...], subscripts: str) -> None:
    size = dict(zip("abcdef", sizes, strict=True))
    factors = subscripts.partition("->")[0].split(",")
    expected = 2
    for letter in set("".join(factors)):
        expected *= size[letter]
    arrays = [abstract(*(size[letter] for letter in factor)) for factor in factors]
    assert matmul_flops(lambda x, y: jnp.einsum(subscripts, x, y), *arrays) == expected


def test_convolutions() -> None:
    def convolve(x: Any, kernel: Any, groups: int = 1) -> Any:
        return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", feature_group_count=groups)

    x, kernel = abstract(2, 6, 9, 10), abstract(12, 6, 3, 4)
    forward = 2 * (2 * 12 * 7 * 7) * (6 * 3 * 4)
    assert matmul_flops(convolve, x, kernel) == forward
    assert matmul_flops(lambda x, kernel: convolve(x, kernel, 3), x, abstract(12, 2, 3, 4)) == forward // 3
    assert matmul_flops(jax.value_and_grad(lambda kernel, x: convolve(x, kernel).sum()), kernel, x) == 2 * forward


def test_ragged_products() -> None:
    x, groups, sizes = abstract(10, 4), abstract(3, 4, 5), jax.ShapeDtypeStruct((3,), jnp.int32)
    forward = 2 * 10 * 4 * 5  # whatever the sizes of the groups
    assert matmul_flops(lax.ragged_dot, x, groups, sizes) == forward

    def total(x: Any, groups: Any, sizes: Any) -> Any:
        return lax.ragged_dot(x, groups, sizes).sum()

    assert matmul_flops(jax.value_and_grad(total, (0, 1)), x, groups, sizes) == 3 * forward


def test_gradient_of_a_chain() -> None:
    sizes = (5, 7, 3, 6)
    weights = [abstract(*pair) for pair in pairwise(sizes)]
    x = abstract(8, 5)

    def chain(weights: Any, x: Any) -> Any:
        for weight in weights:
            x = jnp.tanh(x @ weight)
        return x.sum()

    products = [2 * 8 * before * after for before, after in pairwise(sizes)]
    assert matmul_flops(chain, weights, x) == sum(products)
    assert matmul_flops(jax.grad(chain, (0, 1)), weights, x) == 3 * sum(products)
    assert matmul_flops(jax.grad(chain), weights, x) == 3 * sum(products) - products[0]


@pytest.mark.eight_devices
def test_a_function_spread_over_devices_counts_whole() -> None:
    mesh = make_mesh("data=2,fsdp=4")
    rows = PartitionSpec(("data", "fsdp"))

    def spread(x: Any, y: Any) -> Any:
        return jax.shard_map(lambda x, y: x @ y, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)(x, y)

    assert matmul_flops(spread, abstract(16, 3), abstract(3, 5)) == 2 * 16 * 3 * 5


@pytest.mark.parametrize("remat", ["none", "full"])
def test_gpt2(remat: Any) -> None:
    transformers = pytest.importorskip("transformers")
    width, depth, words, batch, time, rank = 32, 3, 96, 2, 11, 4
    config = transformers.GPT2Config(vocab_size=words, n_embd=width, n_layer=depth, n_head=4, n_positions=64)
    model = from_config(config, remat=remat)
    data = {"input_ids": jax.ShapeDtypeStruct((batch, time), jnp.int32)}
    tokens = batch * time
    block = 2 * tokens * (12 * width**2 + 2 * time * width)  # kernels; scores and what they weigh
    head = 2 * tokens * width * words
    assert matmul_flops(model.apply, model.params, data) == depth * block + head
    last = 2 * tokens * 4 * width**2  # what it gives is not needed again
    again = depth * (block - last) if remat == "full" else 0
    found = matmul_flops(jax.value_and_grad(model.loss), model.params, data)
    assert found == 3 * (depth * block + head) + again
    adapted = add_lora(model, rank=rank)
    adapters = 2 * tokens * rank * (4 * 2 * width + 2 * 5 * width)
    assert matmul_flops(adapted.apply, adapted.params, data) == depth * (block + adapters) + head
    trainable, frozen = split_trainable(adapted.params)
    gradient = jax.value_and_grad(lambda trainable, frozen, data: adapted.loss(join(trainable, frozen), data))
    kernels = depth * 2 * tokens * 12 * width**2 + head  # of which there is no gradient
    again += depth * (adapters - 2 * tokens * rank * width) if remat == "full" else 0
    assert matmul_flops(gradient, trainable, frozen, data) == 3 * (depth * (block + adapters) + head) - kernels + again


def test_xla_counts_the_same_and_elementwise_work_besides() -> None:
    def unrolled(weights: Any, x: Any) -> Any:
        for weight in weights:
            x = jnp.maximum(x @ weight, 0)
        return (x**2).sum()

    weights, x = [abstract(64, 96), abstract(96, 64), abstract(64, 32)], abstract(128, 64)
    gradient = jax.grad(unrolled)
    theirs = jax.jit(gradient).lower(weights, x).compile().cost_analysis()["flops"]
    ours = matmul_flops(gradient, weights, x)
    assert ours <= theirs <= 1.03 * ours
