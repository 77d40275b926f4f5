"""Reading and writing the safetensors files of a checkpoint folder."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.files import share
from lensjax.core.reading import check_regular, read_text

_MODEL = "model"
FLOATING = ("F64", "F32", "F16", "BF16")  # the types of weights that can be loaded
_BLOCK_BYTES = 2**20
_LINE = 16  # float32 values in a cache line
_OF_TEXT = re.compile(r"(?:model\.)?language_model\.(?:model\.)?(lm_head\.)?(.+)")


class TensorFiles:
    """The tensors of a checkpoint; their values are read only when asked for, and only the slices asked for.

    Args:
      where: The folder or file, for messages.
      slices: Every tensor, as safetensors' `get_slice` gives it.

    Attributes:
      shapes: Shape of every tensor.
      types: Type of every tensor, as safetensors names it.
    """

    described_by = "config.json"

    def __init__(self, where: str, slices: Mapping[str, Any]) -> None:
        self.where, self._slices = where, slices
        self.shapes = {name: tuple(values.get_shape()) for name, values in slices.items()}
        self.types = {name: str(values.get_dtype()) for name, values in slices.items()}

    @classmethod
    def of_folder(cls, folder: Path, name: str = _MODEL) -> Self:
        """The tensors of a folder, in files whose names begin with `name`.

        Raises:
          InputError: there are no safetensors files, or one is truncated or malformed.
        """
        slices: dict[str, Any] = {}
        for path in weight_files(folder, name):
            slices |= cls.of_file(path)._slices
        return cls(str(folder), slices)

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """The tensors of one file; see `of_folder`."""
        check_regular(path, "fetch it again")
        try:
            file = safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a whole safetensors file ({shorten(error)}); fetch it again.") from error
        return cls(str(path), {name: file.get_slice(name) for name in file.keys()})  # noqa: SIM118  # it is no mapping

    def of_text(self) -> "TensorFiles":
        """Those of the text model alone, under the names that they have where there is nothing else.

        Models that read images or sound too have it under `language_model`; others stay as they are.
        """
        found = {name: _OF_TEXT.fullmatch(name) for name in self._slices}
        if not any(found.values()):
            return self
        kept = {f"{one[1] or 'model.'}{one[2]}": self._slices[name] for name, one in found.items() if one}
        heads = {name: values for name, values in self._slices.items() if name.startswith("lm_head.")}
        return TensorFiles(self.where, kept | heads)

    def supplied(self, constants: Mapping[str, NDArray[Any]]) -> "TensorFiles":
        """These tensors and those of some constants that are not among them, by name."""
        return TensorFiles(
            self.where, {**{name: _Constant(value) for name, value in constants.items()}, **self._slices}
        )

    def copy(
        self, name: str, bounds: tuple[tuple[int, int], ...], out: NDArray[Any], *, transposed: bool, stacked: int = 0
    ) -> None:
        """Copy a slice of a tensor into `out`, converted to its type.

        Args:
          name: The tensor.
          bounds: (start, stop) per axis of `out`.
          out: Array of that shape, to be filled.
          transposed: Whether the axes of the file's tensor are those of `out` in reverse order.
          stacked: Number of leading axes that keep their places all the same.
        """
        if transposed:
            axes = (*range(stacked), *reversed(range(stacked, out.ndim)))
            out, bounds = out.transpose(axes), tuple(bounds[axis] for axis in axes)
        (start, stop), *others = bounds
        inner = tuple(slice(*pair) for pair in others)
        for rows in self._blocks(name, start, stop):
            block = self._slices[name][(rows, *inner)]
            tile = _LINE if transposed and not stacked else len(block)  # fills whole cache lines of `out`
            for row in range(0, len(block), tile):
                place, part = rows.start - start + row, block[row : row + tile]
                out[place : place + len(part)] = part

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors hold the same values; reading ends at the first block that differs."""
        one, two = self._slices[first], self._slices[second]
        return self.shapes[first] == self.shapes[second] and all(
            np.array_equal(one[rows], two[rows]) for rows in self._blocks(first)
        )

    def is_zero(self, name: str) -> bool:
        """Whether all values of a tensor are 0."""
        return not any(self._slices[name][rows].any() for rows in self._blocks(name))

    def not_finite(self) -> str | None:
        """The first tensor that holds NaN or infinity; None where there is none."""
        for name, kind in self.types.items():
            blocks = self._blocks(name) if kind in FLOATING and self.shapes[name] else ()
            if not all(np.isfinite(self._slices[name][rows]).all() for rows in blocks):
                return name
        return None

    def _blocks(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[slice]:
        """The rows of a tensor in blocks of about a megabyte."""
        shape = self.shapes[name]
        stop = shape[0] if stop is None else stop
        rows = max(1, _BLOCK_BYTES // (4 * max(1, math.prod(shape[1:]))))
        return (slice(row, min(row + rows, stop)) for row in range(start, stop, rows))


class _Constant:
    """Values that no file holds, as safetensors' `get_slice` gives a tensor."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values

    def get_shape(self) -> list[int]:
        return list(self._values.shape)

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return self._values[index]


def write_tensors(
    tensors: Iterable[tuple[str, NDArray[Any]]], folder: Path, shard_bytes: int = 5 * 10**9, name: str = _MODEL
) -> None:
    """Write tensors as safetensors, one file or, past `shard_bytes`, several with an index, as `transformers` does.

    The files' names begin with `name`.

    Raises:
      OSError: a file cannot be written.
    """
    shards: list[dict[str, NDArray[Any]]] = [{}]
    names: list[list[str]] = []
    sizes, total = 0, 0

    def flush() -> None:
        path = folder / f"shard-{len(names)}"
        try:
            save_file(shards[0], path, metadata={"format": "pt"})
        except SafetensorError as error:  # such as a full disk
            raise OSError(str(error)) from error
        share(path)
        names.append(list(shards[0]))
        shards[0] = {}

    for tensor, value in tensors:
        if shards[0] and sizes + value.nbytes > shard_bytes:
            flush()
            sizes = 0
        shards[0][tensor] = np.ascontiguousarray(value)  # or else its memory is written, in whichever order
        sizes, total = sizes + value.nbytes, total + value.nbytes
    flush()
    if len(names) == 1:
        (folder / "shard-0").rename(folder / f"{name}.safetensors")
        return
    index: dict[str, str] = {}
    for number, held in enumerate(names):
        file = f"{name}-{number + 1:05d}-of-{len(names):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        index |= dict.fromkeys(held, file)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    (folder / _index(name)).write_text(text, encoding="utf-8")


def weight_files(folder: Path, name: str = _MODEL) -> list[Path]:
    """The safetensors files of a checkpoint folder, whose names begin with `name`.

    Raises:
      InputError: there are none, or one that the index names is missing.
    """
    single, index = folder / f"{name}.safetensors", folder / _index(name)
    if single.exists():
        return [single]
    if index.exists():
        try:
            names = sorted(set(json.loads(read_text(index, "fetch it again"))["weight_map"].values()))
            paths = [folder / Path(name).name for name in names]
        except InputError:
            raise
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise InputError(f"{index} is not an index of safetensors files; fetch it again.") from error
        absent = [path.name for path in paths if not path.exists()]
        if absent:
            raise InputError(f"{folder} lacks {listing(absent)}, which {index.name} names; fetch the whole model.")
        return paths
    pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt*"))
    if pickled:
        raise InputError(
            f"{folder} has its weights only in {pickled[0]}, a pickle, which can run any code and is never opened; "
            "convert it to safetensors with transformers' save_pretrained where you trust it."
        )
    raise InputError(f"{folder} has no {single.name}; give the folder of a model as transformers saves it.")


def _index(name: str) -> str:
    return f"{name}.safetensors.index.json"
