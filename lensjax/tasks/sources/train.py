"""Sets that each have a source of their own."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, SerializeAsAny, model_validator

from lensjax.tasks.rows import Rows
from lensjax.tasks.source import SOURCES, Source, SplitName, as_source

OneSource = Annotated[SerializeAsAny[Source], BeforeValidator(as_source)]


@SOURCES.register("train")
class Train(Source):
    """A source for each set, whose own train split the set is, as in train: {files: a.jsonl}, test: {hub: owner/name}.

    Attributes:
      train: Where the training rows are.
      validation, test: Where those sets are; by default they are held out of train.
    """

    train: OneSource
    validation: OneSource | None = None
    test: OneSource | None = None

    def open(self, split: SplitName, fields: Collection[str] = ()) -> Rows | None:
        source: Source | None = getattr(self, split)
        return None if source is None else source.open("train", fields)

    @property
    def origin(self) -> str:
        return ", ".join(filter(None, (one.origin for _, one in self if isinstance(one, Source))))

    def paths(self) -> list[Path]:
        return [path for _, one in self if isinstance(one, Source) for path in one.paths()]

    def pinned(self, kept: object = None) -> Self:
        sources = {name: one for name, one in self if isinstance(one, Source)}
        return self.model_copy(update={name: one.pinned(getattr(kept, name, None)) for name, one in sources.items()})

    @model_validator(mode="before")
    @classmethod
    def _are_sources(cls, value: Any) -> Any:
        for name in ("train", "validation", "test"):
            if isinstance(value, dict) and isinstance(value.get(name), (str, list)):
                raise ValueError(f"{name} is a source, as in {name}: {{files: {name}.jsonl}}")
        return value
