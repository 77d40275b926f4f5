"""Exact empirical neural tangent kernels: Θ(x, x') = J_f(x) J_f(x')ᵀ, of any function and any pytree of parameters.

theta = ntk(functionals.loss(model), model.params, batch)  # [N, N]

Gradients of matrices are contracted from their factors (see `linear_uses` and `contract`), so that the examples'
gradients, N × P values, are never all held. The kernel is that of Novak et al. (arXiv 2206.08720), at finite width.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lensjax.curvature.contract import Factor, Output, contract, einsum
from lensjax.curvature.linear_uses import Function, Key, Use, find_uses, with_probes
from lensjax.errors import InputError

_MEMORY = 4 * 2**30
_WITH_BACKWARD = 3  # times the factors' memory is what making them takes
_SHARE = 0.25  # of the memory limit that gradients formed at a time may take


@dataclass(frozen=True)
class _Plan:
    """A function traced once, and how its parameters' gradients are had.

    Attributes:
      uses: Of the parameters that are only multiplied by or looked up in.
      direct: Numbers of the leaves whose gradients are formed as they are.
      outputs: Shape of the function's value.
      layers: Length of the leading axis of the leaves that are stacked over the layers of a scan.
      axes: For the leaves with uses, which axes are the first group.
    """

    closed: Any
    uses: Mapping[Key, Use]
    direct: tuple[int, ...]
    outputs: tuple[int, ...]
    layers: Mapping[int, int]
    axes: Mapping[int, tuple[int, ...]]

    @property
    def count(self) -> int:
        """Number of outputs."""
        return math.prod(self.outputs)


def ntk(
    f: Function,
    params: Any,
    xs: Any,
    ys: Any | None = None,
    *,
    output: Output = "trace",
    memory_limit: int = _MEMORY,
    by_parameter: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """The empirical neural tangent kernel of f between the examples of xs, or between those of xs and ys.

    Args:
      f: (params, example) → array; the example is one of xs, without its leading axis.
      params: Pytree of floating-point arrays.
      xs, ys: Pytrees of arrays with a leading axis of N, and of M, examples.
      output: "trace" sums over outputs, "diagonal" keeps each output with itself, "full" all pairs of outputs.
      memory_limit: Bytes that may be used besides parameters, examples and the result.
      by_parameter: Give a dict with each parameter's part, whose sum the kernel is; its keys are paths, and parts of
        parameters stacked over layers have a leading axis of layers.
      progress: Called with how many blocks of pairs are done, and of how many.

    Returns:
      [N, M], [N, M, *outputs] or [N, M, *outputs, *outputs], in float32 or the wider type of f.

    Raises:
      InputError: parameters are not floating-point numbers, xs and ys do not match, f is not finite for an example, or
        the memory does not suffice for one pair of examples.
    """
    n, m = _examples(xs, "xs"), None if ys is None else _examples(ys, "ys")
    if ys is not None and jax.tree.map(_one, xs) != jax.tree.map(_one, ys):
        raise InputError("xs and ys hold examples of different shapes or types; give both the same fields and lengths.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InputError(f"Parameter {_name(path)} holds {leaf.dtype}; a kernel needs floating-point parameters.")
    plan = _plan(f, params, jax.tree.map(lambda x: x[0], xs))
    block = _block_size(plan, params, memory_limit, max(n, m or 0))
    factors = _factors_function(plan)

    def factors_of(examples: Any, start: int) -> Any:
        values, found = factors(params, jax.tree.map(lambda x: x[start : start + block], examples))
        _check_finite(values, start)
        return found

    sums = _Sums(plan, params, (n, n if m is None else m), output, by_parameter, symmetric=m is None)
    chunk_bytes = int(memory_limit * _SHARE)
    rows, columns = range(0, n, block), range(0, n if m is None else m, block)
    pairs = [(i, j) for i in rows for j in columns if m is not None or j >= i]
    a, row = None, -1
    for done, (i, j) in enumerate(pairs, 1):
        if i != row:
            a, row = factors_of(xs, i), i
        same = m is None and i == j
        b = a if same else factors_of(xs if m is None else ys, j)
        sums.add(a, b, i, j, chunk_bytes, same)
        if progress is not None:
            progress(done, len(pairs))
    return sums.result()


def ntk_vp(f: Function, params: Any, xs: Any) -> Callable[[Array], Array]:
    """v ↦ Θ v, without Θ: one backward and one forward product with the Jacobian, which is linearised once.

    v and Θ v have the shape of f over the examples: [N, *outputs].
    """
    _, push = jax.linearize(lambda p: jax.vmap(f, in_axes=(None, 0))(p, xs), params)
    pull = jax.linear_transpose(push, params)
    return jax.jit(lambda v: push(*pull(v)))


class _Sums:
    """The kernel as it is being made, block by block."""

    def __init__(
        self, plan: _Plan, params: Any, shape: tuple[int, int], output: Output, by_parameter: bool, *, symmetric: bool
    ) -> None:
        self.symmetric = symmetric
        self.plan, self.output, self.by_parameter, self.shape = plan, output, by_parameter, shape
        leaves = jax.tree_util.tree_leaves_with_path(params)
        self.names = [_name(path) for path, _ in leaves]
        self.sizes = [leaf.shape for _, leaf in leaves]
        self.parts: dict[str, np.ndarray] = {}

    def add(self, a: Any, b: Any, i: int, j: int, chunk_bytes: int, same: bool) -> None:
        """Add the pairs of a block of rows and one of columns, which begin at i and j."""
        for leaf, name in enumerate(self.names):
            layers = self.plan.layers.get(leaf)
            one, other = a[leaf], b[leaf]
            if isinstance(one, Array):
                part = _outer_layers(one, other, layers, self.output)
            else:
                matrix = self.sizes[leaf] if layers is None else self.sizes[leaf][1:]
                first = math.prod(matrix[axis] for axis in self.plan.axes[leaf])
                if len(one) == 1 and one[0].looks_up and layers is None:
                    one, other, first = _compact(one, other, same)
                part = _contract_layers(one, None if same else other, first, layers, self.output, chunk_bytes)
            self._put(name if self.by_parameter else "", np.asarray(part), i, j, same)

    def _put(self, name: str, part: np.ndarray, i: int, j: int, same: bool) -> None:
        if not self.by_parameter:
            part = part.sum(axis=0, keepdims=True)
        if name not in self.parts:
            self.parts[name] = np.zeros((part.shape[0], *self.shape, *part.shape[3:]), part.dtype)
        whole, (n, m) = self.parts[name], part.shape[1:3]
        whole[:, i : i + n, j : j + m] += part
        if self.symmetric and not same:
            turned = np.swapaxes(part, 1, 2)
            whole[:, j : j + m, i : i + n] += np.swapaxes(turned, 3, 4) if self.output == "full" else turned

    def result(self) -> Any:
        """The kernel, or the parts of each parameter."""
        tail = {"trace": 0, "diagonal": 1, "full": 2}[self.output]
        if self.symmetric:  # to the last bit
            turned = {name: np.swapaxes(part, 1, 2) for name, part in self.parts.items()}
            if self.output == "full":
                turned = {name: np.swapaxes(part, 3, 4) for name, part in turned.items()}
            self.parts = {name: (part + turned[name]) / 2 for name, part in self.parts.items()}

        def shaped(part: np.ndarray) -> np.ndarray:
            return part.reshape(*part.shape[: part.ndim - tail], *self.plan.outputs * tail)

        if not self.by_parameter:
            return shaped(self.parts[""][0])
        stacked = {self.names[leaf] for leaf in self.plan.layers}
        return {name: shaped(part if name in stacked else part[0]) for name, part in self.parts.items()}


def _plan(f: Function, params: Any, example: Any) -> _Plan:
    closed, uses, layers = find_uses(f, params, example)
    used = {use.leaf: use.axes for use in uses.values()}
    direct = tuple(i for i in range(len(jax.tree.leaves(params))) if i not in used)
    return _Plan(closed, uses, direct, closed.out_avals[0].shape, layers, used)


def _factors_function(plan: _Plan) -> Callable[[Any, Any], tuple[Array, list[Any]]]:
    """(params, examples) → values [N, outputs], and of each leaf its factors, or its gradients [N, outputs, …]."""

    def one(params: Any, example: Any) -> tuple[Array, list[Any]]:
        leaves, structure = jax.tree.flatten(params)
        probes = {key: jnp.zeros(_probe_shape(use), use.dtype) for key, use in plan.uses.items()}

        def g(probes: Any, direct: list[Array]) -> tuple[Array, Any]:
            mixed = list(leaves)
            for i, leaf in zip(plan.direct, direct, strict=True):
                mixed[i] = leaf
            value, found = with_probes(plan.closed, plan.uses, jax.tree.unflatten(structure, mixed), probes, example)
            return value.reshape(plan.count), found

        value, pull, found = jax.vjp(g, probes, [leaves[i] for i in plan.direct], has_aux=True)
        deltas, gradients = jax.vmap(pull)(jnp.eye(plan.count, dtype=value.dtype))
        made: list[Any] = [[] for _ in leaves]
        for i, gradient in zip(plan.direct, gradients, strict=True):
            made[i] = gradient
        for key, use in plan.uses.items():
            captured, delta = found[key], deltas[key]
            product = use.kind == "product" and not use.summed_first
            made[use.leaf].append(Factor(delta, captured) if product else Factor(captured, delta))
        return value, made

    return jax.jit(jax.vmap(one, in_axes=(None, 0)))


def _probe_shape(use: Use) -> tuple[int, ...]:
    flat = (use.rows, math.prod(use.shape) // use.rows)
    return flat if use.layers is None else (use.layers, *flat)


@partial(jax.jit, static_argnums=(2, 3))
def _outer_layers(a: Array, b: Array, layers: int | None, output: Output) -> Array:
    """Products of gradients [N, outputs, …] for every layer: [layers or 1, N, M, …]."""
    shape = (*a.shape[:2], layers or 1, -1)
    spec = {"trace": "nkhp,mkhp->hnm", "diagonal": "nkhp,mkhp->hnmk", "full": "nkhp,mlhp->hnmkl"}[output]
    return einsum(spec, a.reshape(shape), b.reshape(b.shape[0], *shape[1:]))


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _contract_layers(
    a: list[Factor], b: list[Factor] | None, first: int, layers: int | None, output: Output, chunk_bytes: int
) -> Array:
    """The kernel of every layer from factors; `b` is None where it is `a`."""
    if layers is None:
        return contract(a, a if b is None else b, first, output, chunk_bytes)[None]

    def layer(number: Array) -> Array:
        def take(factors: list[Factor]) -> list[Factor]:
            return [factor.layer(number) for factor in factors]

        one = take(a)
        return contract(one, one if b is None else take(b), first, output, chunk_bytes)

    parts: Array = jax.lax.map(layer, jnp.arange(layers))
    return parts


def _compact(a: list[Factor], b: list[Factor], same: bool) -> tuple[list[Factor], list[Factor], int]:
    """Factors of the rows that are looked up at all, numbered anew, and how many these are."""
    ids = [np.asarray(factor.left) for factor in (a[0], b[0])]
    present = np.unique(np.concatenate([x.ravel() for x in ids]))
    made = [[Factor(jnp.asarray(np.searchsorted(present, x)), f.right)] for x, f in zip(ids, (a[0], b[0]), strict=True)]
    return made[0], made[0] if same else made[1], -(-present.size // 64) * 64


def _block_size(plan: _Plan, params: Any, memory_limit: int, examples: int) -> int:
    """Examples whose factors are held at a time.

    Raises:
      InputError: the memory does not suffice for one pair of examples.
    """
    leaves = jax.tree.leaves(params)
    each: int = sum(plan.count * leaves[i].size * leaves[i].dtype.itemsize for i in plan.direct)
    for use in plan.uses.values():
        summed = leaves[use.leaf].size // (use.layers or 1) * use.rows // max(math.prod(use.shape), 1)
        values = (math.prod(use.shape) * plan.count + use.rows * max(summed, 1)) * (use.layers or 1)
        each += values * jnp.dtype(use.dtype).itemsize
    whole = int(memory_limit * (1 - _SHARE)) // (_WITH_BACKWARD * each)
    if whole >= examples:
        return examples
    block = int(memory_limit * (1 - _SHARE) // ((1 + _WITH_BACKWARD) * each))
    if block < 1:
        least = math.ceil((1 + _WITH_BACKWARD) * each / (1 - _SHARE))
        raise InputError(f"memory_limit is {memory_limit:,} bytes; pairs of these examples need {least:,} at least.")
    return block


def _examples(xs: Any, name: str) -> int:
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in map(np.asarray, jax.tree.leaves(xs))}
    if len(sizes) != 1 or 0 in sizes:
        raise InputError(f"The arrays of {name} need a leading axis of examples, of the same length in all.")
    return int(sizes.pop())


def _one(x: Any) -> tuple[Any, ...]:
    return np.shape(x)[1:], np.asarray(x).dtype.name


def _check_finite(values: Array, start: int) -> None:
    bad = np.flatnonzero(~np.isfinite(np.asarray(values, np.float64)).all(axis=1))
    if bad.size:
        raise InputError(f"The function is not finite for example {start + bad[0]}; leave it out, or mend it.")


def _name(path: Any) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
