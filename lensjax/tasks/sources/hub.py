"""Rows of data sets on the Hugging Face hub, from their Parquet files."""

import re
from collections.abc import Collection
from typing import Any, Self

from pydantic import field_validator, model_validator

from lensjax.core.errors import InputError, listing
from lensjax.tasks.formats import open_rows
from lensjax.tasks.hub_files import Listing, fetch, list_files
from lensjax.tasks.rows import Parts, Rows
from lensjax.tasks.source import SOURCES, NamedSplits, SplitName

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@SOURCES.register("hub")
class Hub(NamedSplits):
    """A data set on the hub. Only its Parquet files are fetched, and no code of it is run.

    Attributes:
      hub: Its name, as in "owner/name".
      config: Its configuration, where it has several.
      split: Its split to train on, where that is not called train.
      revision: Branch, tag or commit; by default the main branch, or where that has no Parquet files, the one of those
        that the hub makes.
      commit: The commit that `revision` was when it was first read, which results keep; not for users to write.
      splits: See `NamedSplits`.
    """

    hub: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    commit: str | None = None

    @property
    def title(self) -> str:
        config = "" if self.config is None else f", config {self.config},"
        return f"data set {self.hub}{config} on the hub"

    @property
    def name(self) -> str:
        return self.hub

    @property
    def origin(self) -> str:
        return f"hub:{self.hub}@{self.listing.commit}"

    @property
    def listing(self) -> Listing:
        """Its files, at the commit that is known or the one that the revision is now."""
        return list_files(self.hub, self.commit or self.revision)

    def pinned(self, kept: object = None) -> Self:
        commit = None
        if isinstance(kept, Hub) and kept.model_copy(update={"commit": self.commit}) == self:
            commit = kept.commit
        return self.model_copy(update={"commit": self.commit or commit or self.listing.commit})

    def open(self, split: SplitName, fields: Collection[str] = ()) -> Rows | None:
        ours = (self.splits or {}).get("train", "train")
        if split != "train" and split not in (self.splits or {}) and split == ours:
            return None  # it is what the model is trained on
        return super().open(split, fields)

    def find(self, name: str, fields: Collection[str] = ()) -> tuple[Rows | None, list[str]]:
        found = self.listing
        config = self.config
        if config is None:
            config = next(iter(found.files)) if len(found.files) == 1 else "default"
        if config not in found.files:
            known = listing(list(found.files), 20)
            if self.config is None:
                raise InputError(
                    f"The data set {self.hub} on the hub has several configs ({known}); name one in source.config."
                )
            raise InputError(
                f"The data set {self.hub} on the hub has no config '{config}' but {known}; mend source.config."
            )
        splits = found.files[config]
        if name not in splits:
            return None, list(splits)
        paths = fetch(found, splits[name])
        rows = [
            open_rows(path, fields, "remove it, and it is fetched again", name=f"{self.hub} {file}")
            for path, file in zip(paths, splits[name], strict=True)
        ]
        return Parts(rows), list(splits)

    @field_validator("hub")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("write the name of a data set on the hub as owner/name")
        return value

    @field_validator("commit")
    @classmethod
    def _is_a_commit(cls, value: str | None) -> str | None:
        if value is not None and not _COMMIT.fullmatch(value):
            raise ValueError("a commit has 40 digits; name branches and tags in revision")
        return value

    @model_validator(mode="before")
    @classmethod
    def _split_is_train(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("split") is None:
            return value
        named = value.get("splits") or {}
        if isinstance(named, dict):
            if named.get("train", value["split"]) != value["split"]:
                raise ValueError("split and splits.train name two splits to train on; leave one out")
            value = {**value, "splits": {"train": value["split"], **named}}
        return value
