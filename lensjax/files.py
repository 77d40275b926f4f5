"""Writing files whole or not at all."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lensjax.errors import InputError


def check_writable(paths: Sequence[Path]) -> None:
    """Fail before long work rather than after it where a file plainly cannot be written.

    Raises:
      InputError: a path is given twice or is a folder, or its folder is missing or not writable.
    """
    for path in paths:
        if list(paths).count(path) > 1:
            raise InputError(f"{path} is named for two outputs; give each its own file.")
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file to write.")
        if not path.parent.is_dir():
            raise InputError(f"Cannot write {path}: there is no folder {path.parent}; make it first.")
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"Cannot write {path}: the folder {path.parent} is not writable; choose another place.")


def write_files(contents: Mapping[Path, str]) -> None:
    """Write every text to its path as UTF-8, all of them or none.

    Every text is first written in full beside its destination; only when all are on disk are they moved
    into place, so an interrupted or failed write leaves the earlier files as they were.

    Raises:
      InputError: a folder is missing, is not writable, or the disk is full.
    """
    staged: list[tuple[str, Path]] = []
    try:
        for path, text in contents.items():
            try:
                if path.is_dir():
                    raise InputError(f"{path} is a folder; give the name of a file to write.")
                handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
                staged.append((name, path))
                with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                    file.write(text)
                umask = os.umask(0)
                os.umask(umask)
                os.chmod(name, 0o666 & ~umask)
            except OSError as error:
                raise InputError(f"Cannot write {path}: {error.strerror}; choose another place.") from error
        for name, path in staged:
            os.replace(name, path)
    finally:
        for name, _ in staged:
            if os.path.exists(name):
                os.unlink(name)
