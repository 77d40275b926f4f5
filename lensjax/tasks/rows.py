"""Rows with random access, and those of text files: JSONL, JSON and CSV."""

import bisect
import csv
import io
import itertools
import json
import os
import re
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Int

from lensjax.core.errors import InputError, shorten
from lensjax.core.reading import unique_fields

_BOM = b"\xef\xbb\xbf"
_DELIMITERS = (",", ";", "\t", "|")
_BLANK = re.compile(r"[ \t\n\r]*")


class Rows(ABC):
    """Rows in a fixed order, read by their number, from 0; a malformed row raises `InputError`."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, i: int) -> Mapping[str, object]: ...

    @abstractmethod
    def where(self, i: int) -> str:
        """The place of row `i` in messages, as in "train.jsonl line 12"."""

    def read(self, numbers: Iterable[int]) -> Iterator[Mapping[str, object]]:
        """The rows of some numbers, in the order of the numbers; each is parsed when it is asked for."""
        return map(self.__getitem__, numbers)


class Parts(Rows):
    """The rows of several files, one after the other; a number out of range raises `IndexError`."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> Mapping[str, object]:
        part, within = self._find(i)
        return part[within]

    def where(self, i: int) -> str:
        part, within = self._find(i)
        return part.where(within)

    def read(self, numbers: Iterable[int]) -> Iterator[Mapping[str, object]]:
        return self._parts[0].read(numbers) if len(self._parts) == 1 else super().read(numbers)

    def _find(self, i: int) -> tuple[Rows, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        part = bisect.bisect_right(self._ends, i)
        return self._parts[part], i - (self._ends[part - 1] if part else 0)


class _Text(Rows):
    """Rows of a text file, parsed when they are asked for; memory holds 24 bytes a row, for its place.

    Args:
      path: The file that users know.
      file: Its content, which is read again row by row, even after the file is closed.

    Attributes:
      path: The file.
      starts, ends: The first byte of each row, and the one after its last.
      lines: Number of the first line of each row, from 1.
    """

    path: Path
    starts: Int[np.ndarray, " N"]
    ends: Int[np.ndarray, " N"]
    lines: Int[np.ndarray, " N"]

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        # Not mapped: a file that shrinks would end the process, and pages of large ones would fill its memory.
        self._handle = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._handle)
        self.starts, self.ends, self.lines = np.fromiter(self._places(file), dtype=np.dtype((np.int64, 3))).T

    @abstractmethod
    def _places(self, file: BinaryIO) -> Iterator[tuple[int, int, int]]:
        """Start, end and first line of every row that is not blank."""

    def __len__(self) -> int:
        return len(self.starts)

    def where(self, i: int) -> str:
        return f"{shorten(self.path, 200)} line {self.lines[i]}"

    def _text(self, i: int) -> str:
        start, size = int(self.starts[i]), int(self.ends[i] - self.starts[i])
        content = os.pread(self._handle, size, start)
        if len(content) < size:
            raise InputError(f"{self.where(i)} was cut off while the file was read; write it whole, and start again.")
        return _decode(content, self.where(i))


class Jsonl(_Text):
    """One JSON object a line."""

    def _places(self, file: BinaryIO) -> Iterator[tuple[int, int, int]]:
        start = 0
        for number, line in enumerate(file, 1):
            mark = len(_BOM) if number == 1 and line.startswith(_BOM) else 0
            if not line[mark:].isspace() and len(line) > mark:
                yield start + mark, start + len(line), number
            start += len(line)

    def __getitem__(self, i: int) -> Mapping[str, object]:
        text = self._text(i)
        try:
            row = json.loads(text, object_pairs_hook=unique_fields)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.where(i)} is not JSON ({shorten(error)}); mend or remove it.") from error
        if not isinstance(row, dict):
            raise InputError(f'{self.where(i)} is not a JSON object; write it as in {{"prompt": …, "target": …}}.')
        return row


