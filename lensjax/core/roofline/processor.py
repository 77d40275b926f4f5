"""What this machine's processor does in a second, measured in one or two, and what a compiled program takes of it."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lensjax.core.roofline.counters import Counts

_PRODUCTS = ((256, 64), (2048, 64), (2048, 256), (1024, 768))  # rows, and rows and columns of a square matrix
_VALUES = 2**19  # of an array that elementwise work goes over
_MOVED = (2**14, 2**17, 2**20, 2**24)  # values of arrays, the last of which no cache holds
_ENOUGH = 0.03  # seconds that a run takes at least, of which some are timed
_RUNS = 5


@dataclass(frozen=True)
class Rates:
    """What a processor does, all its cores together.

    Attributes:
      products: FLOP/s of products of matrices in float32, by the FLOPs of one.
      elementwise: Operations a second, of which one in six is an exponential.
      bytes: Bytes read and written a second, by those of one instruction, of which caches hold the fewer ones.
    """

    products: Mapping[float, float]
    elementwise: float
    bytes: Mapping[float, float]

    def product_seconds(self, flops: float) -> float:
        """Seconds of a product of so many FLOPs, at a rate between those that were measured along logarithms."""
        return _at_rate(flops, self.products)

    def moving_seconds(self, moved: float) -> float:
        """Seconds in which an instruction reads and writes so many bytes, likewise."""
        return _at_rate(moved, self.bytes)


def _at_rate(amount: float, rates: Mapping[float, float]) -> float:
    """Seconds of an amount of work, by the rates of some amounts."""
    sizes = sorted(rates)
    known = [math.log(rates[size]) for size in sizes]
    return amount / float(np.exp(np.interp(math.log(max(amount, 1.0)), np.log(sizes), known)))


@cache
def measure_rates() -> Rates:
    """Measure this machine's processor, once in a process; it takes one or two seconds.

    Products, elementwise work and copies are timed in loops of a compiled program, so that calls do not count.
    """
    products = {2.0 * rows * wide**2: 2.0 * rows * wide**2 / _product(rows, wide) for rows, wide in _PRODUCTS}
    return Rates(
        products=products,
        elementwise=6 * _VALUES / _seconds(lambda x: jnp.exp(x * -0.5) * 0.5 + x * 0.25 - 0.01, (_VALUES,)),
        bytes={8.0 * count: 8.0 * count / _seconds(lambda x: x + 1.0, (count,)) for count in _MOVED},
    )


def program_seconds(counts: Counts, rates: Rates) -> float:
    """Seconds of a compiled program on a processor, at least.

    An instruction takes the longer of its products and its bytes, and elementwise work is added.

    Args:
      counts: What the program does.
      rates: What the processor does.
    """
    total = counts.other_flops / rates.elementwise
    for (flops, moved), runs in counts.work.items():
        total += runs * max(rates.product_seconds(flops), rates.moving_seconds(moved))
    return total


def _product(rows: int, wide: int) -> float:
    """Seconds of a product."""
    matrix = jnp.full((wide, wide), 1.0 / wide, jnp.float32)
    return _seconds(lambda x: x @ matrix, (rows, wide))


def _seconds(step: Callable[[Array], Array], shape: tuple[int, ...]) -> float:
    """Seconds of a step in the fastest of a few loops of many, as others may want the processor too."""

    @jax.jit
    def loop(runs: int) -> Array:  # whose array is made and dropped in the program, and is in memory once
        return jax.lax.fori_loop(0, runs, lambda _, x: step(x), jnp.full(shape, 0.5, jnp.float32)).ravel()[0]

    def timed(runs: int) -> float:
        began = time.perf_counter()
        loop(runs).block_until_ready()
        return time.perf_counter() - began

    timed(2)  # compiles
    runs = max(2, math.ceil(_ENOUGH * 2 / max(timed(2), 1e-6)))
    return min(timed(runs) / runs for _ in range(_RUNS))
