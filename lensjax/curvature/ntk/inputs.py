"""Examples and parameters as `ntk` takes them: of any kind that JAX can trace, on meshes of any kind."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jaxtyping import Array

from lensjax.core.errors import InputError, NotFinite
from lensjax.core.pytrees import PyTree


def count_examples(xs: PyTree, name: str) -> int:
    """The length of the leading axis of the arrays of xs.

    Raises:
      InputError: they do not have one of the same length, or hold keys whose numbers JAX draws differently for several
        examples at once.
    """
    if any("rbg" in str(leaf.dtype) for leaf in jax.tree.leaves(xs) if hasattr(leaf, "dtype")):
        raise InputError(
            f"{name} holds keys of rbg, whose numbers are others for several examples at once; make them with "
            "jax.random.key(seed, impl='threefry2x32')."
        )
    sizes = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(xs)}
    if len(sizes) != 1 or 0 in sizes:
        raise InputError(f"The arrays of {name} need a leading axis of examples, of the same length in all.")
    return int(sizes.pop())


def kind(x: Any) -> tuple[Any, ...]:
    """Shape and type of each example of an array of them."""
    return np.shape(x)[1:], str(on_host(x).dtype)


def on_host(x: Any) -> Any:
    """The array in NumPy, or a key of random numbers, which stays JAX's."""
    is_key = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.extended)
    return x if is_key else np.asarray(x)


def one_after_another(x: Any, y: Any) -> Any:
    """The examples of both arrays."""
    x, y = on_host(x), on_host(y)
    return np.concatenate([x, y]) if isinstance(x, np.ndarray) else jnp.concatenate([x, y])


@contextmanager
def automatic_axes(params: PyTree) -> Iterator[PyTree]:
    """The parameters, on a mesh of Auto axes where theirs has Explicit ones, as `jax.make_mesh` makes them."""

    def mesh_of(leaf: Any) -> Any:
        sharding = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
        return sharding.mesh if isinstance(sharding, NamedSharding) else None

    def auto(mesh: Mesh | AbstractMesh) -> Any:
        return mesh.update(axis_types=(AxisType.Auto,) * len(mesh.axis_names))

    def placed(leaf: Any) -> Any:
        mesh = mesh_of(leaf)
        if mesh is None:
            return leaf
        sharding = NamedSharding(auto(mesh), leaf.sharding.spec)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return jax.device_put(leaf, sharding)

    meshes = [mesh for mesh in map(mesh_of, jax.tree.leaves(params)) if mesh is not None]
    if not any(AxisType.Explicit in mesh.axis_types for mesh in meshes):
        yield params
        return
    with jax.set_mesh(auto(meshes[0])):
        yield jax.tree.map(placed, params)


def free_memory() -> int:
    """Half of this machine's memory, or 80 % of an accelerator's free memory."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(0.8 * (stats["bytes_limit"] - stats["bytes_in_use"]))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def check_finite(values: Array, numbers: np.ndarray, sizes: tuple[int, int]) -> None:
    """Raise NotFinite where values [examples, outputs] are not finite.

    Args:
      numbers: Of the examples, those of xs and then those of ys; those past the last are copies of it.
      sizes: Numbers of examples of xs, and of ys.
    """
    bad = np.flatnonzero(~np.isfinite(np.asarray(values, np.float64)).all(axis=1))
    if bad.size:
        n, at = sizes[0], min(int(numbers[bad[0]]), sum(sizes) - 1)
        where = f"{at}" if at < n else f"{at - n} of ys"
        raise NotFinite(f"The function is not finite for example {where}; leave it out, or mend it.")