class Json(Jsonl):
    """An array of JSON objects; also one object a line, which files of that name hold as well.

    The text is in memory, whole, while it is opened.
    """

    _is_array = False

    def _places(self, file: BinaryIO) -> Iterator[tuple[int, int, int]]:
        content = file.read()
        text = _decode(content, shorten(self.path, 200)).removeprefix(_BOM.decode())
        self._is_array = text.lstrip().startswith("[")
        if self._is_array:
            return self._items(text, len(content) - len(text.encode()))
        file.seek(0)
        return super()._places(file)

    def _items(self, text: str, before: int) -> Iterator[tuple[int, int, int]]:
        """The objects of an array that follows some bytes."""
        decode, place, line = json.JSONDecoder().raw_decode, text.index("[") + 1, 1
        passed = 0  # characters that are counted in `before` and `line`
        try:
            place = _skip_blank(text, place)
            while text[place : place + 1] != "]":
                _, end = decode(text, place)
                line += text.count("\n", passed, place)
                start = before + len(text[passed:place].encode())
                before, passed = start + len(text[place:end].encode()), end
                yield start, before, line
                place = _skip_blank(text, end)
                if text[place : place + 1] == ",":
                    place = _skip_blank(text, place + 1)
                elif text[place : place + 1] != "]":
                    raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
            if rest := text[place + 1 :].strip():
                raise ValueError(f"'{shorten(rest)}' follows the array")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{shorten(self.path, 200)} is not JSON ({shorten(error, 100)}); mend it.") from error

    def where(self, i: int) -> str:
        return f"{shorten(self.path, 200)} item {i + 1}" if self._is_array else super().where(i)

    def __getitem__(self, i: int) -> Mapping[str, object]:
        try:
            return super().__getitem__(i)
        except InputError as error:
            if self._is_array or i:
                raise
            raise InputError(
                f"{shorten(self.path, 200)} is neither an array of objects nor one object a line; write it as in "
                '[{"prompt": …, "target": …}, …].'
            ) from error


class Csv(_Text):
    """A header, and rows of as many cells; quoted cells may hold line ends.

    Args:
      path, file: See `_Text`.
      delimiter: What is between cells; by default the one of comma, semicolon, tab and bar that the header shows.
    """

    header: list[str]

    def __init__(self, path: Path, file: BinaryIO, delimiter: str | None = None) -> None:
        self.delimiter = delimiter or self._shown(file)
        super().__init__(path, file)

    def _shown(self, file: BinaryIO) -> str:
        """The delimiter that makes most columns of the header; a comma, where no other makes more."""
        first = next((line for line in file if line.removeprefix(_BOM).strip()), b"").decode("utf-8", "replace")
        file.seek(0)
        with _long_cells():
            return max(_DELIMITERS, key=lambda one: len(next(csv.reader([first], delimiter=one), [])))

    def _places(self, file: BinaryIO) -> Iterator[tuple[int, int, int]]:
        self.header = []
        start, line, taken, where = 0, 1, 0, shorten(self.path, 200)

        def text() -> Iterator[str]:
            nonlocal taken
            for number, piece in enumerate(file, 1):
                mark = len(_BOM) if number == 1 and piece.startswith(_BOM) else 0
                taken += len(piece)
                yield _decode(piece[mark:], f"{where} line {number}")

        reader = csv.reader(text(), strict=True, delimiter=self.delimiter)
        with _long_cells():
            try:
                for cells in reader:
                    if any(cell.strip() for cell in cells):
                        if self.header:
                            yield start, taken, line
                        else:
                            self.header = self._checked(cells, line)
                    start, line = taken, reader.line_num + 1
            except csv.Error as error:
                raise InputError(f"{where} line {line} is not CSV ({error}); mend or remove it.") from error
        if not self.header:
            raise InputError(f"{where} is empty; it needs a header row such as 'prompt,target'.")

    def _checked(self, cells: list[str], line: int) -> list[str]:
        names = [cell.strip() for cell in cells]
        repeated = [name for i, name in enumerate(names) if name in names[:i]]
        if repeated:
            raise InputError(
                f"{shorten(self.path, 200)} line {line} heads two columns '{shorten(repeated[0])}'; rename one."
            )
        return names

    def __getitem__(self, i: int) -> Mapping[str, object]:
        with _long_cells():
            text = io.StringIO(self._text(i), newline="")
            cells = next(csv.reader(text, strict=True, delimiter=self.delimiter))
        if len(cells) != len(self.header):
            raise InputError(f"{self.where(i)} has {len(cells)} cells, but the header has {len(self.header)}; mend it.")
        return dict(zip(self.header, cells, strict=True))


class Tsv(Csv):
    """The same with tabs between cells."""

    def _shown(self, file: BinaryIO) -> str:
        return "\t"


@contextmanager
def _long_cells() -> Iterator[None]:
    """Lifts the limit of 131,072 characters a cell, a setting of the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _skip_blank(text: str, place: int) -> int:
    blank = _BLANK.match(text, place)
    return place if blank is None else blank.end()


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text; save the file in UTF-8.") from error
