"""Rows of Arrow tables."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lensjax.tasks.rows import Rows

if TYPE_CHECKING:
    import pyarrow as pa


class ArrowRows(Rows):
    """The rows of an Arrow table; `name` is what messages call it."""

    def __init__(self, table: "pa.Table", name: str) -> None:
        self._table, self._name = table, name

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, i: int) -> Mapping[str, object]:
        return _ArrowRow(self._table, i)

    def where(self, i: int) -> str:
        return f"{self._name} row {i + 1}"


class _ArrowRow(Mapping[str, object]):
    """A row of an Arrow table, of which each field is converted when it is asked for."""

    def __init__(self, table: "pa.Table", i: int) -> None:
        self._table, self._i = table, i

    def __getitem__(self, name: str) -> object:
        import pyarrow as pa

        scalar = self._table.column(name)[self._i]  # a KeyError where there is none
        value: object = scalar.as_py()
        kind = scalar.type.value_type if pa.types.is_dictionary(scalar.type) else scalar.type
        if value is not None and (pa.types.is_float32(kind) or pa.types.is_float16(kind)):
            return kind.to_pandas_dtype()(value)  # whose text is 0.3 where that of a Python float has 17 digits
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)
