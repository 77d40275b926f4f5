"""The header of a GGUF file: its metadata, and where its tensors lie.

`gguf.GGUFReader` takes 20 s for a vocabulary of 262,144 tokens, and believes every number in the file. This reads the
header in one pass, and refuses counts, lengths and places that the file has no room for. The format is described at
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import importlib.util
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.reading import check_regular

SUFFIX = ".gguf"
PLAIN = ("F32", "F16", "BF16", "F64")
BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4")
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_MOST_AXES, _MOST_VALUES = 4, 2**44


@dataclass(frozen=True)
class Entry:
    """A tensor in a file.

    Attributes:
      path: The file.
      kind: How its values are stored, as ggml names it: "F32", "Q4_K" and so on.
      shape: Its shape, slowest axis first; blocks of values lie along the last axis.
      start, size: Its place in the file, in bytes.
    """

    path: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file, or of several that hold one model.

    Attributes:
      path: The file, or the one of them that was asked for.
      fields: Its metadata by key: numbers, texts, and lists of them.
      tensors: Its tensors by name.
    """

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, Entry]

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the family of the model; "" where the file does not say."""
        name = self.fields.get("general.architecture")
        return name if isinstance(name, str) else ""

    @property
    def quantised(self) -> list[str]:
        """The kinds of blocks that values are stored in, with fewer digits than they had, most values first."""
        counts: Counter[str] = Counter()
        for entry in self.tensors.values():
            counts[entry.kind] += math.prod(entry.shape)
        return [kind for kind, _ in counts.most_common() if kind in BLOCKS]


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file, by its name."""
    return path.suffix.lower() == SUFFIX and path.is_file()


def parts_of(path: Path) -> list[Path]:
    """The files that hold a model together: itself, or all of those named as in model-00001-of-00003.gguf."""
    named = _PART.fullmatch(path.name)
    if named is None:
        return [path]
    start, ending, count = named[1], path.suffix, int(named[3])
    return [path.with_name(f"{start}-{part:05d}-of-{count:05d}{ending}") for part in range(1, count + 1)] or [path]


def provenance(path: Path) -> str:
    """What is to be said of results with a model of a file: that its weights are rounded. "" where they are not."""
    kinds = read_header(path).quantised if is_gguf(path) else []
    if not kinds:
        return ""
    return f"the weights are those of {path.name}, in {listing(kinds)}, dequantised: not those that were trained"


