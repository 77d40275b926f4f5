"""What a program takes on a processor follows from what it does, and from rates that are measured."""

import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from lensjax.core.roofline import processor
from lensjax.core.roofline.counters import Counts, count_program
from lensjax.core.roofline.processor import Rates, measure_rates, program_seconds

RATES = Rates(products={1e6: 1e9, 1e8: 1e11}, elementwise=1e9, bytes={1e6: 1e12, 1e9: 1e10})


def test_instructions_take_the_longer_of_their_products_and_bytes() -> None:
    work = {(1e6, 0.0): 3, (1e8, 5e10): 1, (0.0, 1e10): 2}
    assert program_seconds(Counts(other_flops=2e9, work=work), RATES) == pytest.approx(3e-3 + 5 + 2 + 2)


def test_rates_are_those_of_the_nearest_amounts_and_between_them_along_logarithms() -> None:
    assert RATES.product_seconds(1e7) == pytest.approx(1e7 / 1e10)
    assert RATES.product_seconds(1e5) == pytest.approx(1e5 / 1e9)
    assert RATES.product_seconds(1e12) == pytest.approx(1e12 / 1e11)
    assert RATES.moving_seconds(1e3) == pytest.approx(1e-9)  # from a cache
    assert RATES.moving_seconds(1e8) == pytest.approx(1e8 / 10 ** (10 + 2 / 3))
    assert RATES.product_seconds(0.0) == RATES.moving_seconds(0.0) == 0.0


def test_a_program_takes_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds of all cores, so that others' work does not count."""
    monkeypatch.setattr(processor, "time", SimpleNamespace(perf_counter=time.process_time))
    rates = measure_rates.__wrapped__()

    def layers(x: jax.Array, kernels: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w) + x, None), x, kernels)[0]

    x, kernels = jnp.ones((1024, 256)), jnp.ones((8, 256, 256)) / 256
    step = jax.jit(layers).lower(x, kernels).compile()
    expected = program_seconds(count_program(step.as_text(), {"data": 1}), rates)
    taken = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(5):
            step(x, kernels).block_until_ready()
        taken.append((time.process_time() - began) / 5)
    assert min(taken) / 3 < expected < 3 * min(taken)
