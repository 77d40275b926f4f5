"""Files of rows in every format that tasks read, by the endings of their names."""

import errno
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from lensjax.core.errors import InputError, listing, meant, one_line, shorten
from lensjax.core.reading import check_regular, open_regular
from lensjax.tasks.arrow import ArrowRows
from lensjax.tasks.paths import field_path
from lensjax.tasks.rows import Csv, Json, Jsonl, Rows, Tsv

TEXTS = {".jsonl": Jsonl, ".ndjson": Jsonl, ".json": Json, ".csv": Csv, ".tsv": Tsv}
PARQUET = ".parquet"
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
FORMATS = ".jsonl, .json, .csv, .tsv (each also as .gz or .zst) or .parquet"
_PIECE = 1 << 20


def is_rows(path: Path) -> bool:
    """Whether the name of a file is that of rows."""
    ending = path.suffix.lower()
    inner = Path(path.stem).suffix.lower() if ending in COMPRESSED else ending
    return inner in TEXTS or ending == PARQUET


def open_rows(
    path: Path,
    fields: Collection[str] = (),
    mend: str = "mend source.files",
    name: str | None = None,
    delimiter: str | None = None,
) -> Rows:
    """The rows of a file.

    Args:
      path: The file. A compressed one is written out to a temporary file, which is gone when nobody reads it any more.
      fields: Names of the fields of a row that must be read; by default all.
      mend: What to do where it cannot be read, for messages.
      name: Of a Parquet file in messages; by default its path.
      delimiter: What is between the cells of CSV; by default what the header shows.

    Raises:
      InputError: the file is missing, damaged, or of another format.
    """
    ending = path.suffix.lower()
    if ending in COMPRESSED:
        inner = Path(path.stem).suffix.lower()
        if inner in TEXTS:
            with _written_out(path, COMPRESSED[ending], mend) as file:
                return _text_rows(inner, path, file, delimiter)
        if inner == PARQUET:
            raise InputError(f"{shorten(path, 200)} is Parquet in {COMPRESSED[ending]}; write it out and give that.")
    elif ending in TEXTS:
        with open_regular(path, mend) as file:
            return _text_rows(ending, path, file, delimiter)
    elif ending == PARQUET:
        check_regular(path, mend)
        return _open_parquet(path, fields, mend, name or shorten(path, 200))
    raise InputError(
        f"{shorten(path, 200)} is of an unknown kind ('{shorten(''.join(path.suffixes[-2:]))}'); give a {FORMATS} file."
    )


def _text_rows(ending: str, path: Path, file: BinaryIO, delimiter: str | None) -> Rows:
    kind = TEXTS[ending]
    return kind(path, file, delimiter) if delimiter is not None and issubclass(kind, Csv) else kind(path, file)


@contextmanager
def _written_out(path: Path, compression: str, mend: str) -> Iterator[BinaryIO]:
    """The content of a compressed file, in a temporary file without a name."""
    import pyarrow as pa

    where = shorten(path, 200)
    with tempfile.TemporaryFile() as file:
        try:
            with open_regular(path, mend) as raw, pa.CompressedInputStream(raw, compression) as stream:
                while piece := stream.read(_PIECE):
                    file.write(piece)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise InputError(
                    f"{where} takes more room than {tempfile.gettempdir()} has, where it is written out; make room, or "
                    "name another folder in TMPDIR."
                ) from error
            if error.errno:
                why = os.strerror(error.errno)
                raise InputError(f"Cannot read {where}: {why}; {mend}.") from error
            raise InputError(f"{where} is not whole in {compression} ({one_line(error)}); write it again.") from error
        file.seek(0)
        yield cast(BinaryIO, file)


def _open_parquet(path: Path, fields: Collection[str], mend: str, where: str) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            names = file.schema_arrow.names
            columns = list(dict.fromkeys(one if one in names else field_path(one)[0] for one in fields))
            for field in columns:
                if field not in names:
                    near = meant(field, names)
                    mend = f"did you mean {{{near}}}?" if near else "mend the template or the file."
                    raise InputError(f"{where} has no column '{shorten(field)}' but {listing(names)}; {mend}")
            table = file.read(columns=columns or None)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else one_line(error)
        raise InputError(f"Cannot read {where}: {why}; {mend}.") from error
    except pa.ArrowException as error:
        raise InputError(f"{where} is not a whole Parquet file ({one_line(error)}); write it again.") from error
    return ArrowRows(table, where)
