"""Reading and writing the safetensors files of a checkpoint folder."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.files import share

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATING: Mapping[str, DTypeLike] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_BLOCK_BYTES = 2**20
_SAMPLES, _SAMPLE_BYTES = 256, 2**12
_LINE = 16  # float32 values in a cache line


def weights_fingerprint(folder: Path) -> str:
    """A hash of the sizes, the headers and some of the values of a checkpoint's files; nearly all of it is not read."""
    digest = hashlib.sha256()
    for path in sorted(_weight_files(folder)):
        size = path.stat().st_size
        digest.update(f"{path.name}{size}".encode())
        with path.open("rb") as file:
            for at in range(0, size, max(size // _SAMPLES, _BLOCK_BYTES)):
                file.seek(at)
                digest.update(file.read(_SAMPLE_BYTES if at else _BLOCK_BYTES))
    return digest.hexdigest()


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
        self._values: dict[str, NDArray[Any]] = {}
        for path in _weight_files(folder):
            try:
                with safe_open(path, framework="numpy"):  # checks the header
                    file = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{path} is not a whole safetensors file ({shorten(error)}); fetch it again."
                ) from error
            start = 8 + int.from_bytes(file[:8].tobytes(), "little")
            header = json.loads(file[8:start].tobytes())
            header.pop("__metadata__", None)
            for name, entry in header.items():
                self.shapes[name], self.types[name] = tuple(entry["shape"]), entry["dtype"]
                if entry["dtype"] in FLOATING:
                    begin, end = (start + offset for offset in entry["data_offsets"])
                    self._values[name] = file[begin:end].view(FLOATING[entry["dtype"]]).reshape(entry["shape"])

    def copy(self, name: str, bounds: tuple[tuple[int, int], ...], out: NDArray[Any], *, transposed: bool) -> None:
        """Copy the values within `bounds`, (start, stop) per axis of `out`, converted to its type, into `out`.

        With `transposed`, the axes of the file's tensor are those of `out` in reverse order.
        """
        values = self._values[name]
        if not transposed:
            out[...] = values[tuple(slice(*pair) for pair in bounds)]
            return
        (first, last), (start, stop) = bounds
        for row in range(start, stop, _LINE):  # so that every line of `out` is filled at once
            end = min(row + _LINE, stop)
            out[:, row - start : end - start] = values[row:end, first:last].T

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors hold the same values, of which no more is read than up to a block that differs."""
        shape = self.shapes[first]
        if self.shapes[second] != shape:
            return False
        one, two = self._values[first], self._values[second]
        rows = max(1, _BLOCK_BYTES // (4 * max(1, math.prod(shape[1:]))))
        blocks = (slice(row, min(row + rows, shape[0])) for row in range(0, shape[0], rows))
        return all(np.array_equal(one[block], two[block]) for block in blocks)

    def is_zero(self, name: str) -> bool:
        """Whether a tensor holds nothing but 0."""
        return not self._values[name].any()


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
