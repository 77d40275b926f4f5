"""Reading files that users name: regular ones only, and whole only up to a size."""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

from lensjax.core.errors import InputError, shorten

MOST = "LENSJAX_MAX_FILE_MB"  # names the environment variable that raises the limit
_DEFAULT = 512  # MB; curves of 30,000 models take about 10


class NotRegular(Exception):
    """There is something else in the place of a file; the message says what."""


def opened(path: Path) -> BufferedReader:
    """Open a file to read bytes from.

    Raises:
      NotRegular: it is a folder, a pipe or a device, which may never end.
      OSError: there is no such file, or it cannot be read.
      ValueError: no file can have this name.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for a writer
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise NotRegular("a folder" if stat.S_ISDIR(mode) else "a pipe or a device")
    return os.fdopen(handle, "rb")


def open_regular(path: Path, mend: str) -> BufferedReader:
    """Open a file that users name, to read bytes from.

    Args:
      path: The file.
      mend: What to do where it cannot be read, for messages.

    Raises:
      InputError: there is no such file, it cannot be read, or it is a folder, a pipe or a device, which may never end.
    """
    where = shorten(path, 200)
    try:
        return opened(path)
    except NotRegular as error:
        file = "" if os.path.isdir(path) else "; write what it gives to a file"
        raise InputError(f"Cannot read {where}: it is {error}{file}; {mend}.") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"Cannot read {where}: {why}; {mend}.") from error


def check_regular(path: Path, mend: str) -> None:
    """Check that a file which another library will open can be read; see `open_regular`.

    Raises:
      InputError: it cannot.
    """
    open_regular(path, mend).close()


def read_bytes(path: Path, mend: str) -> bytes:
    """The content of a file; see `open_regular`.

    Raises:
      InputError: it cannot be read, or is larger than a file of its kind is.
    """
    most = largest()
    with open_regular(path, mend) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(
            f"{shorten(path, 200)} is larger than {most // 10**6:,} MB; {mend}, or set {MOST} to a larger number."
        )
    return content


def read_text(path: Path, mend: str) -> str:
    """The content of a UTF-8 file, with or without a byte order mark; see `read_bytes`.

    Raises:
      InputError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        return read_bytes(path, mend).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{shorten(path, 200)} is not UTF-8 text; {mend}.") from error


def largest() -> int:
    """The largest size of a file that is read whole, in bytes.

    Raises:
      InputError: the environment variable that sets it holds no such number.
    """
    given = os.environ.get(MOST, "")
    if given and not (given.isdecimal() and 0 < int(given) < 10**9):
        raise InputError(f"{MOST} is '{shorten(given)}'; give a whole number of megabytes.")
    return int(given or _DEFAULT) * 10**6


def unique_fields(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, as `object_pairs_hook` of `json.loads` makes it, which has every field once.

    Raises:
      ValueError: one is there twice, of which Python's would take the last in silence.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"'{shorten(name)}' is there twice")
    return fields
