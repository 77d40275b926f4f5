"""The weights in a GGUF file under the names that a Hugging Face checkpoint has, dequantised as they are read."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensjax.core.errors import InputError
from lensjax.models.gguf.config import FREQUENCIES, LONG, SHORT, architecture_of
from lensjax.models.gguf.header import Entry, Header, read_header
from lensjax.models.safetensors_files import TensorFiles
from lensjax.models.weights import ParameterNames, Stored

_CONFIGURED = (FREQUENCIES, LONG, SHORT)  # tensors that are settings
_QUERIES, _KEYS, _NORM = ".attn_q.", ".attn_k.", "norm.weight"
_LAYER, _EXPERT = "{layer}", ".{expert}"
_ENDS = (".weight", ".bias")


def names_in_files(names: ParameterNames) -> ParameterNames:
    """What a family's parameters are called where every matrix of an expert is one, as in GGUF files.

    Args:
      names: What they are called in safetensors, where one tensor may be several matrices of all experts.
    """
    made = dict(names)
    for path, entry in names.items():
        stored = entry if isinstance(entry, Stored) else Stored(entry)
        found = re.search(r"experts/(gate|up|down)/(kernel|bias)$", path)
        if found:
            of, end = stored.name.partition(".experts.")[0], _ENDS[found[2] == "bias"]
            name = f"{of}.experts{_EXPERT}.{found[1]}_proj{end}"
            made[path] = replace(stored, name=name, transposed=True, part=None, stacked=0)
        elif path.endswith("/sinks"):
            made[path] = replace(stored, name=f"{stored.name}{_ENDS[0]}")
    return made


class GGUFTensors(TensorFiles):
    """The tensors of a GGUF file; their values are read and dequantised only when asked for.

    Args:
      path: The file.
      config: Its configuration, as Hugging Face's.
      names: What the model's parameters are called, as `names_in_files` says.

    Raises:
      InputError: the file cannot be read.
    """

    described_by = "metadata"

    def __init__(self, path: Path, config: Any, names: ParameterNames) -> None:
        header = read_header(path)
        ours = architecture_of(header)
        heads = {_QUERIES: config.num_attention_heads, _KEYS: config.num_key_value_heads}
        known = _names(header, int(config.num_hidden_layers), names.values())
        slices: dict[str, Any] = {}
        for name, entry in header.tensors.items():
            if name in _CONFIGURED:
                continue
            paired = next((count for part, count in heads.items() if part in name), 0) if ours.paired else 0
            if paired and entry.shape[0] % (2 * paired):
                raise InputError(f"{path} has {name} with {entry.shape[0]} rows for {paired} heads; fetch it again.")
            if name.endswith("shortconv.conv.weight") and len(entry.shape) == 2:  # without an axis of one input
                entry = replace(entry, shape=(entry.shape[0], 1, entry.shape[1]))
            offset = ours.norm_offset if name.endswith(_NORM) else 0.0
            theirs = known.get(name, name)
            if _EXPERT not in theirs:
                slices[theirs] = _Stored(entry, paired, offset)
                continue
            for expert, own in enumerate(_each(entry)):
                slices[theirs.format(expert=expert)] = _Stored(own, paired, offset)
        super().__init__(str(path), slices)


def _names(header: Header, layers: int, entries: Iterable[str | Stored]) -> dict[str, str]:
    """What a checkpoint calls each of a file's tensors, with "{expert}" where that holds one for each expert."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    number = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}[header.architecture]
    table = get_tensor_name_map(MODEL_ARCH(number), layers)
    names: dict[str, str] = {}
    for entry in entries:
        named = entry.name if isinstance(entry, Stored) else entry
        module = next((named.removesuffix(end) for end in _ENDS if named.endswith(end)), named)
        for layer in range(layers) if _LAYER in module else (0,):
            known = table.get_name(module.replace(_EXPERT, "").replace(_LAYER, str(layer)))
            if known is not None:
                names |= {f"{known}{end}": f"{module.replace(_LAYER, str(layer))}{end}" for end in _ENDS}
    return names


def _each(entry: Entry) -> Iterator[Entry]:
    """The matrices that a tensor is a stack of."""
    count, size = entry.shape[0], entry.size // entry.shape[0]
    return (replace(entry, shape=entry.shape[1:], start=entry.start + i * size, size=size) for i in range(count))


class _Stored:
    """A tensor in a file, which can be sliced as an array can.

    Args:
      entry: Where it lies.
      heads: Number of heads in whose rows pairs lie side by side, to be half a head apart; 0 leaves rows as they are.
      offset: What was added to its values.
    """

    def __init__(self, entry: Entry, heads: int, offset: float) -> None:
        self._entry, self._heads, self._offset = entry, heads, offset
        rows = int(np.prod(entry.shape[:-1], dtype=np.int64)) if len(entry.shape) > 1 else 1
        raw = np.memmap(entry.path, np.uint8, "r", entry.start, (rows, entry.size // rows))
        self._data = raw if len(entry.shape) == 2 else raw.reshape(*entry.shape[:-1], -1)

    def get_shape(self) -> list[int]:
        """Its shape."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """The type of its values, once dequantised, as safetensors names it."""
        return "F32"

    def __getitem__(self, index: slice | tuple[slice, ...]) -> NDArray[Any]:
        """Its values within slices of its axes, in float32."""
        rows, *inner = index if isinstance(index, tuple) else (index,)
        if len(self._entry.shape) == 1:
            return self._values(self._data)[self._order(rows)]
        data = self._data[self._order(rows)]
        return self._values(data)[(slice(None), *inner)]

    def _order(self, rows: slice) -> slice | NDArray[np.int64]:
        """Where rows lie in the file."""
        if not self._heads:
            return rows
        size = self._entry.shape[0] // self._heads
        head, row = np.divmod(np.arange(self._entry.shape[0])[rows], size)
        return head * size + row % (size // 2) * 2 + row // (size // 2)

    def _values(self, data: NDArray[np.uint8]) -> NDArray[Any]:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = self._entry.kind
        plain = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}.get(kind)
        values = dequantize(data, GGMLQuantizationType[kind]) if plain is None else data.view(plain)
        return values.astype(np.float32) - np.float32(self._offset) if self._offset else values


def stored_tensors(path: Path) -> TensorFiles:
    """The tensors of a GGUF file as it has them: under its own names, and in its own order.

    Raises:
      InputError: the file cannot be read.
    """
    entries = read_header(path).tensors.items()
    return TensorFiles(str(path), {name: _Stored(entry, 0, 0.0) for name, entry in entries})