def write_card(path: Path, folder: Path) -> None:
    """Write the model card of a model that was made from a GGUF file: where it is from, and under which licence."""
    fields, said = read_header(path).fields, provenance(path)
    name, licence = (fields.get(f"general.{key}") for key in ("name", "license"))
    lines = ["---", f"license: {licence}", "---"] if re.fullmatch(r"[\w.-]{1,60}", str(licence or "")) else []
    lines += [f"# {shorten(name or path.stem)}", "", f"Made by LensJAX from {path.name}."]
    lines += [f"Before any fine-tuning, {said}."] if said else []
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file, with those of the other parts of the model where it is one of several.

    Raises:
      InputError: the package gguf is not installed, or a file is cut short, malformed, of another version, or missing
        among the parts of the model, or has tensors that are stored in a way LensJAX does not read.
    """
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"Reading {path} needs the package gguf; run `pip install 'lensjax[gguf]'`.")
    parts = parts_of(path)
    if absent := [part.name for part in parts if not part.exists()]:
        raise InputError(f"{path.parent} lacks {listing(absent)} beside {path.name}; fetch all parts of the model.")
    for part in parts:
        check_regular(part, "fetch it again")
    stats = [(part, part.stat()) for part in parts]
    return _read(path, tuple((part, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for part, stat in stats))


@lru_cache(maxsize=8)  # configuration, tokenizer and weights are read one after another, of every candidate
def _read(path: Path, files: tuple[tuple[Path, int, int, int], ...]) -> Header:
    headers = [_of_file(part, size) for part, size, *_ in files]
    fields, tensors = headers[0].fields, dict[str, Entry]()
    for number, header in enumerate(headers):
        count, place = (header.fields.get(f"split.{name}", default) for name, default in (("count", 1), ("no", number)))
        if (count or 1, place) != (len(files), number) or tensors.keys() & header.tensors.keys():
            raise InputError(
                f"{header.path} is part {shorten(place)}, from 0 on, of {shorten(count)} of a model by its metadata, "
                f"and by its name {number} of {len(files)}; fetch all parts, under their own names."
            )
        tensors |= header.tensors
    return Header(path, fields, tensors)


def _of_file(path: Path, size: int) -> Header:
    data = np.memmap(path, np.uint8, mode="r") if size else np.empty(0, np.uint8)
    try:
        return _Cursor(data, path).header()
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        why = shorten(" ".join(str(error).split()), 200).rstrip(".")
        raise InputError(f"{path} is not a whole GGUF file ({why}); fetch it again.") from error


class _Cursor:
    """A place in a file, from which values are read one after another."""

    def __init__(self, data: NDArray[np.uint8], path: Path) -> None:
        self.data, self.path, self.at = memoryview(data), path, 0  # type: ignore[arg-type]

    def header(self) -> Header:
        if self.bytes(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self.number("I")
        if version not in _VERSIONS:
            raise ValueError(f"it is of version {version}, and versions 2 and 3 in little-endian order are read")
        tensors, keys = self.number("Q"), self.number("Q")
        fields: dict[str, Any] = {}
        for _ in range(keys):
            key = self.text()
            if key in fields:
                raise ValueError(f"it says {shorten(key)} twice")
            fields[key] = self.value(self.number("I"))
        entries = self.entries(tensors, fields.get("general.alignment", 32))
        return Header(self.path, fields, entries)

    def entries(self, count: int, alignment: object) -> dict[str, Entry]:
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {shorten(alignment)}, which is no power of 2")
        found: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        for _ in range(count):
            name = self.text()
            if name in found:
                raise ValueError(f"it has two tensors named {shorten(name)}")
            axes = self.number("I")
            if not 1 <= axes <= _MOST_AXES:
                raise ValueError(f"{shorten(name)} has {axes} axes")
            shape = tuple(reversed([self.number("Q") for _ in range(axes)]))
            kind = _kind(self.number("I"), name, self.path)
            found[name] = (kind, shape, self.number("Q"), _bytes(kind, shape, name))
        begin = -(-self.at // alignment) * alignment
        ends = 0
        for name, (_, _, offset, size) in sorted(found.items(), key=lambda item: item[1][2]):
            if offset % alignment or offset < ends or begin + offset + size > len(self.data):
                raise ValueError(f"{shorten(name)} lies across another tensor or the end of the file")
            ends = offset + size
        return {
            name: Entry(self.path, kind, shape, begin + at, size) for name, (kind, shape, at, size) in found.items()
        }

    def bytes(self, count: int) -> bytes:
        """The next bytes."""
        if count > len(self.data) - self.at:
            raise ValueError("it ends too early")
        self.at += count
        return self.data[self.at - count : self.at].tobytes()

    def number(self, code: str) -> Any:
        """The next number, by `struct`'s letter for its type."""
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        return self.bytes(self.number("Q")).decode()

    def value(self, kind: int) -> Any:
        """The next value of metadata."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_letter(kind))
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        values = np.frombuffer(self.bytes(count * struct.calcsize(f"<{_letter(kind)}")), f"<{_numpy(_letter(kind))}")
        return values.tolist()


def _letter(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"its metadata has a value of type {kind}")
    return _NUMBERS[kind]


def _numpy(letter: str) -> str:
    size = struct.calcsize(f"<{letter}")
    return f"{'f' if letter in 'fd' else 'b' if letter == '?' else 'u' if letter.isupper() else 'i'}{size}"


def _kind(number: int, name: str, path: Path) -> str:
    """The name of a type of tensors.

    Raises:
      InputError: it is not one that can be read.
    """
    from gguf import GGMLQuantizationType

    known = {kind.value: kind.name for kind in GGMLQuantizationType}
    kind = known.get(number, f"type {number}")
    if kind not in (*PLAIN, *BLOCKS):
        raise InputError(
            f"{path} holds {shorten(name)} as {kind}, which LensJAX does not read; take a file in "
            f"{', '.join((*PLAIN, *BLOCKS))}."
        )
    return kind


def _bytes(kind: str, shape: tuple[int, ...], name: str) -> int:
    """Bytes of a tensor."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if min(shape) < 1 or math.prod(shape) > _MOST_VALUES:
        raise ValueError(f"{shorten(name)} has the shape {list(shape)}")
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    if shape[-1] % values:
        raise ValueError(f"{shorten(name)} has rows of {shape[-1]} values, and {kind} has blocks of {values}")
    return math.prod(shape) // values * size
