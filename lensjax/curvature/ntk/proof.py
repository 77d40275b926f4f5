"""Kernels that are checked: some of their entries are computed a second time, from gradients as JAX gives them.

The check shares nothing with the kernel but the traced function: no factors, pieces, panels, or batches. It takes two
or three examples, and compares their entries with each other parameter by parameter and layer by layer.

A fault of a rule is one of the program, so the first kernel of every program, plan and size is checked. Where that
takes more than 3 % of a kernel's time, as of few examples, it is not again before so much has been computed.
"""

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from lensjax.core.errors import InputError
from lensjax.core.pytrees import PyTree
from lensjax.curvature.jaxpr.program import Program
from lensjax.curvature.jaxpr.rounding import rounding
from lensjax.curvature.ntk.costs import Output
from lensjax.curvature.ntk.factor import constrain, einsum, tiled

_MANY = 256  # examples, from which a third one is checked where gradients are not simply formed and multiplied
_SHARE = 0.03  # of the time of kernels, that verifying them may take
_STRETCH = 4096  # numbers of a gradient whose products are summed at once
_NORMS = "slqp,slqp->lsq"
_OUTPUTS = 2  # or pairs of outputs, of kernels that keep them apart
# Relative errors of a parameter's gradient that rounding may make, in units of it and at most, and those that all
# other gradients make in it, as in those of parameters that should cancel.
_OF_LEAF, _OF_ALL = (300, 0.2), (30, 0.05)


class WrongKernelError(InputError):
    """A kernel is not that of plain gradients."""

    def __init__(self, message: str, leaves: frozenset[int]) -> None:
        super().__init__(message)
        self.leaves = leaves  # numbers of the parameters whose parts are wrong


@dataclass(frozen=True)
class Verification:
    """The entries of a kernel that were computed a second time, and agreed.

    Attributes:
      rows, columns: Examples whose entries with each other were compared, for every parameter and layer.
      entries: Count of the numbers that were compared.
      largest: The largest difference, as a share of that which rounding may make.
      seconds: What it took; the first time of a function, compilation too.
      dense: Parameters whose kernels were wrong at first, and are those of gradients formed one by one instead.
      since: Kernels of the same function and sizes, with this one, since one was compared; 0 where this one was.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    entries: int
    largest: float
    seconds: float = 0.0
    dense: tuple[str, ...] = ()
    since: int = 0

    def __str__(self) -> str:
        if self.since:
            return f"no entries of this kernel, but of one {self.since:,} before it, agree with plain gradients"
        rows, columns = (", ".join(map(str, some)) for some in (self.rows, self.columns))
        pairs = f"of examples {rows}" if self.rows == self.columns else f"of examples {rows} with {columns} of ys"
        dense = f"; by plain gradients alone: {', '.join(self.dense)}" if self.dense else ""
        return f"{self.entries:,} entries {pairs} agree with plain gradients{dense}"


class Kernel(np.ndarray):
    """An array that says what of it was verified; arrays that are made from it do not."""

    verified: Verification | None = None


@dataclass
class _Account:
    """Kernels of one function, plan and size: what the next check may take, and how many there were since the last."""

    earned: float = 0.0
    since: int = 0


_accounts: WeakKeyDictionary[Program, dict[Hashable, _Account]] = WeakKeyDictionary()


def kernels_since(program: Program, plan: Hashable, share: float) -> int:
    """How many kernels, with the next one, there are since one was checked; 0 if it is time to check it.

    Args:
      program: The function.
      plan: All else that kernels must have in common.
      share: Of its time, that checking it takes.
    """
    known = _accounts.setdefault(program, {})
    if plan not in known:
        known[plan] = _Account()
        return 0
    account = known[plan]
    account.earned += _SHARE
    account.since += 1
    if account.earned < share:
        return account.since
    account.earned, account.since = 0.0, 0
    return 0


def check_next(program: Program) -> None:
    """Check the next kernel of a function, of which one was wrong."""
    _accounts.pop(program, None)


@dataclass
class Sample:
    """Entries of a kernel that is being summed up, to be compared.

    Attributes:
      rows: Numbers of examples.
      columns: Of examples of ys, or the rows again.
      pairs: Outputs of rows and of columns; all outputs with themselves, which are summed, of a "trace".
      same: Whether the columns are the rows.
    """

    rows: Int[np.ndarray, " s"]
    columns: Int[np.ndarray, " t"]
    pairs: Int[np.ndarray, "q 2"]
    output: Output
    same: bool
    parts: dict[int, np.ndarray] = field(default_factory=dict)  # [layers, s, t] or [layers, s, t, q], by the leaf

    def note(self, leaf: int, layers: int, start: int, block: Float[np.ndarray, "l n m *outputs"]) -> None:
        """Add what a part of the kernel has of a parameter's layers from `start` on."""
        some = block[:, self.rows][:, :, self.columns]
        if self.output == "diagonal":
            some = some[..., self.pairs[:, 0]]
        elif self.output == "full":
            some = some[..., self.pairs[:, 0], self.pairs[:, 1]]
        whole = self.parts.setdefault(leaf, np.zeros((layers, *some.shape[1:]), some.dtype))
        whole[start : start + len(some)] += some


