"""Between our parameters and the tensors of a Hugging Face checkpoint.

A family says where its modules lie in the checkpoint by a table {path of our module: Source}. The same table serves
reading, writing, and naming what is missing, unexpected or misshapen. Reading copies only the slices asked for.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Sharding
from numpy.typing import NDArray

from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.pytrees import path_name
from lensjax.models.safetensors_files import FLOATING, TensorFiles

_ALIGNMENT = 64  # bytes
_SUFFIX = {"kernel": ".weight", "embedding": ".weight", "scale": ".weight", "bias": ".bias"}


@dataclass(frozen=True)
class Source:
    """Where the parameters of one of our modules lie in a checkpoint.

    Attributes:
      name: Name of the Hugging Face module; "{layer}" and "{expert}" stand for the index on our leading axes.
      transposed: Whether kernels are stored [outputs, inputs], as torch's Linear does, and not as ours are.
      part: (index, parts, groups) where outputs of several of our modules are fused: outputs are stored
        [groups, parts, size] and ours are [:, index].
      first, step: The layer at index i of our leading axis is number first + step·i of the checkpoint.
    """

    name: str
    transposed: bool = True
    part: tuple[int, int, int] | None = None
    first: int = 0
    step: int = 1


Table = Mapping[str, str | Source]


@dataclass(frozen=True)
class Tensor:
    """One parameter of ours and the tensors that it is stacked from.

    Attributes:
      path: Its path, keys with slashes between.
      shape: Its shape, stacking axes first.
      names: The checkpoint's tensors, [*stacking axes].
      source: How each of them lies; `transposed` is False for all but kernels.
    """

    path: str
    shape: tuple[int, ...]
    names: NDArray[np.object_]
    source: Source

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of each of the checkpoint's tensors."""
        shape = list(self.shape[self.names.ndim :])
        if self.source.part is not None:
            shape[-1] *= self.source.part[1]
        return tuple(reversed(shape)) if self.source.transposed else tuple(shape)


def tensors(shapes: Any, table: Table) -> list[Tensor]:
    """Every parameter with where it lies, in the order of the pytree's leaves.

    A key of the table is the path of a module, whose kernel, embedding, scale and bias are Hugging Face's weight and
    bias, or the whole path of a parameter.
    """
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
    return [_tensor(path_name(path), tuple(leaf.shape), table) for path, leaf in leaves]


def check_names(
    wanted: Sequence[Tensor],
    files: TensorFiles,
    prefix: str,
    ignored: Sequence[str],
    copies: Mapping[str, str],
    zeros: Mapping[str, tuple[int, ...]],
) -> list[Tensor]:
    """The parameters, named as this checkpoint names them, if it holds each in its shape and nothing else.

    Args:
      wanted: Parameters, named with `prefix`.
      prefix: Start of tensor names that checkpoints of the bare model leave out.
      ignored: Regular expressions for tensors that checkpoints hold and models do not need.
      copies: Tensors that checkpoints may hold besides the one whose values they repeat, by name.
      zeros: Shapes of constants that checkpoints may hold and that must be 0, by name.

    Raises:
      InputError: names every tensor that is missing, unexpected or of another shape, or one that is not of floating
        point.
    """
    needed = [name for name in files.shapes if not any(re.search(pattern, name) for pattern in ignored)]
    for name in needed:
        if files.types[name] not in FLOATING:
            raise InputError(
                f"{files.where} holds {shorten(name)} as {files.types[name]}; only floating-point weights can be "
                "loaded, so take the model as it was before quantisation."
            )
    names = {str(name) for tensor in wanted for name in tensor.names.flat}
    if prefix and not any(name.startswith(prefix) for name in files.shapes):
        wanted = [replace(tensor, names=_without(tensor.names, prefix)) for tensor in wanted]
        names = {name.removeprefix(prefix) for name in names}
        copies = {name.removeprefix(prefix): first.removeprefix(prefix) for name, first in copies.items()}
    missing = sorted(names - files.shapes.keys(), key=_natural)
    held = ((name, first) for name, first in copies.items() if {name, first} <= files.shapes.keys())
    repeated = {name for name, first in held if files.same(name, first)}
    empty = {name for name, shape in zeros.items() if files.shapes.get(name) == shape and files.is_zero(name)}
    unexpected = sorted(set(needed) - names - repeated - empty, key=_natural)
    misshapen = [
        f"{name} is {list(files.shapes[name])} and should be {list(tensor.stored_shape)}"
        for tensor in wanted
        for name in map(str, tensor.names.flat)
        if name in files.shapes and files.shapes[name] != tensor.stored_shape
    ]
    faults = [
        f"{len(found)} {kind} ({listing(found)})"
        for kind, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", sorted(set(misshapen), key=_natural)),
        )
        if found
    ]
    if faults:
        raise InputError(
            f"The tensors in {files.where} are not those that its config.json describes: {'; '.join(faults)}; "
            "take config.json and weights from one model."
        )
    return list(wanted)


