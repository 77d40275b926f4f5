"""Functions of parameters and a batch: traced once, checked, and averaged over data sets a batch at a time."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.tree_util import Partial
from jaxtyping import Array

from lensjax.core.errors import InputError, NotFinite
from lensjax.core.pytrees import PyTree, numeric, path_name
from lensjax.curvature.jaxpr.program import Function, Program, traced_program

Layout = tuple[NamedSharding | None, ...]


class NoForwardDerivativeError(InputError):
    """A function has no derivative that JAX can push forward."""


def count_examples(batch: PyTree) -> float:
    """Length of the leading axis of a batch's arrays: the weight of means over examples.

    Raises:
      InputError: they do not have one of the same length.
    """
    lengths = {np.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if np.ndim(leaf)}
    if len(lengths) != 1:
        raise InputError("The arrays of a batch need a leading axis of examples, of the same length in all.")
    return float(lengths.pop())


@dataclass(frozen=True)
class Batches:
    """A data set as batches, one of which at a time is on the devices.

    A product over it is Σ_b w_b H_b v / Σ_b w_b. That is the product of the mean over the whole data set if a batch's
    loss is a mean over the things that its weight counts: by default examples.

    Attributes:
      batches: Read anew for every product: a list, or another iterable that can be read again. Batches of one shape
        are compiled once.
      weight: Gives the weight of a batch; batches of weight 0 are skipped.

    Raises:
      InputError: the batches can be read only once.
    """

    batches: Iterable[PyTree]
    weight: Callable[[PyTree], float] = count_examples

    def __post_init__(self) -> None:
        if iter(self.batches) is self.batches:
            raise InputError("batches can be read only once; give a list, or an iterable that can be read again.")


class Shares:
    """The batches of a data set with the share of each in the mean, and whether their losses were seen to be finite.

    A batch that is not `Batches` has the whole mean.

    Raises:
      InputError: the data hold no examples.
    """

    def __init__(self, data: PyTree) -> None:
        self.batches: Iterable[PyTree] = data.batches if isinstance(data, Batches) else [data]
        if isinstance(data, Batches):
            weights = np.array([data.weight(numeric(batch)) for batch in data.batches], np.float64)
        else:
            empty = any(0 in np.shape(leaf)[:1] for leaf in jax.tree.leaves(numeric(data)))
            weights = np.array([0.0 if empty else 1.0])
        if not (weights.sum() > 0 and np.all(weights >= 0)):
            raise InputError("The data hold no examples, or none with a weight; give batches that hold some.")
        self.shares = weights / weights.sum()
        self.checked = False

    def __iter__(self) -> Iterator[tuple[int, float, PyTree]]:
        """Number, share and batch, where the share is not 0."""
        for number, (share, batch) in enumerate(zip(self.shares, self.batches, strict=True)):
            if share > 0:
                yield number, float(share), numeric(batch)

    def each(self, compute: Callable[[PyTree], tuple[Array, PyTree]]) -> Iterator[tuple[float, Array, PyTree]]:
        """Share of every batch, with the value and the part that are computed of it.

        At the end values are checked to be finite, unless they are being traced or were checked before.

        Raises:
          NotFinite: the loss of a batch is not finite.
        """
        values = {}
        for number, share, one in self:
            values[number], part = compute(one)
            yield share, values[number], part
        if self.checked or any(isinstance(value, jax.core.Tracer) for value in values.values()):
            return
        for number, value in values.items():
            bad = np.flatnonzero(~np.isfinite(np.atleast_1d(np.asarray(value, np.float64))))
            if bad.size:
                example = f", example {bad[0]}" if np.ndim(value) else ""
                raise NotFinite(f"The loss of batch {number}{example} is not finite; leave it out, or mend it.")
        self.checked = True


def scanned_layers(f: Function, params: PyTree, batch: PyTree) -> tuple[int | None, ...]:
    """The length of every leaf's leading axis if a scan in f(params, batch) slices it, or None."""
    program, _ = traced_program(f, params, numeric(batch))
    return tuple(program.uses.scanned.get(number) for number in range(program.parameters))


def kept(push: Callable[[PyTree], PyTree], like: PyTree) -> Partial:
    """A linear map of vectors as a pytree of the arrays that it keeps, which compiled code can return and be handed."""
    closed = jax.make_jaxpr(push)(like)
    return Partial(Program(closed.jaxpr, jax.tree.structure(like)), closed.consts)


