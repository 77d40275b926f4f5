"""Where a function multiplies by its parameters, so that gradients of a parameter need not be formed to be contracted.

Wherever a parameter is a factor of a matrix product, y = a · W, or rows of it are looked up, y = W[ids], a probe of the
shape of y is added to y. The gradient with respect to W is then a sum over rows r of a[r] ⊗ δ[r], with δ the gradient
with respect to the probe, and the same for a lookup with a one-hot row in place of a[r]. All else, such as biases and
norms, is differentiated as it is.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn
from jax.lax import GatherScatterMode
from jaxtyping import Array

from lensjax.curvature.jaxpr.walker import Interpreter, Key, aval, bind, called, scan_parts


@dataclass(frozen=True)
class Use:
    """A place where a parameter is a factor of a product, or is looked up in.

    The parameter's axes, without that of a scan over layers, are in two groups: the first axis and those that go with
    it, and the others. A product sums over one group and leaves the other.

    Attributes:
      leaf: Number of the parameter among the leaves of the pytree.
      kind: "product" or "rows".
      operand: Number of the equation's input that it is.
      axes: The axes of the parameter in the first group.
      summed_first: Whether a product sums over the first group.
      rows: Rows of a, of δ and of ids.
      layers: Length of the scan that slices the parameter; None if none does.
      shape, dtype: Of y in one step of a scan.
      steps: Length of the scan that has all of the parameter in every step; None if none has.
    """

    leaf: int
    kind: Literal["product", "rows"]
    operand: int
    axes: tuple[int, ...]
    summed_first: bool
    rows: int
    layers: int | None
    shape: tuple[int, ...]
    dtype: Any
    steps: int | None = None

    @property
    def probe_shape(self) -> tuple[int, ...]:
        """[layers or steps, rows, others], without the first outside of a scan."""
        flat = (self.rows, math.prod(self.shape) // self.rows)
        length = self.steps if self.layers is None else self.layers
        return flat if length is None else (length, *flat)

    @property
    def all_rows(self) -> int:
        """Rows of all steps, over which the gradient is summed."""
        return self.rows * (1 if self.steps is None else self.steps)

    def joined(self, rows: Array) -> Array:
        """Rows of every step one after another, [all rows, …]; those of layers stay apart."""
        return rows if self.steps is None else rows.reshape(self.all_rows, *rows.shape[2:])

    @property
    def outputs_first(self) -> bool:
        """Whether the first group of axes is that of y: then it is δ that has it, and a or ids have the other."""
        return self.kind == "product" and not self.summed_first


@dataclass(frozen=True)
class LinearUses:
    """What a program does with its parameters.

    Attributes:
      uses: Those of parameters all of whose uses are products or lookups, by the equation.
      scanned: Of leaves that a scan slices, the length of their first axis.
      plain: Of all other leaves, why their gradients are formed as they are.
    """

    uses: Mapping[Key, Use]
    scanned: Mapping[int, int]
    plain: Mapping[int, str]


def find_uses(jaxpr: Jaxpr, parameters: int) -> LinearUses:
    """The uses of the first inputs of a jaxpr."""
    finder = _Finder({}, {}, {})
    shapes = [aval(var).shape for var in jaxpr.invars]
    aliases = [_Alias(i, tuple(range(len(shape)))) if i < parameters else None for i, shape in enumerate(shapes)]
    finder.read_off(finder.run(jaxpr, [None] * len(jaxpr.constvars), aliases), "it is an output")
    groups: dict[int, set[tuple[tuple[int, ...], int | None]]] = {}
    for use in finder.uses.values():
        groups.setdefault(use.leaf, set()).add((use.axes, use.layers))
    plain = {leaf: "nothing uses it" for leaf in range(parameters) if leaf not in groups}
    plain |= {leaf: "its uses sum over different axes" for leaf, kinds in groups.items() if len(kinds) > 1}
    plain |= finder.otherwise
    uses = {key: use for key, use in finder.uses.items() if use.leaf not in plain}
    return LinearUses(uses, finder.scanned, plain)


def with_probes(
    jaxpr: Jaxpr,
    captured: Sequence[Any],
    uses: Mapping[Key, Use],
    inputs: Sequence[Array],
    probes: Mapping[Key, Array],
    whole: Callable[[Array], Array] = lambda x: x,
) -> tuple[Array, dict[Key, Array]]:
    """The function's value where probes are added, and for every probe a [rows, summed] or ids [rows].

    Args:
      uses: Those that have probes, and others whose parameters are to be whole.
      whole: Called with the parameter of every use, of which a scan gives one layer at a time, and with what a lookup
        gives: to say where it lies.
    """
    prober = _Prober(uses, probes, {}, whole)
    (value,) = prober.run(jaxpr, captured, inputs)
    return value, prober.captured


@dataclass(frozen=True)
class _Alias:
    """A value that is a parameter with its axes permuted: axis i of the value is axis order[i] of the parameter."""

    leaf: int
    order: tuple[int, ...]
    sliced: bool = False  # by the scan that it is in

    @property
    def in_order(self) -> bool:
        return self.order == tuple(range(len(self.order)))


@dataclass
class _Finder(Interpreter[_Alias | None]):
    """Notes what equations do with parameters; computes nothing. Values are aliases, None for all else."""

    uses: dict[Key, Use]
    otherwise: dict[int, str]  # leaves that are used in other ways too, and how first
    scanned: dict[int, int]
    length: int | None = None  # of the scan that it is in

    def constant(self, value: Any) -> None:
        return None

    def matters(self, equation: JaxprEqn, inputs: list[_Alias | None], key: Key) -> bool:
        return any(inputs)

    def plain(self, equation: JaxprEqn, inputs: list[_Alias | None], key: Key) -> list[None]:
        return [None] * len(equation.outvars)

    def unknown(self, equation: JaxprEqn, inputs: list[_Alias | None], key: Key) -> list[None]:
        return self.otherwise_used(equation, inputs, f"{equation.primitive.name} takes it")

    def call(self, equation: JaxprEqn, inputs: list[_Alias | None], key: Key) -> list[None]:
        self.read_off(super().call(equation, inputs, key), "a call gives it back")
        return self.plain(equation, inputs, key)

    def read_off(self, values: Sequence[_Alias | None], why: str) -> None:
        """Note that parameters are used in a way that is neither a product nor a lookup."""
        self.otherwise |= {x.leaf: why for x in values if x is not None and x.leaf not in self.otherwise}

    def otherwise_used(self, equation: JaxprEqn, inputs: Sequence[_Alias | None], why: str) -> list[None]:
        """Outputs of an equation that uses parameters in such a way."""
        self.read_off(inputs, why)
        return [None] * len(equation.outvars)

    def same(self, equation: JaxprEqn, inputs: list[_Alias | None], key: Key) -> Sequence[_Alias | None]:
        """A copy, or another floating-point type."""
        floating = jnp.issubdtype(aval(equation.outvars[0]).dtype, jnp.floating)
        return [inputs[0]] if floating else self.otherwise_used(equation, inputs, "it becomes another kind of number")

    def transpose(self, equation: JaxprEqn, inputs: list[_Alias | None], key: Key) -> list[_Alias | None]:
        (alias,) = inputs
        assert alias is not None
        return [replace(alias, order=tuple(alias.order[axis] for axis in equation.params["permutation"]))]

    def product(self, equation: JaxprEqn, inputs: list[_Alias | None], key: Key) -> list[None]:
        contracted, batched = equation.params["dimension_numbers"]
        at = 0 if inputs[0] is not None else 1
        alias, y = inputs[at], aval(equation.outvars[0])
        assert alias is not None
        summed = tuple(alias.order[axis] for axis in contracted[at])
        left = tuple(alias.order[axis] for axis in range(len(alias.order)) if axis not in contracted[at])
        in_order = summed == tuple(sorted(summed)) and left == tuple(sorted(left))
        one = inputs[1 - at] is None and not batched[at] and jnp.issubdtype(y.dtype, jnp.floating)
        if not one:
            both = all(x is not None for x in inputs)
            why = "parameters are multiplied by each other" if both else "its product is complex, or one for each index"
            return self.otherwise_used(equation, inputs, why)
        if not (in_order and left and summed):
            return self.otherwise_used(equation, inputs, "a product sums over its axes out of order, over all, or none")
        other = aval(equation.invars[1 - at]).shape
        rows = math.prod(length for axis, length in enumerate(other) if axis not in contracted[1 - at])
        first = summed if summed[0] < left[0] else left
        layers, steps = self._scans(alias)
        in_first = first == summed
        self.uses[key] = Use(alias.leaf, "product", at, first, in_first, rows, layers, y.shape, y.dtype, steps)
        return [None]

    def _scans(self, alias: _Alias) -> tuple[int | None, int | None]:
        """`layers` and `steps` of a use."""
        return (self.length, None) if alias.sliced else (None, self.length)

    def lookup(self, equation: JaxprEqn, inputs: list[_Alias | None], key: Key) -> list[None]:
        numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
        (table, ids), y = (aval(atom).shape for atom in equation.invars), aval(equation.outvars[0])
        alias, width = inputs[0], len(table) - 1
        whole = tuple(sizes[1:]) == tuple(table[1:]) and sizes[0] == 1
        rows_first = numbers.start_index_map == (0,) and numbers.collapsed_slice_dims == (0,)
        offsets_last = numbers.offset_dims == tuple(range(len(y.shape) - width, len(y.shape)))
        in_order = alias is not None and alias.in_order and not numbers.operand_batching_dims
        if not (whole and rows_first and offsets_last and in_order and ids[-1] == 1):
            return self.otherwise_used(equation, inputs, "more or less than its rows is looked up")
        assert alias is not None
        rows = math.prod(ids[:-1])
        layers, steps = self._scans(alias)
        self.uses[key] = Use(alias.leaf, "rows", 0, (0,), True, rows, layers, y.shape, y.dtype, steps)
        return [None]

    def scan(self, equation: JaxprEqn, inputs: list[_Alias | None], key: Key) -> list[None]:
        """A scan that has parameters as a whole in every step, or slices them along their first axis."""
        if self.length is not None:
            return self.otherwise_used(equation, inputs, "a loop inside of a loop uses it")
        consts, carry = scan_parts(equation)
        self.read_off(inputs[consts : consts + carry], "a loop changes it")
        inside: list[_Alias | None] = [*inputs[:consts], *[None] * carry]
        for alias in inputs[consts + carry :]:
            sliced = alias is not None and alias.in_order and len(alias.order) > 1
            if alias is not None and sliced:
                self.scanned[alias.leaf] = equation.params["length"]
                inside.append(_Alias(alias.leaf, tuple(range(len(alias.order) - 1)), sliced=True))
            else:
                self.read_off([alias], "a loop takes numbers of it, not matrices")
                inside.append(None)
        body = replace(self, length=equation.params["length"])
        body.read_off(body.run_closed(equation.params["jaxpr"], inside, key), "a loop gives it back")
        return self.plain(equation, inputs, key)

    rules: ClassVar = {
        "convert_element_type": same,
        "copy": same,
        "copy_p": same,
        "dot_general": product,
        "gather": lookup,
        "scan": scan,
        "sharding_constraint": same,
        "transpose": transpose,
    }


@dataclass
class _Prober(Interpreter[Any]):
    """Computes a jaxpr, adding probes at uses of parameters."""

    uses: Mapping[Key, Use]
    probes: Mapping[Key, Array]
    captured: dict[Key, Array]
    whole: Callable[[Array], Array]

    def constant(self, value: Any) -> Any:
        return value

    def matters(self, equation: JaxprEqn, inputs: list[Any], key: Key) -> bool:
        return any(use[: len(key)] == key for use in self.uses)

    def plain(self, equation: JaxprEqn, inputs: list[Any], key: Key) -> list[Any]:
        return bind(equation, inputs)

    def product(self, equation: JaxprEqn, inputs: list[Any], key: Key) -> list[Array]:
        use, (contracted, _) = self.uses[key], equation.params["dimension_numbers"]
        at, other = use.operand, inputs[1 - use.operand]
        inputs = [self.whole(x) if i == at else x for i, x in enumerate(inputs)]
        if key not in self.probes:
            return bind(equation, inputs)
        free = [axis for axis in range(other.ndim) if axis not in contracted[1 - at]]
        a = jnp.transpose(other, (*free, *contracted[1 - at])).reshape(use.rows, -1)
        self.captured[key] = a if jnp.issubdtype(a.dtype, jnp.floating) else a.astype(use.dtype)
        # y has the axes of its first factor before those of its second; a probe has rows first
        probe = self.probes[key].T if at == 0 else self.probes[key]
        (y,) = bind(equation, inputs)
        return [y + probe.reshape(y.shape).astype(y.dtype)]

    def lookup(self, equation: JaxprEqn, inputs: list[Any], key: Key) -> list[Array]:
        table, ids = inputs
        if key not in self.probes:
            return [self.whole(y) for y in bind(equation, inputs)]
        probe = self.probes[key]
        ids = ids.reshape(self.uses[key].rows)
        inside = jnp.clip(ids, 0, min(len(table) - 1, jnp.iinfo(ids.dtype).max)).astype(ids.dtype)
        if equation.params["mode"] is not GatherScatterMode.CLIP:  # JAX drops gradients of ids beyond the table
            probe = jnp.where((ids == inside)[:, None], probe, 0)
        narrow = ids.dtype.itemsize < 4 or jnp.issubdtype(ids.dtype, jnp.unsignedinteger)
        self.captured[key] = inside.astype(jnp.int32) if narrow else inside  # as tiles count below 0 and up to the rows
        (y,) = bind(equation, inputs)
        return [self.whole(y) + probe.reshape(y.shape).astype(y.dtype)]

    def checkpoint(self, equation: JaxprEqn, inputs: list[Any], key: Key) -> list[Any]:
        def inside(inputs: list[Any], probes: Mapping[Key, Array]) -> tuple[list[Any], dict[Key, Array]]:
            prober = replace(self, probes=probes, captured={})
            return prober.run_closed(called(equation), inputs, key), prober.captured

        options = {name: equation.params[name] for name in ("prevent_cse", "policy")}
        outputs, captured = jax.checkpoint(inside, **options)(inputs, self._below(key))
        self.captured |= captured
        return outputs

    def scan(self, equation: JaxprEqn, inputs: list[Any], key: Key) -> list[Any]:
        params = equation.params
        first, carried = scan_parts(equation)
        last = first + carried

        def body(carry: list[Any], step: tuple[list[Any], Mapping[Key, Array]]) -> tuple[list[Any], Any]:
            prober = replace(self, probes=step[1], captured={})
            outputs = prober.run_closed(params["jaxpr"], [*inputs[:first], *carry, *step[0]], key)
            return outputs[: last - first], (outputs[last - first :], prober.captured)

        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        carry, (ys, captured) = jax.lax.scan(body, inputs[first:last], (inputs[last:], self._below(key)), **options)
        self.captured |= captured
        return [*carry, *ys]

    def _below(self, key: Key) -> dict[Key, Array]:
        """Probes of the equations inside of one."""
        return {use: probe for use, probe in self.probes.items() if use[: len(key)] == key}

    rules: ClassVar = {
        "checkpoint": checkpoint,
        "dot_general": product,
        "gather": lookup,
        "remat2": checkpoint,
        "scan": scan,
    }
