"""Between our parameters and the tensors of a Hugging Face checkpoint.

A family maps the path of each of our modules to its name in the checkpoint (`ParameterNames`). Reading, writing and
messages on missing, unexpected or misshapen tensors use the same map. Reading copies only the slices that devices hold.
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
from lensjax.core.pytrees import PyTree, path_name
from lensjax.models.safetensors_files import FLOATING, TensorFiles

_ALIGNMENT = 64  # bytes
_SUFFIX = {"kernel": ".weight", "embedding": ".weight", "scale": ".weight", "bias": ".bias"}


@dataclass(frozen=True)
class Stored:
    """How the parameters of one of our modules are stored in a checkpoint.

    Attributes:
      name: Name of the Hugging Face module; "{layer}" and "{expert}" stand for the index on our leading axes.
      transposed: Whether kernels are stored [outputs, inputs], as by torch's Linear; ours are [inputs, outputs].
      part: (index, shares, groups) where a tensor holds the outputs of several of our modules: in each group of them
        the modules' outputs follow one another, in numbers as shares[0], shares[1], … are, and ours is number `index`.
      first, step: The layer at index i of our leading axis is layer first + step·i of the checkpoint.
      stacked: Number of leading axes of a tensor that are not transposed, as of experts.
    """

    name: str
    transposed: bool = True
    part: tuple[int, tuple[int, ...], int] | None = None
    first: int = 0
    step: int = 1
    stacked: int = 0

    def axes(self, count: int) -> tuple[int, ...]:
        """Which of our axes each of a tensor's is, of which there are `count`; the same the other way round."""
        turned = range(self.stacked, count)
        return (*range(self.stacked), *(reversed(turned) if self.transposed else turned))


# Path of a module, or the whole path of a parameter → its name in a checkpoint, or how it is stored there. Hugging Face
# calls a module's kernel, embedding or scale its weight, and a bias its bias.
ParameterNames = Mapping[str, str | Stored]


@dataclass(frozen=True)
class Tensor:
    """One parameter of ours and the tensors of a checkpoint that it is stacked from.

    Attributes:
      path: Its path, keys with slashes between.
      shape: Its shape, stacking axes first.
      names: Names of the checkpoint's tensors, [*stacking axes].
      stored: How each of them is stored; `transposed` is False for all but kernels.
    """

    path: str
    shape: tuple[int, ...]
    names: NDArray[np.object_]
    stored: Stored

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of each of the checkpoint's tensors."""
        shape = list(self.shape[self.names.ndim :])
        if self.stored.part is not None:
            index, shares, _ = self.stored.part
            shape[-1] = shape[-1] // shares[index] * sum(shares)
        return tuple(shape[axis] for axis in self.stored.axes(len(shape)))


def tensors(shapes: PyTree, names: ParameterNames) -> list[Tensor]:
    """Every parameter with its tensors in a checkpoint.

    Args:
      shapes: Nested dicts whose leaves have a shape.
      names: The family's names.

    Returns:
      One `Tensor` per parameter, in the order of the pytree's leaves.
    """
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
    return [_tensor(path_name(path), tuple(leaf.shape), names) for path, leaf in leaves]


