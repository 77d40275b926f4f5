"""Reading and writing the safetensors files of a checkpoint folder."""

import json
import math
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lensjax.errors import InputError, listing, shorten
from lensjax.files import share

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATING = ("F64", "F32", "F16", "BF16")
_BLOCK_BYTES = 2**20


class TensorFiles:
    """The tensors of a checkpoint folder, whose values are read only when and where they are asked for.

    Attributes:
      where: The folder, for messages.
      shapes: Shape of every tensor.
      types: Type of every tensor, as safetensors names it.

    Raises:
      InputError: there are no safetensors files, or one is truncated or malformed.
    """

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        self._paths: dict[str, Path] = {}
        self._opened = threading.local()
        for path in _weight_files(folder):
            try:
                with safe_open(path, framework="numpy") as file:
                    for name in file.keys():  # noqa: SIM118 (a safetensors file is no dict)
                        tensor = file.get_slice(name)
                        self.shapes[name] = tuple(tensor.get_shape())
                        self.types[name] = tensor.get_dtype()
                        self._paths[name] = path
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{path} is not a whole safetensors file ({shorten(error)}); fetch it again."
                ) from error

    def copy(self, name: str, bounds: tuple[tuple[int, int], ...], out: NDArray[Any], *, transposed: bool) -> None:
        """Copy the values within `bounds`, (start, stop) per axis of `out`, converted to its type, into `out`.

        With `transposed`, the axes of the file's tensor are those of `out` in reverse order.
        """
        tensor = self._open(self._paths[name]).get_slice(name)
        if not transposed:
            out[...] = tensor[tuple(slice(*pair) for pair in bounds)] if bounds else tensor[...]
            return
        (first, last), (start, stop) = bounds  # blocks of the file's rows that stay in the cache while transposed
        rows = max(1, _BLOCK_BYTES // (4 * max(1, last - first)))
        for row in range(start, stop, rows):
            end = min(row + rows, stop)
            out[:, row - start : end - start] = tensor[row:end, first:last].T

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors hold the same values, of which no more is read than up to a block that differs."""
        shape = self.shapes[first]
        if self.shapes[second] != shape:
            return False
        one, two = (self._open(self._paths[name]).get_slice(name) for name in (first, second))
        rows = max(1, _BLOCK_BYTES // (4 * max(1, math.prod(shape[1:]))))
        blocks = (slice(row, min(row + rows, shape[0])) for row in range(0, shape[0], rows))
        return all(np.array_equal(one[block], two[block]) for block in blocks)

    def _open(self, path: Path) -> Any:
        """The file, opened once per thread."""
        opened = self._opened.__dict__.setdefault("files", {})
        if path not in opened:
            opened[path] = safe_open(path, framework="numpy").__enter__()
        return opened[path]


def write_tensors(tensors: Iterable[tuple[str, NDArray[Any]]], folder: Path, shard_bytes: int = 5 * 10**9) -> None:
    """Write tensors as safetensors, one file or, past `shard_bytes`, several with an index, as `transformers` does.

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
        except SafetensorError as error:  # as where the disk is full
            raise OSError(str(error)) from error
        share(path)
        names.append(list(shards[0]))
        shards[0] = {}

    for name, value in tensors:
        if shards[0] and sizes + value.nbytes > shard_bytes:
            flush()
            sizes = 0
        shards[0][name] = value
        sizes, total = sizes + value.nbytes, total + value.nbytes
    flush()
    if len(names) == 1:
        (folder / "shard-0").rename(folder / _SINGLE)
        return
    index: dict[str, str] = {}
    for number, held in enumerate(names):
        file = f"model-{number + 1:05d}-of-{len(names):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        index |= dict.fromkeys(held, file)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    (folder / _INDEX).write_text(text, encoding="utf-8")


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    index = folder / _INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            paths = [folder / Path(name).name for name in names]
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise InputError(f"{index} is not an index of safetensors files; fetch it again.") from error
        absent = [path.name for path in paths if not path.exists()]
        if absent:
            raise InputError(f"{folder} lacks {listing(absent)}, which {_INDEX} names; fetch the whole model.")
        return paths
    pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt*"))
    if pickled:
        raise InputError(
            f"{folder} has its weights only in {pickled[0]}, a pickle, which can run any code and is never opened; "
            "convert it to safetensors with transformers' save_pretrained where you trust it."
        )
    raise InputError(f"{folder} has no {_SINGLE}; give the folder of a model as transformers saves it.")
