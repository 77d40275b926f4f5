"""Lanczos' method on pytrees: vectors are never made one array, and lie on devices as parameters do."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int
from numpy.typing import DTypeLike, NDArray

from lensjax.core.errors import NotFinite
from lensjax.core.pytrees import PyTree
from lensjax.curvature.operator import LinearOperator
from lensjax.curvature.streaming import Layout, laid_out, layout, wide

Kind = Literal["normal", "signs"]
_BITS = jnp.dtype("uint16")  # of bfloat16
_ROUNDING = 50  # times a type's precision: smaller numbers, relative to a matrix, are rounding
_CANCELLED = 0.7  # share of its norm that a vector must keep in orthogonalisation, which is repeated otherwise


def draw(kind: Kind, key: Array, like: PyTree) -> PyTree:
    """A random vector, in float32 or wider; the same on any number of devices."""
    return _draw(kind, layout(like), key, like)


def multiplied(operator: LinearOperator, v: PyTree) -> PyTree:
    """A v in float32 or wider, with v rounded to the types of the operator's vectors."""
    rounded = jax.tree.map(lambda x, leaf: x.astype(jnp.result_type(leaf)), v, operator.like)
    return jax.tree.map(lambda x: x.astype(wide(x.dtype)), operator(rounded))


def norm(v: PyTree) -> float:
    """The Euclidean norm.

    Raises:
      NotFinite: it is not finite.
    """
    return float(np.sqrt(finite(np.asarray(_dot(v, v), np.float64))))


@jax.jit
def scaled(v: PyTree, factor: float) -> PyTree:
    """factor · v."""
    return jax.tree.map(lambda x: x * jnp.asarray(factor, x.dtype), v)


def finite(values: NDArray[Any]) -> NDArray[Any]:
    """The values.

    Raises:
      NotFinite: not all are finite.
    """
    if not np.isfinite(values).all():
        raise NotFinite("A product is not finite; compute it for parameters and data whose loss is finite.")
    return values


class Basis:
    """Orthonormal vectors with the shapes and shardings of parameters, stacked: leaves are [size, ...].

    Attributes:
      vectors: The pytree, of which the first `count` are in use; bfloat16 is held as uint16, as CPUs would make float32
        of the whole stack to take one vector from it.
      rounding: Numbers smaller than this, relative to the norm of a matrix, count as 0.
    """

    def __init__(self, like: PyTree, size: int, dtype: DTypeLike | None = None) -> None:
        dtypes = [wide(jnp.result_type(leaf)) for leaf in jax.tree.leaves(like)]
        self.rounding = _ROUNDING * max((float(jnp.finfo(each).eps) for each in dtypes), default=0.0)
        self.count = 0
        self.dtype = jnp.result_type(*dtypes)
        held = None if dtype is None else jnp.dtype(dtype)
        self.vectors = _zeros(layout(like), size, _BITS if held == jnp.bfloat16 else held, like)

    def __getitem__(self, number: int) -> PyTree:
        return _take(self.dtype.name, self.vectors, number)

    def append(self, v: PyTree) -> None:
        """Add a vector that is orthogonal to those before, and of norm 1."""
        self.vectors = _put(self.vectors, self.count, v)
        self.count += 1

    def dots(self, v: PyTree) -> Float[np.ndarray, " count"]:
        """Inner products with all vectors."""
        return np.asarray(_dots(self.vectors, self.count, v), np.float64)[: self.count]

    def orthogonalized(self, v: PyTree) -> tuple[PyTree, Float[np.ndarray, " count"], float]:
        """v without its parts along the vectors, these parts, and the norm of the rest.

        By modified Gram–Schmidt, twice if much of v is lost ("twice is enough", Parlett 1998, section 6.9).
        """
        after, total = norm(v), np.zeros(self.count)
        if not self.count:
            return v, total, after
        for _ in range(3):
            before = after
            v, parts = _orthogonalized(self.vectors, self.count, v)
            total += np.asarray(parts, np.float64)[: self.count]
            after = norm(v)
            if after > _CANCELLED * before:
                break
        return v, total, after

    def rotated(self, weights: Float[np.ndarray, "count k"]) -> PyTree:
        """Combinations of the vectors, stacked, in float32 or wider."""
        return jax.tree.map(lambda leaf: _combined(leaf, jnp.asarray(weights.T)), self.vectors)

    def rotate(self, weights: Float[np.ndarray, "count k"]) -> None:
        """Keep combinations of the vectors in their place; a leaf at a time, so that little is held besides."""
        leaves, structure = jax.tree.flatten(self.vectors)
        self.vectors = None
        for number, leaf in enumerate(leaves):
            leaves[number] = _combined_in_place(leaf, jnp.asarray(weights.T))
        self.vectors, self.count = jax.tree.unflatten(structure, leaves), weights.shape[1]


