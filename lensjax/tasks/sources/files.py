"""Rows of files: JSONL, JSON, CSV, TSV, also compressed, and Parquet."""

import glob
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from lensjax.core.errors import InputError, listing, shorten
from lensjax.tasks.formats import FORMATS, is_rows, open_rows
from lensjax.tasks.rows import Parts, Rows
from lensjax.tasks.source import SOURCES, SPLIT_WORDS, Source, SplitName


@SOURCES.register("files")
class Files(Source):
    """Files on disk.

    Attributes:
      files: Files of each split, of the formats in `lensjax.tasks.formats`, folders of such, or patterns such as
        data/*.jsonl. A text or list alone is `train`; those files in its folders and patterns whose names say that they
        are of validation (also valid, val, dev) or test (also eval) are these splits.
      delimiter: What is between the cells of CSV files; by default what their headers show.
    """

    files: dict[SplitName, list[Path]]
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)

    def open(self, split: SplitName, fields: Collection[str] = ()) -> Rows | None:
        paths = self.by_split.get(split)
        return Parts([open_rows(path, fields, delimiter=self.delimiter) for path in paths]) if paths else None

    def paths(self) -> list[Path]:
        return [path for paths in self.by_split.values() for path in paths]

    @property
    def name(self) -> str:
        first = self.files["train"][0]
        return "" if glob.has_magic(first.name) else first.name.partition(".")[0]

    def called(self, split: SplitName) -> str:
        if all(_is_one(path) for paths in self.files.values() for path in paths):
            return ""
        return listing([path.name for path in self.by_split.get(split, [])])

    @property
    def by_split(self) -> dict[SplitName, list[Path]]:
        """The files of each split, those of folders and patterns in the order of their names.

        Raises:
          InputError: a folder or pattern holds none.
        """
        guessed = set(self.files) == {"train"}
        found: dict[SplitName, list[Path]] = {}
        for split, given in self.files.items():
            for one in given:
                for path in _files_of(one):
                    own = split_of(path.name) if guessed and not _is_one(one) else split
                    found.setdefault(own, []).append(path)
        if "train" not in found:
            names = listing([path.name for paths in found.values() for path in paths])
            raise InputError(
                f"No file of source.files is one to train on ({names}); name them as in files: {{train: …}}."
            )
        return found

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


def split_of(name: str) -> SplitName:
    """The split that a file's name says: by one of the words of `SPLIT_WORDS` in it, and else train."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, known in SPLIT_WORDS.items() if any(word in words for word in known)), "train")


def _is_one(path: Path) -> bool:
    """Whether a path is of a file, and neither of a folder nor a pattern."""
    return not path.is_dir() and (path.exists() or not glob.has_magic(str(path)))


def _files_of(path: Path) -> list[Path]:
    """The file of a path, or those of its folder or pattern, by name.

    Raises:
      InputError: there are none.
    """
    if _is_one(path):
        return [path]
    where = shorten(path, 200)
    if path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise InputError(f"{where} is a folder that save_to_disk of HF datasets wrote; give it as source.saved.")
    inside = path.iterdir() if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    found = sorted(one for one in inside if one.is_file() and is_rows(one) and not one.name.startswith("."))
    if not found:
        raise InputError(f"{where} holds no {FORMATS} file; mend source.files.")
    return found