def draw(sizes: tuple[int, int], outputs: int, output: Output, seed: int, *, clever: bool) -> Sample:
    """Examples and outputs to compare: one example of each equal stretch, so that panels and batches differ."""
    rng = np.random.default_rng([seed, *sizes, outputs])

    def some(n: int, count: int) -> Int[np.ndarray, " s"]:
        edges = np.linspace(0, n, min(count, n) + 1).astype(int)
        return np.array([rng.integers(low, high) for low, high in itertools.pairwise(edges)])

    n, m = sizes
    count = 3 if clever and max(n, m) >= _MANY else 2
    rows = some(n, count if not m else count - 1)
    columns = some(m, 1) if m else rows
    if output == "trace":
        pairs = np.repeat(np.arange(outputs)[:, None], 2, axis=1)
    else:
        pairs = rng.integers(0, outputs, (min(_OUTPUTS, outputs), 2))
        pairs = pairs if output == "full" else np.repeat(pairs[:, :1], 2, axis=1)
    return Sample(rows, columns, pairs, output, not m)


def verify(
    sample: Sample,
    program: Program,
    names: Sequence[str],
    layers: Sequence[int | None],
    captured: PyTree,
    params: PyTree,
    examples: PyTree,
    *,
    rounded: Any,
    limit: int,
    mesh: Mesh | None,
) -> Verification:
    """Compare the entries of a sample with those of plain gradients.

    Args:
      sample: With the entries of all parameters.
      program: The function.
      names: Of the parameters.
      layers: Of each, the length of its leading axis if a scan slices it.
      captured, params: Arguments of the program.
      examples: The rows, followed by the columns unless they are the same.
      rounded: The type that the kernel's factors were rounded to, if any.
      limit: Bytes for gradients at a time, where it allows those of one parameter.
      mesh: Devices that the parameters are shared over.

    Raises:
      WrongKernelError: an entry differs by more than rounding, or is not a number.
    """
    count = len(sample.rows)
    rows = jax.tree.map(lambda x: x[:count], examples)
    columns = rows if sample.same else jax.tree.map(lambda x: x[count:], examples)
    plain: dict[int, list[np.ndarray]] = {}
    leaves = jax.tree.leaves(params)
    sizes = [np.size(leaf) * jnp.result_type(leaf).itemsize for leaf in leaves]
    for group in _groups([(count + len(sample.columns)) * size for size in sizes], limit):
        own = tuple(layers[number] for number in group)
        static = program, group, own, sample.output == "trace", sample.same, mesh
        made = _plain()(*static, captured, params, rows, columns, jnp.asarray(sample.pairs))
        plain |= {number: [np.asarray(x, np.float64) for x in part] for number, part in zip(group, made, strict=True)}
    unit = max(rounding(program), float(jnp.finfo(rounded or jnp.float64).eps))
    return _compared(sample, names, layers, plain, unit)


