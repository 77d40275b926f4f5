"""Which device holds which slice of which parameter.

A mesh has three axes: `data` splits the batch only, `fsdp` splits the batch and the parameters, `tensor` splits heads
and hidden units. A short list of (regular expression on the parameter's path → PartitionSpec of its last dimensions)
says how parameters lie on it. An axis that does not divide its dimension moves to one that it divides.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lensjax.core import devices as device_facts
from lensjax.core.errors import InputError, shorten
from lensjax.core.pytrees import PyTree, path_name

AXES = ("data", "fsdp", "tensor")
_AXIS_TYPES = (AxisType.Auto,) * len(AXES)
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
    (r"(q|k|v|up|gate)/lora_m$", PartitionSpec("tensor")),
    (r"(o|down)/lora_m$", PartitionSpec("fsdp")),
)

# Of families whose MLPs are `lensjax.models.experts.Experts`: each device has whole experts.
EXPERT_RULES: Rules = (
    (r"experts/(gate|up|down)/(kernel|lora_a|lora_b)$", PartitionSpec("tensor", "fsdp", None)),
    (r"experts/(gate|up|down)/lora_m$", PartitionSpec("tensor", "fsdp")),
    *RULES,
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


def make_mesh(sizes: str | Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make a mesh of devices with the axes `data`, `fsdp` and `tensor`, as in make_mesh("fsdp=4,tensor=2").

    Args:
      sizes: Sizes of the axes, of which those not named are 1; `fsdp` takes all devices where no sizes are given, and
        of several slices of TPU pods `data` takes the slices, and `fsdp` the chips of each.
      devices: By default all there are, over all processes.

    Returns:
      The mesh, whose axes are for the compiler to use (`AxisType.Auto`).

    Raises:
      InputError: the sizes are malformed, or their product is not the number of devices, or another axis than `data`
        would have to cross slices.
    """
    devices = device_facts.usable_devices() if devices is None else devices
    slices = device_facts.slices_of(devices)
    if sizes is None:
        sizes = {"data": slices, "fsdp": len(devices) // slices}
    sizes = parse_mesh(sizes if isinstance(sizes, str) else ",".join(f"{k}={v}" for k, v in sizes.items()))
    needed = math.prod(sizes.values())
    if needed != len(devices):
        product = " × ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise InputError(f"The mesh {product} takes {needed} devices and there are {len(devices)}; change its axes.")
    if slices == 1:
        try:
            return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=_AXIS_TYPES, devices=devices)
        except NotImplementedError:  # no axis of the mesh is a product of whole axes of the torus
            split = create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
            return Mesh(split, AXES, axis_types=_AXIS_TYPES)
    if sizes["data"] % slices:
        raise InputError(
            f"The {len(devices)} devices are {slices} slices, between which only data may run, and data is "
            f"{sizes['data']}; make it a multiple of {slices}."
        )
    each = (sizes["data"] // slices, sizes["fsdp"], sizes["tensor"])
    placed = create_hybrid_device_mesh(each, (slices, 1, 1), devices=devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=_AXIS_TYPES)


def platform_of(mesh: Mesh | None) -> str:
    """The platform that a model on a mesh is compiled for: that of its devices, or else of those attached."""
    return str(mesh.devices.flat[0].platform) if isinstance(mesh, Mesh) else jax.default_backend()


def abstract_mesh(sizes: Mapping[str, int]) -> Mesh:
    """A mesh without devices, on which shapes can be placed; to do more, a mesh of devices is needed."""
    return cast(Mesh, AbstractMesh(tuple(sizes[axis] for axis in AXES), AXES, axis_types=_AXIS_TYPES))


def shardings(shapes: PyTree, rules: Rules, mesh: Mesh) -> PyTree:
    """Place parameters on a mesh.

    Args:
      shapes: Nested dicts whose leaves have a shape.
      rules: The first rule whose regular expression matches somewhere in a parameter's path decides. Its PartitionSpec
        is that of the last dimensions, so stacked layers and experts keep their leading axes whole.
      mesh: A mesh with the axes `data`, `fsdp` and `tensor`.

    Returns:
      Nested dicts of the same structure with the NamedSharding of every parameter.
    """

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = path_name(path).removesuffix("_scales")  # of quantised kernels, which lie as their codes do
        preferred = next((tuple(spec) for pattern, spec in rules if re.search(pattern, name)), ())
        return NamedSharding(mesh, _fit(leaf.shape, preferred, mesh.shape))

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def constrain_activations(x: jax.Array, mesh: Mesh | None, last: str | None = None) -> jax.Array:
    """Keep the leading axis of x split over `data` and `fsdp`, so that weights are gathered and not activations.

    x stays as it is without a mesh, and where `data` and `fsdp` do not divide its leading axis, as within a vmap over
    examples. `last` names the mesh axis that splits the last dimension, where it divides it.
    """
    if mesh is None or mesh.size == 1 or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    end = last if last is not None and x.shape[-1] % mesh.shape[last] == 0 else None
    spec = PartitionSpec(("data", "fsdp"), *(None,) * (x.ndim - 2), end)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def _fit(shape: tuple[int, ...], preferred: tuple[Any, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """`preferred` for the last dimensions, without axes that do not divide them, and with `fsdp` moved if need be."""
    axes: list[list[str]] = [[] for _ in shape]
    room = list(shape)

    def place(dim: int, axis: str) -> bool:
        if room[dim] % sizes[axis] or room[dim] < sizes[axis]:
            return False
        room[dim] //= sizes[axis]
        axes[dim].append(axis)
        return True

    placed = set()
    for dim, names in enumerate(preferred, start=len(shape) - len(preferred)):
        listed = () if names is None else (names,) if isinstance(names, str) else names
        placed |= {axis for axis in listed if sizes[axis] > 1 and place(dim, axis)}
    if sizes["fsdp"] > 1 and "fsdp" not in placed and math.prod(shape) >= SMALL:
        for dim in sorted(range(len(shape)), key=lambda i: -room[i]):
            if place(dim, "fsdp"):
                break
    entries = [None if not names else names[0] if len(names) == 1 else tuple(names) for names in axes]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)