def mean(parts: Iterable[tuple[float, PyTree]]) -> PyTree:
    """Σ share · part, summed in float32 or wider."""
    total = like = None
    for share, part in parts:
        total, like = (part if share == 1 else _add(total, part, share)), part
    return jax.tree.map(lambda x, y: x.astype(y.dtype), total, like)


@partial(jax.jit, donate_argnums=0)
def _add(total: PyTree, part: PyTree, share: float) -> PyTree:
    scaled = jax.tree.map(lambda x: share * x.astype(wide(x.dtype)), part)
    return scaled if total is None else jax.tree.map(jnp.add, total, scaled)


def gathered(compute: Callable[[PyTree], tuple[Array, PyTree]], batch: PyTree) -> PyTree:
    """Parts of batches whose values and parts are computed: their mean if values are scalars, else all examples'."""
    shares, values, parts = zip(*Shares(batch).each(compute), strict=True)
    if any(value.ndim for value in values):
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *parts)
    return mean(zip(shares, parts, strict=True))


def check_params(params: PyTree) -> None:
    """Raise InputError where a parameter is not a floating-point array, or there is none."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise InputError("There are no parameters; give a pytree with at least one array.")
    for path, leaf in leaves:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            name = path_name(path) or "params"
            raise InputError(f"Parameter {name} holds {dtype}; curvature needs floating-point parameters.")


def check_vector(params: PyTree, v: PyTree) -> None:
    """Raise InputError, naming the leaf, where a vector does not have the structure, shapes and types of params."""
    wanted, given = _described(params), _described(v)
    for name in wanted.keys() | given.keys():
        if name not in given:
            raise InputError(f"The vector has no leaf '{name}'; give it the structure of the parameters.")
        if name not in wanted:
            raise InputError(f"The vector has a leaf '{name}' and the parameters have not; give it their structure.")
    structures: list[Any] = [jax.tree.structure(tree) for tree in (params, v)]
    if structures[0] != structures[1]:
        raise InputError("The vector is made of other containers than the parameters; give it their structure.")
    for name, (shape, dtype) in wanted.items():
        if given[name] != (shape, dtype):
            other = "{1}{0}".format(*given[name])
            raise InputError(
                f"Leaf '{name}' of the vector is {other} and the parameter {dtype}{shape}; make them alike."
            )


def layout(params: PyTree) -> Layout:
    """Shardings of parameters over several devices; None for parameters on one."""
    shardings = [
        None if isinstance(x, jax.core.Tracer) else getattr(x, "sharding", None) for x in jax.tree.leaves(params)
    ]
    return tuple(s if isinstance(s, NamedSharding) and s.mesh.size > 1 else None for s in shardings)


def laid_out(v: PyTree, how: Layout) -> PyTree:
    """A vector with the shardings of parameters."""
    leaves, structure = jax.tree.flatten(v)
    placed = [
        leaf if sharding is None else jax.lax.with_sharding_constraint(leaf, sharding)
        for leaf, sharding in zip(leaves, how, strict=True)
    ]
    return jax.tree.unflatten(structure, placed)


@contextmanager
def explained(forward: str, reverse: str) -> Iterator[None]:
    """Says in a sentence which function JAX cannot differentiate, and which of ours can.

    Args:
      forward, reverse: The way for functions without a forward derivative, and without a backward one.
    """
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, NotImplementedError) as error:
        if "custom_vjp" in str(error) or "custom_lin" in str(error):
            message = f"The function has a custom_vjp, so no forward derivative is known; {forward}."
            raise NoForwardDerivativeError(message) from error
        if "Reverse-mode differentiation does not work" in str(error):
            raise InputError(f"The function has a loop that cannot be run backward; {reverse}.") from error
        raise


@partial(jax.jit, static_argnums=0)
def layer_dots(layers: tuple[int | None, ...], a: PyTree, b: PyTree) -> list[Array]:
    """Inner products leaf by leaf, or layer by layer."""
    return [
        (x.astype(wide(x.dtype)) * y).sum(axis=None if length is None else tuple(range(1, x.ndim)))
        for length, x, y in zip(layers, jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]


def wide(dtype: Any) -> Any:
    """The type in which sums are taken: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)


def _described(tree: PyTree) -> dict[str, tuple[tuple[int, ...], Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): (np.shape(leaf), jnp.result_type(leaf)) for path, leaf in leaves}