def check_names(
    wanted: Sequence[Tensor],
    files: TensorFiles,
    prefix: str,
    ignored: Sequence[str],
    copies: Mapping[str, str],
    zeros: Mapping[str, tuple[int, ...]],
) -> list[Tensor]:
    """Check that a checkpoint holds every parameter in its shape, and nothing else.

    Args:
      wanted: Parameters, named with `prefix`.
      prefix: Start of tensor names that checkpoints of the bare model leave out.
      ignored: Regular expressions for tensors that checkpoints hold and models do not need.
      copies: Tensors that checkpoints may hold besides, or in place of, the one whose values they repeat, by name.
      zeros: Shapes of constants that checkpoints may hold and that must be 0, by name.

    Returns:
      The parameters, named as this checkpoint names them.

    Raises:
      InputError: a tensor is not of floating point, or tensors are missing, unexpected or of another shape; the message
        names all of them.
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
        without_prefix = np.vectorize(lambda name: name.removeprefix(prefix), otypes=[object])
        wanted = [replace(tensor, names=without_prefix(tensor.names)) for tensor in wanted]
        names = {name.removeprefix(prefix) for name in names}
        copies = {name.removeprefix(prefix): first.removeprefix(prefix) for name, first in copies.items()}
    instead = {
        first: name for name, first in reversed([*copies.items()]) if first not in files.shapes and name in files.shapes
    }
    if instead:  # of equal tensors, some programs keep another than the first
        renamed = np.vectorize(lambda name: instead.get(name, name), otypes=[object])
        wanted = [replace(tensor, names=renamed(tensor.names)) for tensor in wanted]
        names = {instead.get(name, name) for name in names}
        copies = {name: instead.get(first, first) for name, first in copies.items()}
    missing = sorted(names - files.shapes.keys(), key=_natural)
    held = ((name, first) for name, first in copies.items() if name in needed and first in files.shapes)
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
        f"{len(listed)} {kind} ({listing(listed)})"
        for kind, listed in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", sorted(set(misshapen), key=_natural)),
        )
        if listed
    ]
    if faults:
        raise InputError(
            f"The tensors in {files.where} are not those that its {files.described_by} describes: "
            f"{'; '.join(faults)}; take {files.described_by} and weights from one model."
        )
    return list(wanted)


def read_params(
    wanted: Sequence[Tensor], files: TensorFiles, dtypes: Sequence[np.dtype[Any]], targets: Sequence[Sharding]
) -> Iterator[jax.Array]:
    """Read parameters onto their devices, one after another.

    Every slice is read once, and only if a device of this process holds it.

    Args:
      wanted: Parameters, named as the checkpoint names them.
      files: The checkpoint.
      dtypes: Type in which each of them is held.
      targets: How each of them lies on devices.
    """

    def read(tensor: Tensor, dtype: np.dtype[Any], target: Sharding) -> dict[jax.Device, NDArray[Any]]:
        held = cast(Mapping[jax.Device, tuple[slice, ...]], target.addressable_devices_indices_map(tensor.shape))
        bounds = {
            device: tuple(s.indices(n)[:2] for s, n in zip(index, tensor.shape, strict=True))
            for device, index in held.items()
        }
        values = {pairs: _read_slice(tensor, files, dtype, pairs) for pairs in set(bounds.values())}
        return {device: values[pairs] for device, pairs in bounds.items()}

    with ThreadPoolExecutor() as pool:
        for tensor, target, slices in zip(wanted, targets, pool.map(read, wanted, dtypes, targets), strict=True):
            placed = [jax.device_put(value, device) for device, value in slices.items()]
            yield jax.make_array_from_single_device_arrays(tensor.shape, target, placed)


def checkpoint_tensors(parameters: Iterable[tuple[Tensor, NDArray[Any]]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The checkpoint's tensors, by name, from our parameters; the inverse of reading."""
    parts: dict[str, dict[int, NDArray[Any]]] = {}
    for tensor, values in parameters:
        for position in np.ndindex(tensor.names.shape):
            name, value, stored = str(tensor.names[position]), values[position], tensor.stored
            if stored.part is not None:
                index, shares, groups = stored.part
                fused = parts.setdefault(name, {})
                fused[index] = value.reshape(*value.shape[:-1], groups, -1)
                if len(fused) < len(shares):
                    continue
                value = np.concatenate([fused[i] for i in range(len(shares))], axis=-1)
                value = value.reshape(*value.shape[:-2], -1)
                del parts[name]
            yield name, np.ascontiguousarray(value.transpose(stored.axes(value.ndim)))


def _tensor(path: str, shape: tuple[int, ...], names: ParameterNames) -> Tensor:
    module, _, leaf = path.rpartition("/")
    entry, suffix = (names[path], "") if path in names else (names[module], _SUFFIX[leaf])
    stored = entry if isinstance(entry, Stored) else Stored(entry)
    stored = replace(stored, transposed=stored.transposed and leaf == "kernel")
    axes = ["{layer}" in stored.name, "{expert}" in stored.name]
    full = np.empty(shape[: sum(axes)], object)
    for position in np.ndindex(full.shape):
        numbers = iter(position)
        layer = stored.first + stored.step * next(numbers) if axes[0] else None
        full[position] = stored.name.format(layer=layer, expert=next(numbers, None)) + suffix
    return Tensor(path, shape, full, stored)


def _read_slice(
    tensor: Tensor, files: TensorFiles, dtype: np.dtype[Any], bounds: tuple[tuple[int, int], ...]
) -> NDArray[Any]:
    """The values of a parameter within `bounds`, (start, stop) per axis."""
    stacked = tensor.names.ndim
    values = _aligned(tuple(stop - start for start, stop in bounds), dtype)
    for position in itertools.product(*(range(*pair) for pair in bounds[:stacked])):
        inner = tuple(i - start for i, (start, _) in zip(position, bounds[:stacked], strict=True))
        _copy(str(tensor.names[position]), tensor.stored, files, bounds[stacked:], values[inner])
    return values


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An empty array that JAX on a CPU takes over without a copy, which it does only for aligned memory."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def _copy(
    name: str, stored: Stored, files: TensorFiles, bounds: tuple[tuple[int, int], ...], out: NDArray[Any]
) -> None:
    """Copy one tensor's values within `bounds` (of our axes) into `out`."""
    if stored.part is not None:
        index, shares, groups = stored.part
        shape = files.shapes[name]
        group = shape[stored.axes(len(shape))[-1]] // groups
        unit = group // sum(shares)
        before, size = unit * sum(shares[:index]), unit * shares[index]
        start, stop = bounds[-1]
        if groups > 1:  # our outputs lie in every group, so read the groups that they touch
            low, high = start // size, math.ceil(stop / size)
            fused = np.empty([*out.shape[:-1], (high - low) * group], out.dtype)
            around = (*bounds[:-1], (low * group, high * group))
            files.copy(name, around, fused, transposed=stored.transposed, stacked=stored.stacked)
            fused = fused.reshape(*out.shape[:-1], high - low, group)
            ours = fused[..., before : before + size].reshape(*out.shape[:-1], -1)
            out[...] = ours[..., start - low * size : stop - low * size]
            return
        bounds = (*bounds[:-1], (start + before, stop + before))
    files.copy(name, bounds, out, transposed=stored.transposed, stacked=stored.stacked)


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
