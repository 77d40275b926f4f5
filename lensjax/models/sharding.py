"""Which device holds which slice of which parameter.

A mesh has three axes: `data` splits the batch only, `fsdp` splits the batch and the parameters, `tensor` splits heads
and hidden units. A short list of (regular expression on the parameter's path → PartitionSpec of its last dimensions)
says how parameters lie on it; an axis that does not divide its dimension moves to one that it divides.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lensjax.core.errors import InputError, shorten
from lensjax.core.pytrees import path_name

AXES = ("data", "fsdp", "tensor")
SMALL = 2**16  # parameters with fewer values than this may lie whole on every device

Rules = Sequence[tuple[str, PartitionSpec]]

RULES: Rules = (
    (r"embed/embedding$", PartitionSpec("tensor", "fsdp")),
    (r"(q|k|v|up|gate|head)/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"(o|down)/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"(q|k|v|up|gate)/lora_a$", PartitionSpec("fsdp", None)),  # its inputs lie as the kernel's do
    (r"(q|k|v|up|gate)/lora_b$", PartitionSpec(None, "tensor")),  # and its outputs
    (r"(o|down)/lora_a$", PartitionSpec("tensor", None)),
    (r"(o|down)/lora_b$", PartitionSpec(None, "fsdp")),
)


def parse_mesh(text: str) -> dict[str, int]:
    """Axis sizes from text such as "fsdp=4,tensor=2"; axes not named have size 1.

    Raises:
      InputError: an axis is unknown, named twice, or its size is not a whole number from 1 up.
    """
    sizes: dict[str, int] = {}
    for item in filter(None, text.replace(" ", "").split(",")):
        name, _, size = item.partition("=")
        if name not in AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise InputError(f"'{shorten(item)}' in mesh '{shorten(text)}'; write it as in data=1,fsdp=4,tensor=2.")
        sizes[name] = int(size)
    return {axis: sizes.get(axis, 1) for axis in AXES}


def make_mesh(sizes: str | Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of devices with axes `data`, `fsdp` and `tensor`, as in make_mesh("fsdp=4,tensor=2").

    `devices` are all there are, over all processes, where not given; without sizes, parameters are spread over them.

    Raises:
      InputError: the sizes are malformed, or their product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if sizes is None:
        sizes = {"fsdp": len(devices)}
    sizes = parse_mesh(sizes) if isinstance(sizes, str) else parse_mesh(",".join(f"{k}={v}" for k, v in sizes.items()))
    wanted = math.prod(sizes.values())
    if wanted != len(devices):
        product = " × ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise InputError(f"The mesh {product} takes {wanted} devices and there are {len(devices)}; change its axes.")
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=kinds, devices=devices)


def partition_specs(shapes: Any, rules: Rules, sizes: Mapping[str, int]) -> Any:
    """The PartitionSpec of every parameter.

    Args:
      shapes: Pytree of nested dicts whose leaves have a shape.
      rules: The first whose regular expression is found in the parameter's path decides; its PartitionSpec is that of
        the last dimensions, so stacked layers and experts keep their leading axes whole.
      sizes: Size of every mesh axis.

    Returns:
      Pytree of the same structure.
    """

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        name = path_name(path)
        wanted = next((tuple(found) for pattern, found in rules if re.search(pattern, name)), ())
        return _fit(leaf.shape, wanted, sizes)

    return jax.tree_util.tree_map_with_path(spec, shapes)


def shardings(shapes: Any, rules: Rules, mesh: Mesh) -> Any:
    """The NamedSharding of every parameter on a mesh; see `partition_specs`."""
    specs = partition_specs(shapes, rules, dict(mesh.shape))
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def constrain_activations(x: jax.Array, mesh: Mesh | None, last: str | None = None) -> jax.Array:
    """Keep the leading axis of x split over `data` and `fsdp`, so that weights are gathered and not activations.

    Nothing is asked for without a mesh, or where the batch does not divide, as within a vmap over examples.
    `last` names the mesh axis of the last dimension, where it divides that.
    """
    if mesh is None or mesh.size == 1 or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    end = last if last is not None and x.shape[-1] % mesh.shape[last] == 0 else None
    spec = PartitionSpec(("data", "fsdp"), *(None,) * (x.ndim - 2), end)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def shard_shape(shape: Sequence[int], spec: PartitionSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of the slice that one device holds."""
    axes = [_as_tuple(axis) for axis in spec] + [()] * (len(shape) - len(spec))
    return tuple(n // math.prod(sizes[a] for a in names) for n, names in zip(shape, axes, strict=True))


def _fit(shape: tuple[int, ...], wanted: tuple[Any, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """`wanted` for the last dimensions of `shape`, without the axes that do not divide, and `fsdp` moved if it must."""
    axes: list[list[str]] = [[] for _ in shape]
    room = list(shape)

    def place(dim: int, axis: str) -> bool:
        if room[dim] % sizes[axis] or room[dim] < sizes[axis]:
            return False
        room[dim] //= sizes[axis]
        axes[dim].append(axis)
        return True

    placed = set()
    for dim, names in enumerate(wanted, start=len(shape) - len(wanted)):
        placed |= {axis for axis in _as_tuple(names) if sizes[axis] > 1 and place(dim, axis)}
    if sizes["fsdp"] > 1 and "fsdp" not in placed and np.prod(shape) >= SMALL:
        for dim in sorted(range(len(shape)), key=lambda i: -room[i]):
            if place(dim, "fsdp"):
                break
    entries = [None if not names else names[0] if len(names) == 1 else tuple(names) for names in axes]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def _as_tuple(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