class Lanczos:
    """Lanczos' recursion with full reorthogonalisation: A Q = Q T + norm · next ⊗ e_last, a product at a time.

    The next vector and the one before it are held besides the basis, whose type may be narrower. So rounding the basis
    spoils the orthogonality of vectors a little, and not the recursion.

    Attributes:
      count: Vectors in the basis.
      products: Number of products taken.
      norm: Of the rest of the last product; 0 if that is rounding only, and the vectors span an invariant space.
      scale: The largest norm of a product so far: a lower bound on that of A.
    """

    def __init__(
        self,
        operator: LinearOperator,
        start: PyTree,
        size: int,
        dtype: DTypeLike | None = None,
        *,
        orthogonal: bool = True,
    ) -> None:
        self.operator = operator
        self.basis = Basis(operator.like, size if orthogonal else 0, dtype)
        self.matrix = np.zeros((size, size))
        self.count = self.products = 0
        self.norm = self.scale = 0.0
        self.orthogonal = orthogonal
        self.begin(start)

    def begin(self, start: PyTree) -> None:
        """Go on from a vector, without its parts along the basis."""
        q, _, length = self.basis.orthogonalized(start)
        self.next, self.previous, self.norm = scaled(q, 1 / length), None, 0.0

    def step(self) -> None:
        """Take a product, and make the next vector of it.

        Raises:
          NotFinite: the product is not finite.
        """
        j, q = self.count, self.next
        if self.orthogonal:
            self.basis.append(q)
        w = multiplied(self.operator, q)
        self.scale = max(self.scale, norm(w))
        previous = q if self.previous is None else self.previous
        w, along = _recurred(w, q, previous, 0.0 if self.previous is None else self.norm)
        self.matrix[j, j] = along
        if self.previous is not None:
            self.matrix[j - 1, j] = self.norm
        w, parts, left = self.basis.orthogonalized(w)
        if self.orthogonal:
            self.matrix[: j + 1, j] += parts
        self.matrix[j, :j] = self.matrix[:j, j]
        self.norm = left if left > self.basis.rounding * self.scale else 0.0
        self.previous, self.next = q, scaled(w, 1 / self.norm) if self.norm else None
        self.count += 1
        self.products += 1

    def ritz(self) -> tuple[Float[np.ndarray, " count"], Float[np.ndarray, "count count"]]:
        """Eigenvalues of A on the span of the basis, and eigenvectors in it, as columns."""
        values, vectors = np.linalg.eigh(self.matrix[: self.count, : self.count])
        return values, vectors

    def restart(self, values: Float[np.ndarray, " k"], vectors: Float[np.ndarray, "count k"]) -> None:
        """Keep some Ritz vectors in place of the basis; the next product gives the next vector's coupling to them."""
        self.basis.rotate(vectors)
        self.count = len(values)
        self.matrix[:] = 0
        self.matrix[np.arange(self.count), np.arange(self.count)] = values
        self.previous = None


@partial(jax.jit, static_argnums=(0, 1))
def _draw(kind: Kind, how: Layout, key: Array, like: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(like)
    sample = jax.random.normal if kind == "normal" else jax.random.rademacher
    keys = jax.random.split(key, len(leaves))
    drawn = [sample(each, x.shape, wide(jnp.result_type(x))) for each, x in zip(keys, leaves, strict=True)]
    return laid_out(jax.tree.unflatten(structure, drawn), how)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _zeros(how: Layout, size: int, dtype: Any, like: PyTree) -> PyTree:
    made = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), dtype or wide(jnp.result_type(x))), like)
    stacked = tuple(None if each is None else NamedSharding(each.mesh, PartitionSpec(None, *each.spec)) for each in how)
    return laid_out(made, stacked)