def read_params(
    wanted: Sequence[Tensor], files: TensorFiles, dtype: np.dtype[Any], targets: Sequence[Sharding]
) -> list[jax.Array]:
    """Read parameters onto their devices; every slice is read once, and only if a device of this process holds it."""

    def read(tensor: Tensor, target: Sharding) -> dict[jax.Device, NDArray[Any]]:
        held = cast(Mapping[jax.Device, tuple[slice, ...]], target.addressable_devices_indices_map(tensor.shape))
        bounds = {
            device: tuple(s.indices(n)[:2] for s, n in zip(index, tensor.shape, strict=True))
            for device, index in held.items()
        }
        values = {wanted: _read_slice(tensor, files, dtype, wanted) for wanted in set(bounds.values())}
        return {device: values[wanted] for device, wanted in bounds.items()}

    arrays: list[jax.Array] = []
    with ThreadPoolExecutor() as pool:
        for tensor, target, slices in zip(wanted, targets, pool.map(read, wanted, targets), strict=True):
            placed = [jax.device_put(value, device) for device, value in slices.items()]
            arrays.append(jax.make_array_from_single_device_arrays(tensor.shape, target, placed))
    return arrays


def checkpoint_tensors(parameters: Iterable[tuple[Tensor, NDArray[Any]]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The checkpoint's tensors, by name, from our parameters: the inverse of reading."""
    parts: dict[str, dict[int, NDArray[Any]]] = {}
    for tensor, values in parameters:
        for position in np.ndindex(tensor.names.shape):
            name, value, source = str(tensor.names[position]), values[position], tensor.source
            if source.part is not None:
                index, count, groups = source.part
                found = parts.setdefault(name, {})
                found[index] = value.reshape(*value.shape[:-1], groups, 1, -1)
                if len(found) < count:
                    continue
                value = np.concatenate([found[i] for i in range(count)], axis=-2)
                value = parts.pop(name)[0] if count == 1 else value.reshape(*value.shape[:-3], -1)
            yield name, np.ascontiguousarray(value.T if source.transposed else value)


def _tensor(path: str, shape: tuple[int, ...], table: Table) -> Tensor:
    module, _, leaf = path.rpartition("/")
    entry, suffix = (table[path], "") if path in table else (table[module], _SUFFIX[leaf])
    source = entry if isinstance(entry, Source) else Source(entry)
    source = replace(source, transposed=source.transposed and leaf == "kernel")
    axes = ["{layer}" in source.name, "{expert}" in source.name]
    names = np.empty(shape[: sum(axes)], object)
    for position in np.ndindex(names.shape):
        numbers = iter(position)
        layer = source.first + source.step * next(numbers) if axes[0] else None
        names[position] = source.name.format(layer=layer, expert=next(numbers, None)) + suffix
    return Tensor(path, shape, names, source)


def _read_slice(
    tensor: Tensor, files: TensorFiles, dtype: np.dtype[Any], bounds: tuple[tuple[int, int], ...]
) -> NDArray[Any]:
    """The values of a parameter within `bounds`, (start, stop) per axis."""
    stacked = tensor.names.ndim
    values = _aligned(tuple(stop - start for start, stop in bounds), dtype)
    for position in itertools.product(*(range(*pair) for pair in bounds[:stacked])):
        inner = tuple(i - start for i, (start, _) in zip(position, bounds[:stacked], strict=True))
        _copy(str(tensor.names[position]), tensor.source, files, bounds[stacked:], values[inner])
    return values


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array to be filled that JAX on a CPU takes over as it is, where it would copy one that lies anywhere."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def _copy(
    name: str, source: Source, files: TensorFiles, bounds: tuple[tuple[int, int], ...], out: NDArray[Any]
) -> None:
    """Copy one tensor's values within `bounds` (of our axes) into `out`."""
    if source.part is not None and source.part[2] == 1:  # our outputs lie together, after those of other parts
        width = _outputs(files.shapes[name], source) // source.part[1]
        shift = source.part[0] * width
        bounds = (*bounds[:-1], (bounds[-1][0] + shift, bounds[-1][1] + shift))
    elif source.part is not None:  # our outputs lie in every group: read the groups they touch
        index, parts, groups = source.part
        size = _outputs(files.shapes[name], source) // (parts * groups)
        start, stop = bounds[-1]
        low, high = start // size, math.ceil(stop / size)
        fused = np.empty([*out.shape[:-1], (high - low) * parts * size], out.dtype)
        around = (*bounds[:-1], (low * parts * size, high * parts * size))
        files.copy(name, around, fused, transposed=source.transposed)
        ours = fused.reshape(*out.shape[:-1], high - low, parts, size)[..., index, :].reshape(*out.shape[:-1], -1)
        out[...] = ours[..., start - low * size : stop - low * size]
        return
    files.copy(name, bounds, out, transposed=source.transposed)


def _outputs(shape: tuple[int, ...], source: Source) -> int:
    return shape[0] if source.transposed else shape[-1]


def _without(names: NDArray[np.object_], prefix: str) -> NDArray[np.object_]:
    short = np.empty(names.shape, object)
    for position in np.ndindex(names.shape):
        short[position] = str(names[position]).removeprefix(prefix)
    return short


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
