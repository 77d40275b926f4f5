"""Rows of a task's splits, each read when it is asked for: JSONL, CSV, Parquet, TFDS, and what HF datasets saved."""

import itertools
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensjax.core.errors import InputError, listing, one_line, shorten
from lensjax.tasks.rows import Csv, Jsonl, Parts, Rows
from lensjax.tasks.spec import Source, SplitName

if TYPE_CHECKING:
    import pyarrow as pa

_TOGETHER = 100  # examples of TFDS


def open_split(source: Source, split: SplitName, fields: Collection[str] = ()) -> Rows | None:
    """The rows of a split, or None where the source has no such split.

    Args:
      source: where the rows are.
      split: which of them.
      fields: what is needed of a row; of Parquet files nothing else is read. By default everything.

    Raises:
      InputError: a file or data set is missing, malformed or of an unknown kind, or `train` or a split that the source
        renames is not there.
    """
    if source.files is not None:
        paths = source.files.get(split)
        return Parts([_open_file(path, fields) for path in paths]) if paths else None
    name = split if source.splits is None else source.splits.get(split, split)
    if name is None:
        return None
    rows, names = _open_tfds(source, name) if source.tfds is not None else _open_saved(source, name)
    if rows is None and (split == "train" or split in (source.splits or {})):
        kind, data = ("TFDS data set", source.tfds) if source.tfds is not None else ("folder", source.saved)
        raise InputError(
            f"The {kind} {shorten(data, 200)} has no split '{shorten(name)}' but {listing(names)}; "
            f"name the right one in source.splits.{split}."
        )
    return None if rows is None else Parts([rows])


def _open_file(path: Path, fields: Collection[str]) -> Rows:
    kinds: dict[str, Callable[[], Rows]] = {
        ".jsonl": lambda: Jsonl(path),
        ".csv": lambda: Csv(path),
        ".parquet": lambda: _open_parquet(path, fields),
    }
    opened = kinds.get(path.suffix.lower())
    if opened is None:
        raise InputError(
            f"{shorten(path, 200)} is of a kind that is not known ('{shorten(path.suffix)}'); "
            "give a .jsonl, .csv or .parquet file."
        )
    return opened()


class _ArrowRow(Mapping[str, object]):
    """A row of an Arrow table, of which each field is converted when it is asked for."""

    def __init__(self, table: "pa.Table", i: int) -> None:
        self._table, self._i = table, i

    def __getitem__(self, name: str) -> object:
        return self._table.column(name)[self._i].as_py()  # a KeyError where there is none

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)


class _Arrow(Rows):
    """The rows of an Arrow table."""

    def __init__(self, table: "pa.Table", name: str) -> None:
        self._table, self._name = table, name

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, i: int) -> Mapping[str, object]:
        return _ArrowRow(self._table, i)

    def where(self, i: int) -> str:
        return f"{self._name} row {i + 1}"


def _open_parquet(path: Path, fields: Collection[str]) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = shorten(path, 200)
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            names = file.schema_arrow.names
            for field in fields:
                if field not in names:
                    raise InputError(
                        f"{where} has no column '{shorten(field)}' but {listing(names)}; mend the template or the file."
                    )
            table = file.read(columns=list(fields) or None)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else one_line(error)
        raise InputError(f"Cannot read {where}: {why}; mend source.files.") from error
    except pa.ArrowException as error:
        raise InputError(f"{where} is not a whole Parquet file ({one_line(error)}); write it again.") from error
    return _Arrow(table, where)


def _open_saved(source: Source, name: str) -> tuple[Rows | None, list[str]]:
    """The rows of a split of a folder that `save_to_disk` wrote, where it has it, and the names of its splits."""
    folder = source.saved
    assert folder is not None
    several = folder / "dataset_dict.json"
    if several.is_file():
        names = _read_json(several, "splits")
        if name not in names:
            return None, names
        return _open_arrow(folder / name), names
    if not (folder / "state.json").is_file():
        raise InputError(
            f"{shorten(folder, 200)} has neither dataset_dict.json nor state.json; "
            "give the folder that save_to_disk of HF datasets wrote."
        )
    return (_open_arrow(folder) if name == "train" else None), ["train"]


