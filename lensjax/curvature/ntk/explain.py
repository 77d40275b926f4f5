"""What `ntk` does with every parameter, why, and what it takes."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lensjax.core.pytrees import PyTree, path_name
from lensjax.curvature.jaxpr.program import Function
from lensjax.curvature.ntk.contract import contract
from lensjax.curvature.ntk.costs import Output, Sides, Way, Ways, Work
from lensjax.curvature.ntk.factor import Factor
from lensjax.curvature.ntk.factors import Leaf
from lensjax.curvature.ntk.inputs import automatic_axes
from lensjax.curvature.ntk.plan import Job, prepare

_AT_MOST = 2e10  # operations that are measured of each way
_PROBE = 1024  # rows of the product that shows how fast this device is


@dataclass(frozen=True)
class ParameterPlan:
    """How the kernel of one parameter is computed.

    Attributes:
      name: Its path.
      shape: Of the parameter.
      way: "plain" where its gradients are formed by JAX and multiplied; "form" where they are formed from their
        factors, a tile at a time; "gram" where no gradient is formed.
      why: The reason.
      pieces: Number of times that the examples' factors are made, for a part of the parameter each.
      memory: Bytes of the examples' factors that are held at the same time.
      flops: Of the contraction, by way.
      predicted: Seconds of the contraction, by way.
      measured: The same, of the examples that `measured_examples` counts and scaled up; empty if not measured.
      measured_examples: See there.
    """

    name: str
    shape: tuple[int, ...]
    way: Literal["plain", "form", "gram"]
    why: str
    pieces: int
    memory: int
    flops: dict[Way, int]
    predicted: dict[Way, float]
    measured: dict[Way, float]
    measured_examples: int


@dataclass(frozen=True)
class Explanation:
    """How a kernel is computed.

    Attributes:
      examples: N and M; M is 0 for a kernel of N examples with themselves.
      outputs: Of the function.
      batch: Examples whose factors are made at a time.
      memory_limit: Bytes.
      parameters: One for each.
    """

    examples: tuple[int, int]
    outputs: int
    batch: int
    memory_limit: int
    parameters: tuple[ParameterPlan, ...]

    def as_json(self) -> dict[str, Any]:
        """All of it, for files."""
        return asdict(self)

    def rows(self) -> list[tuple[str, ...]]:
        """A row for each parameter, under `HEADINGS`."""
        return [_row(one) for one in self.parameters]

    def __str__(self) -> str:
        cells = [HEADINGS, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        n, m = self.examples
        what = f"{n:,} examples" if not m else f"{n:,} by {m:,} examples"
        return "\n".join([f"{what}, {self.outputs:,} outputs, {self.batch} examples at a time", *lines])


HEADINGS = ("parameter", "way", "why", "pieces", "memory", "GFLOP form/gram", "predicted s", "measured s")


def explain(
    f: Function,
    params: PyTree,
    xs: PyTree,
    ys: PyTree | None = None,
    *,
    output: Output = "trace",
    factors: Literal["exact", "bfloat16"] = "exact",
    memory_limit: int | None = None,
    measure: bool = False,
) -> Explanation:
    """What `ntk` with the same arguments does with every parameter, and what it takes.

    FLOPs and seconds are those of contracting factors; making them takes one backward pass for every example, output
    and piece. Predictions come from operation counts and the speed of one large product on this device.

    Args:
      f, params, xs, ys, output, factors, memory_limit: See `ntk`; parameters may be shapes.
      measure: Whether to measure both ways too, of factors of the same shapes, on so few examples that each takes
        about a second.

    Raises:
      InputError: see `ntk`.
    """
    with automatic_axes(params) as params:
        job = prepare(f, params, xs, ys, factors, memory_limit)
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
        speed = _operations_a_second()
        known: dict[Any, tuple[int, dict[Way, float]]] = {}
        plans = []
        for leaf in job.plan.leaves:
            alike = leaf.layers, leaf.first, leaf.second, leaf.uses
            if measure and alike not in known:
                known[alike] = _measured(job, leaf, output)
            measured = known.get(alike, (0, {}))
            plans.append(_plan(job, leaf, names[leaf.number], shapes[leaf.number], output, speed, measured))
    return Explanation(job.sizes, job.plan.count, job.batch, job.limit, tuple(plans))


def _plan(
    job: Job,
    leaf: Leaf,
    name: str,
    shape: tuple[int, ...],
    output: Output,
    speed: float,
    measured: tuple[int, dict[Way, float]],
) -> ParameterPlan:
    part = next(part for part in job.parts if any(own.number == leaf.number for own in part.leaves))
    ways = leaf.ways(job.sizes, output)
    works: dict[Way, Work] = {"form": ways.form, "gram": ways.gram}
    plain = job.plan.program.uses.plain.get(leaf.number)
    cheaper = f"{_ratio(ways):.3g} times fewer operations"
    found = plain or f"{_described(leaf.uses)}; {cheaper}"
    if leaf.number in job.plan.plain:
        found = "its kernel was wrong"
    return ParameterPlan(
        name,
        tuple(shape),
        "plain" if plain or leaf.number in job.plan.plain else ways.chosen,
        found,
        part.pieces,
        sum(job.sizes) * leaf.example_bytes // part.pieces,
        {way: work.flops for way, work in works.items()},
        {way: work.cost / speed for way, work in works.items()},
        measured[1],
        measured[0],
    )


def _described(uses: Sequence[Sides]) -> str:
    """The uses of a parameter, as in "2 products, 1 lookup"."""
    lookups = sum(use.looks_up for use in uses)
    counts = {"product": len(uses) - lookups, "lookup": lookups}
    return ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for what, count in counts.items() if count)


def _ratio(ways: Ways) -> float:
    """How many times more operations the other way takes."""
    costs = max(ways.form.cost, 1), max(ways.gram.cost, 1)
    return max(costs) / min(costs)


def _measured(job: Job, leaf: Leaf, output: Output) -> tuple[int, dict[Way, float]]:
    """Examples, and seconds of both ways for all examples, scaled from those of one layer and few examples."""
    n, m = job.sizes
    layers = leaf.layers or 1
    if not leaf.first * leaf.second:
        return 0, {}
    whole = leaf.ways(job.sizes, output)
    few = n
    while few > 1 and _most(leaf, few, m, n, output) > _AT_MOST * layers:
        few = -(-few // 2)
    other = -(-m * few // n)
    some = leaf.ways((few, other), output)
    a, b = _factors(leaf, few, 0), _factors(leaf, other, 1) if m else None
    seconds: dict[Way, float] = {}
    works: dict[Way, tuple[Work, Work]] = {"form": (whole.form, some.form), "gram": (whole.gram, some.gram)}
    for way, (all_, part) in works.items():
        call = jax.jit(partial(_contraction, leaf.first, output, job.chunk_bytes, way))
        seconds[way] = _fastest(lambda call=call: call(a, b)) * layers * max(all_.cost, 1) / max(part.cost, 1)
    return few, seconds


def _most(leaf: Leaf, few: int, m: int, n: int, output: Output) -> int:
    ways = leaf.ways((few, -(-m * few // n)), output)
    return max(ways.form.cost, ways.gram.cost)


def _contraction(
    first: int, output: Output, chunk_bytes: int, way: Way, a: list[Factor], b: list[Factor] | None
) -> Array:
    return contract(a, a if b is None else b, first, output, chunk_bytes, way=way)


def _factors(leaf: Leaf, examples: int, seed: int) -> list[Factor]:
    """Random factors of one layer."""
    rng = np.random.default_rng(seed)

    def numbers(use: Sides, width: int, *, outputs: bool) -> Array:
        shape = (examples, leaf.outputs, use.rows, width) if outputs else (examples, use.rows, width)
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    def left(use: Sides) -> Array:
        if use.looks_up:
            return jnp.asarray(rng.integers(0, max(leaf.first, 1), (examples, use.rows)))
        return numbers(use, leaf.first, outputs=use.outputs_left)

    return [Factor(left(use), numbers(use, leaf.second, outputs=not use.outputs_left)) for use in leaf.uses]


def _operations_a_second() -> float:
    """FLOPs a second of one large product."""
    x = jnp.ones((_PROBE, _PROBE), jnp.float32)
    call = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    return float(2 * _PROBE**3 / _fastest(lambda: call(x)))


def _fastest(call: Any) -> float:
    """Seconds of the fastest of three calls, after one."""
    jax.block_until_ready(call())
    times = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return min(times)


def _row(one: ParameterPlan) -> tuple[str, ...]:
    def both(by_way: dict[Way, float], scale: float = 1) -> str:
        return "/".join(f"{by_way[way] / scale:.2g}" for way in ("form", "gram")) if by_way else "–"

    layers = "×".join(map(str, one.shape)) or "1"
    return (
        f"{one.name} [{layers}]",
        one.way,
        one.why,
        str(one.pieces),
        f"{one.memory / 1e6:,.1f} MB",
        both({way: float(flops) for way, flops in one.flops.items()}, 1e9),
        both(one.predicted),
        both(one.measured),
    )
