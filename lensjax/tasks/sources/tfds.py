"""Examples of TensorFlow data sets, read without TensorFlow."""

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import field_validator

from lensjax.core.errors import InputError, one_line, shorten
from lensjax.tasks.rows import Rows
from lensjax.tasks.source import SOURCES, NamedSplits

_NAME = re.compile(r"\w+(/[\w.+-]+)?(:[\d.*]+)?")
_TOGETHER = 100  # examples that are read at once


@SOURCES.register("tfds")
class Tfds(NamedSplits):
    """A TensorFlow data set, prepared in array_record format.

    Attributes:
      tfds: Its name, as in "my_verses/plain:1.0.0".
      data_dir: Where TFDS keeps its data sets; by default where TFDS itself looks.
      splits: See `NamedSplits`; names may be slices, as in "train[:90%]".
    """

    tfds: str
    data_dir: Path | None = None

    @property
    def title(self) -> str:
        return f"TFDS data set {shorten(self.tfds, 200)}"

    def find(self, name: str, fields: Collection[str] = ()) -> tuple[Rows | None, list[str]]:
        # This looks for files alone: no code of the builder is imported, and no network asked.
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder
        from tensorflow_datasets.core.constants import DATA_DIR

        given = self.tfds
        folder = str(self.data_dir or DATA_DIR)
        call = f"tfds.builder({given!r}, data_dir={folder!r}, file_format='array_record').download_and_prepare()"
        mend = f'prepare it with python -c "import tensorflow_datasets as tfds; {call}"'
        try:
            builder = read_only_builder.builder_from_files(given, data_dir=self.data_dir)
        except tfds.core.DatasetNotFoundError as error:
            raise InputError(
                f"There is no TFDS data set '{shorten(given)}' prepared in {shorten(folder, 200)}; mend source.tfds (a "
                f"configuration is part of the name) or source.data_dir, or {mend}, or with your own builder likewise."
            ) from error
        except Exception as error:  # half-written folders can raise any error in TFDS
            raise InputError(
                f"TFDS cannot read '{shorten(given)}' in {shorten(folder, 200)} ({one_line(error)}); remove it and "
                f"{mend}."
            ) from error
        names = list(builder.info.splits)
        if name not in names and name in ("train", "validation", "test"):
            return None, names
        try:
            examples = builder.as_data_source(name)
            return _Examples(examples, f"{builder.name}/{name}", _classes(builder.info.features)), names
        except NotImplementedError as error:
            raise InputError(
                f"The TFDS data set '{shorten(given)}' in {shorten(folder, 200)} is in "
                f"{builder.info.file_format.value} format, of which no single example can be read; remove it and "
                f"{mend}."
            ) from error
        except ValueError:
            return None, names

    @field_validator("tfds")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("write it as in my_verses, my_verses/plain or my_verses/plain:1.0.0")
        return value


class _Examples(Rows):
    """Examples of a prepared TFDS data set, in which numbers of classes are the classes' names."""

    def __init__(self, examples: Any, name: str, classes: Mapping[str, Sequence[str]]) -> None:
        self._examples, self._name, self._classes = examples, name, classes

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, i: int) -> Mapping[str, object]:
        try:
            row = self._examples[i]
        except Exception as error:  # array_record raises RuntimeError, and decoders any error
            raise InputError(
                f"{self.where(i)} cannot be read ({one_line(error)}); prepare the data set again."
            ) from error
        return self._named(row)

    def read(self, numbers: Iterable[int]) -> Iterator[Mapping[str, object]]:
        """The rows of some numbers, in their order; read by the hundred, which is ten times as fast as one by one."""
        iterator = iter(numbers)
        while some := list(itertools.islice(iterator, _TOGETHER)):
            try:
                rows = map(self._named, self._examples.__getitems__(some))
            except Exception:  # one of them cannot be read: find out which
                rows = map(self.__getitem__, some)
            yield from rows

    def _named(self, row: Mapping[str, object]) -> Mapping[str, object]:
        if not self._classes:
            return row
        return dict(row) | {name: _name_of(row[name], names) for name, names in self._classes.items() if name in row}

    def where(self, i: int) -> str:
        return f"{self._name} example {i + 1}"


def _classes(features: Any) -> dict[str, list[str]]:
    """The names of classes by field, where the data set has them."""
    import tensorflow_datasets as tfds

    fields = features.items() if isinstance(features, tfds.features.FeaturesDict) else ()
    classes = {name: one for name, one in fields if isinstance(one, tfds.features.ClassLabel)}
    return {name: list(one.names) for name, one in classes.items() if one.num_classes}


def _name_of(value: Any, names: Sequence[str]) -> str | None:
    """The name of a class by its number; None for -1, which stands for one that is not known."""
    return names[int(value)] if 0 <= int(value) < len(names) else None