@partial(jax.jit, donate_argnums=0)
def _put(vectors: PyTree, number: Int[Array, ""], v: PyTree) -> PyTree:
    def put(stack: Array, x: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(stack, _packed(x, stack.dtype), number, 0)

    return jax.tree.map(put, vectors, v)


@partial(jax.jit, static_argnums=0)
def _take(dtype: str, vectors: PyTree, number: Int[Array, ""]) -> PyTree:
    return jax.tree.map(lambda x: x.astype(dtype), _at(vectors, number))


@jax.jit
def _dot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    products = jax.tree.map(lambda x, y: (x * y.astype(x.dtype)).sum(), a, b)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


@jax.jit
def _dots(vectors: PyTree, count: Int[Array, ""], v: PyTree) -> Float[Array, " size"]:
    size = jax.tree.leaves(vectors)[0].shape[0]
    zeros = jnp.zeros(size, _dot(v, v).dtype)
    return jax.lax.fori_loop(0, count, lambda i, c: c.at[i].set(_dot(v, _at(vectors, i))), zeros)


@partial(jax.jit, donate_argnums=2)
def _orthogonalized(vectors: PyTree, count: Int[Array, ""], v: PyTree) -> tuple[PyTree, Float[Array, " size"]]:
    size = jax.tree.leaves(vectors)[0].shape[0]

    def remove(i: Array, carry: tuple[PyTree, Array]) -> tuple[PyTree, Array]:
        left, parts = carry
        q = _at(vectors, i)
        part = _dot(left, q)
        left = jax.tree.map(lambda x, y: x - part.astype(x.dtype) * y.astype(x.dtype), left, q)
        return left, parts.at[i].set(part)

    return jax.lax.fori_loop(0, count, remove, (v, jnp.zeros(size, _dot(v, v).dtype)))


@jax.jit
def _recurred(w: PyTree, q: PyTree, previous: PyTree, coupling: float) -> tuple[PyTree, Float[Array, ""]]:
    """w without its parts along the last vector and, as is known, the one before it; and the former part."""
    along = _dot(w, q)

    def less(x: Array, y: Array, z: Array) -> Array:
        return x - along.astype(x.dtype) * y - jnp.asarray(coupling, x.dtype) * z

    return jax.tree.map(less, w, q, previous), along


def _at(vectors: PyTree, i: Int[Array, ""]) -> PyTree:
    return jax.tree.map(lambda stack: _unpacked(jax.lax.dynamic_index_in_dim(stack, i, 0, False)), vectors)


def _packed(x: Array, dtype: Any) -> Array:
    return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), _BITS) if dtype == _BITS else x.astype(dtype)


def _unpacked(x: Array) -> Array:
    """Numbers in float32 or wider."""
    numbers = jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == _BITS else x
    return numbers.astype(wide(numbers.dtype))


@jax.jit
def _combined(stack: Array, weights: Float[Array, "k count"]) -> Array:
    """weights @ stack[:count], one after the other."""
    one = jax.eval_shape(_unpacked, stack)
    weights = weights.astype(one.dtype)

    def combine(row: Array) -> Array:
        def add(i: Array, total: Array) -> Array:
            return total + row[i] * _at(stack, i)

        return jax.lax.fori_loop(0, len(row), add, jnp.zeros(one.shape[1:], one.dtype))

    return jax.lax.map(combine, weights)


@partial(jax.jit, donate_argnums=0)
def _combined_in_place(stack: Array, weights: Float[Array, "k count"]) -> Array:
    combined = jax.lax.map(lambda row: _packed(_combined(stack, row[None])[0], stack.dtype), weights)
    return jax.lax.dynamic_update_slice_in_dim(stack, combined, 0, 0)
