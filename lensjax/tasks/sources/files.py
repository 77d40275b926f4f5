"""Rows of files: JSONL, JSON, CSV, also compressed, and Parquet."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator

from lensjax.tasks.formats import open_rows
from lensjax.tasks.rows import Parts, Rows
from lensjax.tasks.source import SOURCES, Source, SplitName


@SOURCES.register("files")
class Files(Source):
    """Files on disk.

    Attributes:
      files: Files of each split, of the formats in `lensjax.tasks.formats`; a text or list alone is `train`.
    """

    files: dict[SplitName, list[Path]]

    def open(self, split: SplitName, fields: Collection[str] = ()) -> Rows | None:
        paths = self.files.get(split)
        return Parts([open_rows(path, fields) for path in paths]) if paths else None

    def paths(self) -> list[Path]:
        return [path for paths in self.files.values() for path in paths]

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