def _open_arrow(folder: Path) -> Rows:
    import pyarrow as pa

    state = folder / "state.json"
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in _read_json(state, "_data_files")]
    tables = []
    for name in names:
        if not isinstance(name, str):
            raise InputError(
                f"{shorten(state, 200)} is not what save_to_disk of HF datasets writes (a data file has no filename); "
                "save the data set again."
            )
        path = folder / name
        try:
            tables.append(pa.ipc.open_stream(pa.memory_map(str(path))).read_all())
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{shorten(path, 200)} is missing or not a whole Arrow file ({one_line(error)}); "
                "save the data set again."
            ) from error
    try:
        table = pa.concat_tables(tables) if tables else pa.table({})
    except pa.ArrowException as error:
        raise InputError(
            f"The Arrow files of {shorten(folder, 200)} do not have the same columns ({one_line(error)}); "
            "save the data set again."
        ) from error
    return _Arrow(table, shorten(folder, 200))


def _read_json(path: Path, key: str) -> list[Any]:
    """A list in a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content[key]
        if not isinstance(found, list):
            raise TypeError(f"{key} is no list")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{shorten(path, 200)} is not what save_to_disk of HF datasets writes ({one_line(error)}); "
            "save the data set again."
        ) from error
    return found


class _Tfds(Rows):
    """Examples of a prepared TFDS data set."""

    def __init__(self, examples: Any, name: str) -> None:
        self._examples, self._name = examples, name

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, i: int) -> Mapping[str, object]:
        try:
            row: Mapping[str, object] = self._examples[i]
        except Exception as error:  # array_record raises RuntimeError, the decoder what it likes
            raise InputError(
                f"{self.where(i)} cannot be read ({one_line(error)}); prepare the data set again."
            ) from error
        return row

    def read(self, numbers: Iterable[int]) -> Iterator[Mapping[str, object]]:
        """The rows of some numbers, in their order; read by the hundred, which is ten times as fast as one by one."""
        iterator = iter(numbers)
        while some := list(itertools.islice(iterator, _TOGETHER)):
            try:
                rows = self._examples.__getitems__(some)
            except Exception:  # one of them cannot be read: find out which
                rows = map(self.__getitem__, some)
            yield from rows

    def where(self, i: int) -> str:
        return f"{self._name} example {i + 1}"


def _open_tfds(source: Source, name: str) -> tuple[Rows | None, list[str]]:
    """The examples of a split of a TFDS data set, where it has it, and the names of its splits.

    Looks for files alone: neither is code of the builder imported, nor a network asked.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.constants import DATA_DIR

    given = str(source.tfds)
    folder = str(source.data_dir or DATA_DIR)
    call = f"tfds.builder({given!r}, data_dir={folder!r}, file_format='array_record').download_and_prepare()"
    mend = f'prepare it with python -c "import tensorflow_datasets as tfds; {call}"'
    try:
        builder = read_only_builder.builder_from_files(given, data_dir=source.data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise InputError(
            f"There is no TFDS data set '{shorten(given)}' prepared in {shorten(folder, 200)}; mend source.tfds (a "
            f"configuration is part of the name) or source.data_dir, or {mend}, or with your own builder likewise."
        ) from error
    except Exception as error:  # whatever a half-written folder makes of TFDS
        raise InputError(
            f"TFDS cannot read '{shorten(given)}' in {shorten(folder, 200)} ({one_line(error)}); remove it and {mend}."
        ) from error
    names = list(builder.info.splits)
    if name not in names and name in ("train", "validation", "test"):
        return None, names
    try:
        return _Tfds(builder.as_data_source(name), f"{builder.name}/{name}"), names
    except NotImplementedError as error:
        raise InputError(
            f"The TFDS data set '{shorten(given)}' in {shorten(folder, 200)} is in {builder.info.file_format.value} "
            f"format, of which no single example can be read; remove it and {mend}."
        ) from error
    except ValueError:
        return None, names
