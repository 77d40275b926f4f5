"""Sources: where the rows of a task are.

A source is a class with the settings that its users write under `source:` in a spec, and a method that opens a split.
Adding one is adding a module to `lensjax.tasks.sources`, or to a package with an entry point in "lensjax.sources". The
module and one of the settings have the name that the class is registered by:

    @SOURCES.register("parquet")
    class Parquet(Source):
        parquet: Path

        def open(self, split, fields=()): ...
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from os.path import expanduser
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from lensjax.core.errors import InputError, listing, meant, shorten
from lensjax.core.registry import Registry
from lensjax.core.specs import Strict
from lensjax.tasks.rows import Parts, Rows

SplitName = Literal["train", "validation", "test"]
SPLIT_WORDS: Mapping[SplitName, tuple[str, ...]] = {  # what splits are called besides their own names
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


class Source(Strict, ABC):
    """Where a task's rows are; paths in it are relative to the folder of the spec."""

    @abstractmethod
    def open(self, split: SplitName, fields: Collection[str] = ()) -> Rows | None:
        """The rows of a split.

        Args:
          split: Which of them.
          fields: Names of the fields of a row that must be read; by default all.

        Returns:
          The rows, each parsed when it is asked for; None if the source has no such split.

        Raises:
          InputError: the data are missing or malformed, or lack `train` or a split that the source renames.
        """

    @property
    def name(self) -> str:
        """What its rows are called, as in a title; "" where nothing says."""
        return ""

    def called(self, split: SplitName) -> str:
        """The name that a split has in the source, for messages; "" where that says nothing.

        Raises:
          InputError: the data are missing.
        """
        return ""

    @property
    def origin(self) -> str:
        """Where rows that may change come from, as results record it; "" for what lies here."""
        return ""

    def pinned(self, kept: object = None) -> Self:
        """This source as what it is now, so that a later command reads the same rows.

        Args:
          kept: The source of earlier results: where it was the same, it stays what it was.

        Raises:
          InputError: it cannot be reached.
        """
        return self

    def paths(self) -> list[Path]:
        """The files that its rows are in, where it has any of its own."""
        return []

    def relative_to(self, folder: Path) -> Self:
        """This source with its relative paths taken from a folder."""
        return self.model_copy(update={name: _relative_to(folder, value) for name, value in self})

    @model_validator(mode="before")
    @classmethod
    def _own_fields(cls, value: Any) -> Any:
        """Drop the empty fields of other sources, as earlier versions wrote them, and refuse filled ones."""
        own = {}
        for field, given in value.items() if isinstance(value, Mapping) else ():
            others = [] if field in cls.model_fields else _sources_with(field)
            if others and given is not None:
                raise ValueError(f"{field} belongs to {' and '.join(others)}, which {_is(others)} not given")
            if not others:
                own[field] = given
        return own or value


class NamedSplits(Source):
    """A source whose splits have names.

    Attributes:
      splits: The source's own names of `train`, `validation` and `test`, where they differ; null for a split that is to
        be held out of train instead.
    """

    splits: dict[SplitName, str | None] | None = None

    @property
    @abstractmethod
    def title(self) -> str:
        """Its name in messages, as in "folder verses"."""

    @abstractmethod
    def find(self, name: str, fields: Collection[str] = ()) -> tuple[Rows | None, list[str]]:
        """The rows of a split by its own name, None where there is none of that name; and the names of all splits.

        Args:
          name: The split's own name.
          fields: See `open`.
        """

    @property
    def name(self) -> str:
        """What its rows are called, as in a title; "" where nothing says."""
        return ""

    def called(self, split: SplitName) -> str:
        name = (self.splits or {}).get(split, split)
        if name is None:
            return ""
        names = self.find(name)[1]
        return name if name in names else self._likely(split, names) or ""

    def _likely(self, split: SplitName, names: Collection[str]) -> str | None:
        """The split that is called by another word for one that is neither there nor renamed."""
        taken = {name for name in (self.splits or {}).values() if name}
        others = (word for word in SPLIT_WORDS[split] if word in names and word not in taken)
        return None if split in (self.splits or {}) else next(others, None)

    def open(self, split: SplitName, fields: Collection[str] = ()) -> Rows | None:
        renamed = self.splits or {}
        name = renamed.get(split, split)
        if name is None:
            return None
        rows, names = self.find(name, fields)
        if rows is None and (likely := self._likely(split, names)) is not None:
            rows, names = self.find(likely, fields)
        if rows is None and (split == "train" or split in renamed):
            raise InputError(
                f"The {self.title} has no split '{shorten(name)}' but {listing(names)}; name the right one in "
                f"source.splits.{split}."
            )
        return None if rows is None else Parts([rows])

    @field_validator("splits")
    @classmethod
    def _keeps_train(cls, value: dict[SplitName, str | None] | None) -> dict[SplitName, str | None] | None:
        if value and "train" in value and not value["train"]:
            raise ValueError("train is what the others are held out of; name it")
        return value


SOURCES: Registry[type[Source]] = Registry("source", "lensjax.tasks.sources", "lensjax.sources")


def as_source(value: Any) -> Any:
    """The source that has the fields of a mapping, one of which has its name; anything else as it is.

    Raises:
      ValidationError: a field is wrong, or no source has it.
      ValueError: the fields name no source, or several.
    """
    if not isinstance(value, Mapping):
        return value
    named = [name for name in SOURCES.names if value.get(name) is not None]
    if len(named) == 1 and set(value) <= set(SOURCES[named[0]].model_fields):
        return SOURCES[named[0]].model_validate(value)
    for field, given in value.items():
        if not _sources_with(field):
            known = {name for source in SOURCES for name in SOURCES[source].model_fields}
            unknown = PydanticCustomError("extra_forbidden", "unknown field", {"meant": meant(field, known)})
            raise ValidationError.from_exception_data("Source", [{"type": unknown, "loc": (field,), "input": given}])
    if len(named) == 1:
        return SOURCES[named[0]].model_validate(value)  # which says whose fields it has
    *first, last = SOURCES.names
    raise ValueError(f"give one of {', '.join(first)} and {last}, not {' and '.join(named) or 'none of them'}")


def _sources_with(field: str) -> list[str]:
    """Names of the sources that have a field."""
    return [name for name, source in SOURCES.items() if field in source.model_fields]


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _relative_to(folder: Path, value: Any) -> Any:
    """Paths, also those in lists, values of dicts and other sources, taken from a folder."""
    if isinstance(value, Path):
        return folder / expanduser(value)  # it keeps a ~ of no user
    if isinstance(value, dict):
        return {key: _relative_to(folder, one) for key, one in value.items()}
    if isinstance(value, Source):
        return value.relative_to(folder)
    return [_relative_to(folder, one) for one in value] if isinstance(value, list) else value
