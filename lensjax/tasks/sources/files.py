"""Rows of JSONL, CSV and Parquet files."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator

from lensjax.core.errors import InputError, listing, one_line, shorten
from lensjax.tasks.arrow import ArrowRows
from lensjax.tasks.rows import Csv, Jsonl, Parts, Rows
from lensjax.tasks.source import SOURCES, Source, SplitName


@SOURCES.register("files")
class Files(Source):
    """Files on disk.

    Attributes:
      files: JSONL, CSV or Parquet files of each split; a text or list alone is `train`.
    """

    files: dict[SplitName, list[Path]]

    def open(self, split: SplitName, fields: Collection[str] = ()) -> Rows | None:
        paths = self.files.get(split)
        return Parts([_open(path, fields) for path in paths]) if paths else None

    @model_validator(mode="before")
    @classmethod
    def _names_its_splits(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("splits") is not None:
            raise ValueError("splits renames the splits of other sources; files names its own")
        return value

    @field_validator("files", mode="before")
    @classmethod
    def _by_split(cls, value: Any) -> Any:
        if isinstance(value, (str, list)):
            value = {"train": value}
        if isinstance(value, dict):
            return {split: [paths] if isinstance(paths, str) else paths for split, paths in value.items()}
        return value

    @model_validator(mode="after")
    def _has_train(self) -> "Files":
        if not self.files.get("train"):
            raise ValueError("files names no train files; add files: {train: …}")
        return self


def _open(path: Path, fields: Collection[str]) -> Rows:
    kind = path.suffix.lower()
    if kind == ".jsonl":
        return Jsonl(path)
    if kind == ".csv":
        return Csv(path)
    if kind == ".parquet":
        return _open_parquet(path, fields)
    raise InputError(
        f"{shorten(path, 200)} is of an unknown kind ('{shorten(path.suffix)}'); give a .jsonl, .csv or .parquet file."
    )


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
    return ArrowRows(table, where)
