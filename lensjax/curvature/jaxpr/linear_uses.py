"""Where a function multiplies by its parameters, so that gradients of a parameter need not be formed to be contracted.

A function of parameters and an example is traced once. Wherever a parameter is a factor of a matrix product, y = a · W,
or rows of it are looked up, y = W[ids], a probe of the shape of y is added to y. The gradient with respect to W is then
a sum over rows r of a[r] ⊗ δ[r], with δ the gradient with respect to the probe, and the same for a lookup with a
one-hot row in place of a[r]. All else, such as biases and norms, is differentiated as it is.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.extend.core import Literal as JaxprLiteral
from jaxtyping import Array

Key = tuple[int, ...]  # of equations: that of the function, that of the body of a scan in it, and so on
Function = Callable[[Any, Any], Array]


@dataclass(frozen=True)
class Use:
    """A place where a parameter is a factor of a product, or is looked up in.

    The parameter's axes, without that of a scan over layers, are in two groups: the first of them and what goes with
    it, and the others. A product sums over one group and leaves the other.

    Attributes:
      leaf: Number of the parameter among the leaves of the pytree.
      kind: "product" or "rows".
      axes: The axes of the parameter in the first group.
      summed_first: Whether a product sums over the first group.
      rows: Rows of a, of δ and of ids.
      layers: Length of the scan that it is in; None outside of one.
      shape, dtype: Of the probe, without the axis of layers.
    """

    leaf: int
    kind: Literal["product", "rows"]
    axes: tuple[int, ...]
    summed_first: bool
    rows: int
    layers: int | None
    shape: tuple[int, ...]
    dtype: Any


@dataclass(frozen=True)
class _Alias:
    """A value that is a parameter with its axes permuted: axis i of the value is axis order[i] of the parameter."""

    leaf: int
    order: tuple[int, ...]


def find_uses(f: Function, params: Any, example: Any) -> tuple[ClosedJaxpr, dict[Key, Use], dict[int, int]]:
    """The jaxpr of f(params, example), and its uses of parameters all of whose uses are products or lookups.

    Also, for leaves that a scan slices, the length of their first axis.
    """
    closed = jax.make_jaxpr(f)(params, example)
    leaves = jax.tree.leaves(params)
    search = _Walk({}, set(range(len(leaves))), adds=False)
    inputs = [*leaves, *jax.tree.leaves(example)]
    aliases = [_Alias(i, tuple(range(leaf.ndim))) for i, leaf in enumerate(leaves)]
    jax.eval_shape(lambda *args: search.run(closed.jaxpr, closed.consts, args, aliases, ())[0], *inputs)
    groups: dict[int, set[tuple[tuple[int, ...], int | None]]] = {}
    for use in search.uses.values():
        groups.setdefault(use.leaf, set()).add((use.axes, use.layers))
    plain = {leaf for leaf, kinds in groups.items() if len(kinds) == 1} - search.otherwise
    return closed, {key: use for key, use in search.uses.items() if use.leaf in plain}, search.scanned


def with_probes(
    closed: ClosedJaxpr, uses: Mapping[Key, Use], params: Any, probes: Mapping[Key, Array], example: Any
) -> tuple[Array, dict[Key, Array]]:
    """The function's value where probes are added, and for every use a [rows, summed] or ids [rows]."""
    leaves = jax.tree.leaves(params)
    wanted = {use.leaf for use in uses.values()}
    aliases = [_Alias(i, tuple(range(x.ndim))) if i in wanted else None for i, x in enumerate(leaves)]
    walk = _Walk(probes, wanted, adds=True)
    inputs = [*leaves, *jax.tree.leaves(example)]
    (value,), found = walk.run(closed.jaxpr, closed.consts, inputs, aliases, ())
    return value, found


