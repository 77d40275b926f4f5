"""Rows of Arrow tables."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lensjax.core.errors import InputError, one_line, shorten
from lensjax.tasks.rows import Rows

if TYPE_CHECKING:
    import pyarrow as pa


class ArrowRows(Rows):
    """The rows of an Arrow table; `name` is what messages call it.

    Numbers of classes are the classes' names, in columns of which HF datasets keeps these beside the table.
    """

    def __init__(self, table: "pa.Table", name: str) -> None:
        self._table, self._name, self._classes = table, name, class_names(table)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, i: int) -> Mapping[str, object]:
        return _ArrowRow(self._table, i, self._name, self._classes)

    def where(self, i: int) -> str:
        return f"{self._name} row {i + 1}"


class _ArrowRow(Mapping[str, object]):
    """A row of an Arrow table, of which each field is converted when it is asked for."""

    def __init__(self, table: "pa.Table", i: int, where: str, classes: Mapping[str, list[str]]) -> None:
        self._table, self._i, self._name, self._classes = table, i, where, classes

    def __getitem__(self, name: str) -> object:
        import pyarrow as pa

        scalar = self._table.column(name)[self._i]  # a KeyError where there is none
        try:
            value: object = scalar.as_py()
        except (ValueError, OverflowError, ArithmeticError, pa.ArrowException) as error:  # as of the year 300,000
            raise InputError(
                f"{self._name} row {self._i + 1} holds what Python does not have in the field '{shorten(name)}' "
                f"({one_line(error)}); mend it, or leave the column out."
            ) from error
        if name in self._classes and isinstance(value, int):
            names = self._classes[name]
            return names[value] if 0 <= value < len(names) else None  # -1 stands for one that is not known
        kind = scalar.type.value_type if pa.types.is_dictionary(scalar.type) else scalar.type
        if value is not None and (pa.types.is_float32(kind) or pa.types.is_float16(kind)):
            return kind.to_pandas_dtype()(value)  # whose text is 0.3 where that of a Python float has 17 digits
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)


def class_names(table: "pa.Table") -> dict[str, list[str]]:
    """The names of classes, by column, as HF datasets keeps the features of a table in its metadata."""
    try:
        features = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
        classes = {name: one["names"] for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):  # none, or of another form
        return {}
    return {name: list(map(str, names)) for name, names in classes.items() if isinstance(names, list)}
