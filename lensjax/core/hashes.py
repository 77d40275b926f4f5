"""Hashes of whole files, each read once: they are kept until size, times or inode say that it may be another."""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from platformdirs import user_cache_path
from pydantic import RootModel

from lensjax.core.artefacts import read_sealed, sealed
from lensjax.core.errors import InputError, shorten
from lensjax.core.files import write_files
from lensjax.core.reading import open_regular

_LARGE = 2**24  # bytes from which on a hash is kept on disk for later commands too
_MOST = 4096  # hashes on disk
_SETTLED = 2.0  # seconds after which a further change of a file also changes its time, on any file system
_MEND = "mend it, or fetch it again"
_known: dict[str, str] = {}  # of this process, by `_key`


class _Kept(RootModel[dict[str, str]]):
    """Hashes on disk, by `_key`."""


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's content.

    Raises:
      InputError: it cannot be read.
    """
    return file_hashes([path])[0]


def file_hashes(paths: Sequence[Path]) -> list[str]:
    """The SHA-256 of each file's content; what is not known yet is read by several threads.

    Raises:
      InputError: one cannot be read.
    """
    keys = [_key(path) for path in paths]
    if any(key not in _known and size >= _LARGE for key, size, _ in keys):
        for key, kept in _read_kept().items():
            _known.setdefault(key, kept)
    unknown = {key: path for (key, _, _), path in zip(keys, paths, strict=True) if key not in _known}
    if len(unknown) == 1:
        found = {key: _hash(path) for key, path in unknown.items()}
    elif unknown:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = dict(zip(unknown, pool.map(_hash, unknown.values()), strict=True))
    else:
        found = {}
    hashes = [_known.get(key) or found[key] for key, _, _ in keys]
    # What was changed a moment ago may be changed again without a later time.
    settled = {key: found[key] for key, _, changed in keys if key in found and time.time() - changed > _SETTLED}
    _known.update(settled)
    if large := {key: settled[key] for key, size, _ in keys if key in settled and size >= _LARGE}:
        _keep(large)
    return hashes


def _key(path: Path) -> tuple[str, int, float]:
    """A text that changes when a file may have changed, its size, and when it changed last."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise InputError(f"Cannot read {shorten(path, 400)}: {error.strerror}; {_MEND}.") from error
    changed = max(found.st_mtime, found.st_ctime)
    times = f"{found.st_mtime_ns} {found.st_ctime_ns}"
    return f"{os.path.realpath(path)} {found.st_size} {times} {found.st_ino}", found.st_size, changed


def _hash(path: Path) -> str:
    try:
        with open_regular(path, _MEND) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"Cannot read {shorten(path, 400)}: {error.strerror}; {_MEND}.") from error


def _place() -> Path:
    return user_cache_path("lensjax") / "hashes.json"


def _read_kept() -> dict[str, str]:
    try:
        kept = read_sealed(_place(), _Kept)
    except InputError:  # they are made again
        return {}
    return {} if kept is None else kept.root


def _keep(hashes: dict[str, str]) -> None:
    """Keep hashes for later commands, where the user has a cache folder."""
    place = _place()
    if not place.is_absolute():  # users may have no home
        return
    kept = _read_kept() | hashes
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_files({place: sealed(dict(list(kept.items())[-_MOST:]))}, follow=False)
    except (InputError, OSError):  # such as a home that may not be written
        return
