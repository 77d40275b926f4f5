"""Rows of data sets that `save_to_disk` of HF datasets wrote, read without that library."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lensjax.core.errors import InputError, one_line, shorten
from lensjax.core.reading import check_regular, read_text
from lensjax.tasks.arrow import ArrowRows
from lensjax.tasks.rows import Rows
from lensjax.tasks.source import SOURCES, NamedSplits


@SOURCES.register("saved")
class Saved(NamedSplits):
    """A folder that `save_to_disk` of HF datasets wrote.

    Attributes:
      saved: The folder.
      splits: See `NamedSplits`.
    """

    saved: Path

    @property
    def title(self) -> str:
        return f"folder {shorten(self.saved, 200)}"

    def paths(self) -> list[Path]:
        return sorted(path for path in self.saved.rglob("*") if path.is_file())

    def find(self, name: str, fields: Collection[str] = ()) -> tuple[Rows | None, list[str]]:
        several = self.saved / "dataset_dict.json"
        if several.is_file():
            names = _read_json(several, "splits")
            inside = name in names and Path(name).name == name
            return (_open_arrow(self.saved / name) if inside else None), names
        if not (self.saved / "state.json").is_file():
            raise InputError(
                f"{shorten(self.saved, 200)} has neither dataset_dict.json nor state.json; give the folder that "
                "save_to_disk of HF datasets wrote."
            )
        return (_open_arrow(self.saved) if name == "train" else None), ["train"]


def _open_arrow(folder: Path) -> Rows:
    import pyarrow as pa

    state = folder / "state.json"
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in _read_json(state, "_data_files")]
    tables = []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(
                f"{shorten(state, 200)} is not what save_to_disk of HF datasets writes (a data file has no filename of "
                "its own); save the data set again."
            )
        path = folder / name
        check_regular(path, "save the data set again")
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
    return ArrowRows(table, shorten(folder, 200))


def _read_json(path: Path, key: str) -> list[Any]:
    """A list in a JSON object."""
    try:
        content = json.loads(read_text(path, "save the data set again"))
        values = content[key]
        if not isinstance(values, list):
            raise TypeError(f"{key} is no list")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{shorten(path, 200)} is not what save_to_disk of HF datasets writes ({one_line(error)}); "
            "save the data set again."
        ) from error
    return values
