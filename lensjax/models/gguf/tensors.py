"""The weights in a GGUF file under the names that a Hugging Face checkpoint has, dequantised as they are read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensjax.core.errors import InputError
from lensjax.models.gguf.config import FREQUENCIES, LONG, SHORT, architecture_of
from lensjax.models.gguf.header import Entry, read_header
from lensjax.models.safetensors_files import TensorFiles

_CONFIGURED = (FREQUENCIES, LONG, SHORT)  # tensors that are settings
_QUERIES, _KEYS, _NORM = ".attn_q.", ".attn_k.", "norm.weight"


class GGUFTensors(TensorFiles):
    """The tensors of a GGUF file; their values are read and dequantised only when asked for.

    Args:
      path: The file.
      config: Its configuration, as Hugging Face's.
      modules: What a checkpoint calls the model's modules, with "{layer}" for the index of a layer.

    Raises:
      InputError: the file cannot be read.
    """

    described_by = "metadata"

    def __init__(self, path: Path, config: Any, modules: Iterable[str]) -> None:
        from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

        header = read_header(path)
        ours = architecture_of(header)
        number = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}[header.architecture]
        layers = int(config.num_hidden_layers)
        table = get_tensor_name_map(MODEL_ARCH(number), layers)
        names: dict[str, str] = {}
        for module in modules:
            for layer in range(layers) if "{layer}" in module else (0,):
                known = table.get_name(module.format(layer=layer))
                if known is not None:
                    names |= {f"{known}{end}": f"{module.format(layer=layer)}{end}" for end in (".weight", ".bias")}
        heads = {_QUERIES: config.num_attention_heads, _KEYS: config.num_key_value_heads}
        slices: dict[str, Any] = {}
        for name, entry in header.tensors.items():
            if name not in _CONFIGURED:
                paired = next((count for part, count in heads.items() if part in name), 0) if ours.paired else 0
                if paired and entry.shape[0] % (2 * paired):
                    raise InputError(
                        f"{path} has {name} with {entry.shape[0]} rows for {paired} heads; fetch it again."
                    )
                offset = ours.norm_offset if name.endswith(_NORM) else 0.0
                slices[names.get(name, name)] = _Stored(path, entry, paired, offset)
        super().__init__(str(path), slices)


class _Stored:
    """A tensor in a file, which can be sliced as an array can.

    Args:
      path: The file.
      entry: Where it lies.
      heads: Number of heads in whose rows pairs lie side by side, to be half a head apart; 0 leaves rows as they are.
      offset: What was added to its values.
    """

    def __init__(self, path: Path, entry: Entry, heads: int, offset: float) -> None:
        self._entry, self._heads, self._offset = entry, heads, offset
        rows = int(np.prod(entry.shape[:-1], dtype=np.int64)) if len(entry.shape) > 1 else 1
        raw = np.memmap(path, np.uint8, "r", entry.start, (rows, entry.size // rows))
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