class _Walk:
    """Evaluates a jaxpr, noting or probing what it does with parameters."""

    def __init__(self, probes: Mapping[Key, Array], wanted: set[int], *, adds: bool) -> None:
        self.probes, self.wanted, self.adds = probes, wanted, adds
        self.uses: dict[Key, Use] = {}
        self.otherwise: set[int] = set()
        self.scanned: dict[int, int] = {}
        self.layers: int | None = None

    def run(
        self,
        jaxpr: Jaxpr,
        consts: Sequence[Any],
        args: Sequence[Any],
        aliases: Sequence[_Alias | None],
        key: Key,
        probes: Mapping[Key, Array] | None = None,
    ) -> tuple[list[Any], dict[Key, Array]]:
        """Values of the outputs, and what was found at each use."""
        probes = self.probes if probes is None else probes
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        values |= dict(zip(jaxpr.invars, args, strict=True))
        known = {var: alias for var, alias in zip(jaxpr.invars, aliases, strict=False) if alias is not None}
        found: dict[Key, Array] = {}

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, JaxprLiteral) else values[atom]

        for number, equation in enumerate(jaxpr.eqns):
            here = (*key, number)
            inputs = [read(atom) for atom in equation.invars]
            about = [None if isinstance(atom, JaxprLiteral) else known.get(atom) for atom in equation.invars]
            outputs, captured, alias = self._equation(equation, inputs, about, here, probes)
            values |= dict(zip(equation.outvars, outputs, strict=True))
            found |= captured
            if alias is not None:
                known[equation.outvars[0]] = alias
        for atom in jaxpr.outvars:
            if not isinstance(atom, JaxprLiteral) and atom in known:
                self.otherwise.add(known[atom].leaf)
        return [read(atom) for atom in jaxpr.outvars], found

    def _equation(
        self,
        equation: JaxprEqn,
        inputs: list[Any],
        aliases: list[_Alias | None],
        key: Key,
        probes: Mapping[Key, Array],
    ) -> tuple[list[Any], dict[Key, Array], _Alias | None]:
        name, params = equation.primitive.name, equation.params
        touched = [alias for alias in aliases if alias is not None]
        if touched:
            alias = aliases[0]
            if name == "transpose" and alias is not None:
                order = tuple(alias.order[axis] for axis in params["permutation"])
                return _bind(equation, inputs), {}, _Alias(alias.leaf, order)
            if name in ("convert_element_type", "copy", "copy_p", "sharding_constraint") and alias is not None:
                return _bind(equation, inputs), {}, alias
            if name == "dot_general" and len(touched) == 1:
                done = self._product(equation, inputs, aliases, key, probes)
                if done is not None:
                    return *done, None
            if name == "gather" and alias is not None and len(touched) == 1:
                done = self._lookup(equation, inputs, alias, key, probes)
                if done is not None:
                    return *done, None
            if name in ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call"):
                inner = params.get("jaxpr", params.get("call_jaxpr"))
                return *self._call(name, params, inner, inputs, aliases, key, probes), None
            if name == "scan" and self.layers is None:
                return *self._scan(params, inputs, aliases, key, probes), None
            self.otherwise |= {alias.leaf for alias in touched}
        return _bind(equation, inputs), {}, None

    def _product(
        self,
        equation: JaxprEqn,
        inputs: list[Any],
        aliases: list[_Alias | None],
        key: Key,
        probes: Mapping[Key, Array],
    ) -> tuple[list[Any], dict[Key, Array]] | None:
        contracted, batched = equation.params["dimension_numbers"]
        at = 0 if aliases[0] is not None else 1
        alias, other = aliases[at], inputs[1 - at]
        if alias is None or batched[at]:
            return None
        summed = tuple(alias.order[axis] for axis in contracted[at])
        left = tuple(alias.order[axis] for axis in range(len(alias.order)) if axis not in contracted[at])
        if summed != tuple(sorted(summed)) or left != tuple(sorted(left)) or not left or not summed:
            return None
        (y,) = _bind(equation, inputs)
        free = [axis for axis in range(other.ndim) if axis not in contracted[1 - at]]
        rows = math.prod(other.shape[axis] for axis in free)
        first = summed if summed[0] < left[0] else left
        use = Use(alias.leaf, "product", first, first == summed, rows, self.layers, y.shape, y.dtype)
        # y has the axes of its first factor before those of its second; a probe has rows first
        a = jnp.transpose(other, (*free, *contracted[1 - at])).reshape(rows, -1)
        y, captured = self._probe(use, y, a, key, probes, rows_last=at == 0)
        return [y], captured

    def _lookup(
        self, equation: JaxprEqn, inputs: list[Any], alias: _Alias, key: Key, probes: Mapping[Key, Array]
    ) -> tuple[list[Any], dict[Key, Array]] | None:
        numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
        table, ids = inputs
        whole = tuple(sizes[1:]) == table.shape[1:] and sizes[0] == 1
        rows_first = numbers.start_index_map == (0,) and numbers.collapsed_slice_dims == (0,)
        width = table.ndim - 1
        (y,) = _bind(equation, inputs)
        offsets_last = numbers.offset_dims == tuple(range(y.ndim - width, y.ndim))
        in_order = alias.order == tuple(range(table.ndim)) and not numbers.operand_batching_dims
        if not (whole and rows_first and offsets_last and in_order and ids.shape[-1] == 1):
            return None
        rows = math.prod(ids.shape[:-1])
        use = Use(alias.leaf, "rows", (0,), True, rows, self.layers, y.shape, y.dtype)
        y, captured = self._probe(use, y, ids.reshape(rows), key, probes, rows_last=False)
        return [y], captured

    def _probe(
        self, use: Use, y: Any, captured: Any, key: Key, probes: Mapping[Key, Array], *, rows_last: bool
    ) -> tuple[Any, dict[Key, Array]]:
        """Add the probe, which is [rows, the other axes of the parameter], to y."""
        if not self.adds:
            self.uses[key] = use
            return y, {}
        if use.leaf not in self.wanted:
            return y, {}
        probe = probes[key]
        if rows_last:
            probe = probe.T
        return y + probe.reshape(y.shape).astype(y.dtype), {key: captured}

    def _call(
        self,
        name: str,
        params: Mapping[str, Any],
        inner: Any,
        inputs: list[Any],
        aliases: list[_Alias | None],
        key: Key,
        probes: Mapping[Key, Array],
    ) -> tuple[list[Any], dict[Key, Array]]:
        jaxpr, consts = (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())

        def call(args: list[Any], own: Mapping[Key, Array]) -> tuple[list[Any], dict[Key, Array]]:
            return self.run(jaxpr, consts, args, aliases, key, own)

        own = {k: v for k, v in probes.items() if k[: len(key)] == key}
        if name in ("remat2", "checkpoint") and self.adds:
            call = jax.checkpoint(call, prevent_cse=params["prevent_cse"], policy=params["policy"])
        return call(inputs, own)

    def _scan(
        self,
        params: Mapping[str, Any],
        inputs: list[Any],
        aliases: list[_Alias | None],
        key: Key,
        probes: Mapping[Key, Array],
    ) -> tuple[list[Any], dict[Key, Array]]:
        """A scan whose parameters are sliced along their first axis, one slice for each step."""
        constant, carried = params["num_consts"], params["num_carry"]
        consts, init, xs = inputs[:constant], inputs[constant : constant + carried], inputs[constant + carried :]
        self.otherwise |= {alias.leaf for alias in aliases[: constant + carried] if alias is not None}
        inside: list[_Alias | None] = [None] * (constant + carried)
        for alias in aliases[constant + carried :]:
            kept = alias is not None and alias.order == tuple(range(len(alias.order))) and len(alias.order) > 1
            if alias is not None and not kept:
                self.otherwise.add(alias.leaf)
            if alias is not None and kept:
                self.scanned[alias.leaf] = params["length"]
            inside.append(_Alias(alias.leaf, tuple(range(len(alias.order) - 1))) if alias and kept else None)
        closed = params["jaxpr"]
        own = {k: v for k, v in probes.items() if k[: len(key)] == key}

        def body(carry: list[Any], step: tuple[list[Any], dict[Key, Array]]) -> tuple[list[Any], Any]:
            sliced, probe = step
            outputs, found = self.run(closed.jaxpr, closed.consts, [*consts, *carry, *sliced], inside, key, probe)
            return outputs[:carried], (outputs[carried:], found)

        self.layers = params["length"]
        carry, (ys, found) = jax.lax.scan(
            body, list(init), (list(xs), own), length=params["length"], reverse=params["reverse"]
        )
        self.layers = None
        return [*carry, *ys], found


def _bind(equation: JaxprEqn, inputs: list[Any]) -> list[Any]:
    found = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
    return list(found) if equation.primitive.multiple_results else [found]