def _compared(
    sample: Sample,
    names: Sequence[str],
    layers: Sequence[int | None],
    plain: dict[int, list[np.ndarray]],
    unit: float,
) -> Verification:
    """The verification, or the error that names the parameter that differs most."""
    whole = [np.sqrt(sum(np.square(part[side]).sum(axis=0) for part in plain.values())) for side in (1, 2)]
    share = [min(units * unit, most) for units, most in (_OF_LEAF, _OF_ALL)]
    largest, entries, wrong = 0.0, 0, {}
    for number, (wanted, one, other) in plain.items():
        slack = [share[0] * a + share[1] * g for a, g in zip((one, other), whole, strict=True)]
        a, b, da, db = one[:, :, None], other[:, None], slack[0][:, :, None], slack[1][:, None]
        allowed = a * db + da * b + da * db
        given = sample.parts.get(number, np.zeros_like(wanted))
        with np.errstate(invalid="ignore"):
            shares = np.abs(given - wanted) / np.maximum(allowed, np.finfo(np.float64).tiny)
        shares = np.where(np.isfinite(given) & np.isfinite(wanted), shares, np.inf)
        entries += shares.size
        most = float(shares.max(initial=0))
        largest = max(largest, most)
        if most > 1:
            at = np.unravel_index(shares.argmax(), shares.shape)
            wrong[number] = most, at, float(given[at]), float(wanted[at])
    if not wrong:
        return Verification(tuple(sample.rows.tolist()), tuple(sample.columns.tolist()), entries, largest)
    number = max(wrong, key=lambda each: wrong[each][0])
    _, at, got, right = wrong[number]
    layer = "" if layers[number] is None else f", layer {at[0]}"
    pair = f"{sample.rows[at[1]]} and {sample.columns[at[2]]}{'' if sample.same else ' of ys'}"
    raise WrongKernelError(
        f"The kernel's part of {names[number] or 'params'}{layer} is {got:.6g} for examples {pair}, and by plain "
        f"gradients {right:.6g}; give on_mismatch='dense' to have these, and please report it.",
        frozenset(wrong),
    )


@cache
def _plain() -> Any:
    return jax.jit(_entries, static_argnums=(0, 1, 2, 3, 4, 5))


def _entries(
    program: Program,
    numbers: tuple[int, ...],
    layers: tuple[int | None, ...],
    summed: bool,
    same: bool,
    mesh: Mesh | None,
    captured: PyTree,
    params: PyTree,
    rows: PyTree,
    columns: PyTree,
    pairs: Int[Array, "q 2"],
) -> list[tuple[Array, Array, Array]]:
    """Products [layers, s, t, q] of some parameters' gradients, and their norms [layers, s, q] and [layers, t, q].

    Gradients are computed one example and one output at a time. Where products are summed over outputs there is no q.
    """
    leaves = jax.tree.leaves(params)

    def gradient(example: PyTree, output: Array) -> list[Array]:
        def values(own: list[Array]) -> Array:
            mixed = list(leaves)
            for number, leaf in zip(numbers, own, strict=True):
                mixed[number] = leaf
            return jnp.ravel(program(captured, mixed, example))

        value, pull = jax.vjp(values, [leaves[number] for number in numbers])
        return pull((jnp.arange(len(value)) == output).astype(value.dtype))[0]

    def of(examples: PyTree, output: Array) -> list[Array]:
        made = jax.lax.map(lambda example: gradient(example, output), examples)
        return [x.reshape(len(x), depth or 1, -1) for x, depth in zip(made, layers, strict=True)]

    def products(pair: Array) -> list[tuple[Array, Array, Array]]:
        one = of(rows, pair[0])
        if same and summed:
            made = [_dots(a, a) for a in one]
            return [(x, *(jnp.diagonal(x, axis1=1, axis2=2),) * 2) for x in made]
        other = of(columns, pair[1])
        return [
            (_dots(a, b), _dots(a, a, _NORMS), _dots(b, b, _NORMS))  # of all pairs, and of each with itself
            for a, b in zip(one, other, strict=True)
        ]

    if summed and len(pairs) == 1:  # without a loop, which would copy the gradients
        made = products(pairs[0])
    elif summed:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(products, pairs[0]))
        made, _ = jax.lax.scan(lambda total, pair: (jax.tree.map(jnp.add, total, products(pair)), None), zeros, pairs)
    else:
        made = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), jax.lax.map(products, pairs))
    return [
        (constrain(product, mesh), constrain(jnp.sqrt(one), mesh), constrain(jnp.sqrt(other), mesh))
        for product, one, other in made
    ]


def _dots(a: Array, b: Array, spec: str = "slqp,tlqp->lstq") -> Array:
    """Products [l, s, t] of gradients [s, l, p] and [t, l, p], or [l, s] by another `spec`, summed in stretches q.

    One sum of float32 over a large table, of 38 million numbers, say, is off by a ten-thousandth.
    """
    stretch = min(a.shape[-1], _STRETCH) or 1
    return einsum(spec, tiled(a, stretch), tiled(b, stretch)).sum(axis=-1)


def _groups(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, ...]]:
    """Numbers of parameters whose gradients fit at the same time; one that does not is alone."""
    group: list[int] = []
    held = 0
    for number, size in enumerate(sizes):
        if group and held + size > limit:
            yield tuple(group)
            group, held = [], 0
        group.append(number)
        held += size
    if group:
        yield tuple(group)
