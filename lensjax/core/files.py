"""Files and folders that are written whole or not at all, and locks on them."""

import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO

from lensjax.core.errors import InputError, one_line, shorten

LOCK = ".lock"  # held by a command while it changes files that others may change too
_PREFIX, _SUFFIX = ".lensjax-", ".part"  # of files and folders that are not yet whole
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # errors of file systems without locks
LONGEST_WAIT = 60.0  # seconds for a lock
_BETWEEN_TRIES = 0.002


def check_writable(outputs: Sequence[Path], inputs: Sequence[str | Path] = ()) -> None:
    """Check before long work that its outputs can be written.

    Args:
      outputs: Files that will be written.
      inputs: Files that are read, which no output may replace.

    Raises:
      InputError: an output is given twice, is an input or a folder, or its folder is missing or not writable.
    """
    places = []
    for path in outputs:
        with explained(path):
            places.append(os.path.realpath(path))
    # An input with an impossible name is refused by whoever reads it.
    read = {os.path.realpath(path) for path in inputs if "\0" not in str(path)}
    for path, place in zip(outputs, places, strict=True):
        where, above = shorten(path, 400), shorten(path.parent, 400)
        if places.count(place) > 1:
            raise InputError(f"{where} is named for two outputs; give each its own file.")
        if place in read:
            raise InputError(f"{where} is an input, and writing to it would lose its content; give another file.")
        if os.path.isdir(path):
            raise InputError(f"{where} is a folder; give the name of a file to write.")
        if not os.path.isdir(path.parent):
            raise InputError(f"Cannot write {where}: there is no folder {above}; make it first.")
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"Cannot write {where}: the folder {above} is not writable; choose another place.")


def check_new_folder(folder: Path) -> None:
    """Check before long work that a folder can be made.

    Raises:
      InputError: the path exists and is not an empty folder, or its parent is not a writable folder.
    """
    if os.path.lexists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        raise InputError(f"{folder} is there already and not an empty folder; give a new one.")
    above = next((path for path in folder.absolute().parents if os.path.lexists(path)), Path("/"))
    if not os.path.isdir(above):
        raise InputError(f"Cannot write {shorten(folder, 400)}: {above} is not a folder; choose another place.")
    if not os.access(above, os.W_OK):
        raise InputError(f"Cannot write {shorten(folder, 400)}: {above} is not writable; choose another place.")


def may_write(folder: Path) -> bool:
    """Whether a folder and its lock can be written; not where it is on a disk to read from, or somebody else's."""
    lock = folder / LOCK
    return os.access(folder, os.W_OK) and (not os.path.lexists(lock) or os.access(lock, os.W_OK))


def write_files(contents: Mapping[Path, str | bytes], *, follow: bool = True) -> None:
    """Write several files, all of them or none.

    Each is first written beside its destination, and all are moved into place once they are on disk. An interrupted or
    failed write leaves the earlier files as they were. Devices and pipes are written to directly.

    Args:
      contents: Texts, which are encoded as UTF-8, and bytes by path.
      follow: Write to what a link leads to; otherwise the file takes the place of the link, as in folders that are
        LensJAX's own, where a link may lead to somebody else's file.

    Raises:
      InputError: a folder is missing or not writable, or the disk is full.
    """
    staged: list[tuple[str, Path]] = []
    held = ExitStack()
    try:
        for path, content in contents.items():
            data = content.encode() if isinstance(content, str) else content
            with explained(path):
                destination = path.resolve() if follow else path.parent.resolve() / path.name
                if not follow and destination.is_dir() and not destination.is_symlink():
                    raise InputError(f"{path} is a folder, and a file of LensJAX belongs there; remove it.")
                if follow and destination.is_dir():
                    raise InputError(f"{path} is a folder; give the name of a file to write.")
                if follow and destination.exists() and not destination.is_file():
                    destination.write_bytes(data)
                    continue
                file, name = held.enter_context(_staging_file(destination.parent))
                staged.append((name, destination))
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                share(name)
        for name, destination in staged:
            with explained(destination):
                os.replace(name, destination)
    finally:
        for name, _ in staged:
            if os.path.exists(name):
                os.unlink(name)
        held.close()


@contextmanager
def _staging_file(folder: Path) -> Iterator[tuple[FileIO, str]]:
    """A new file that is not yet whole, and its name; it is locked, so that nobody takes it for a leftover."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=_PREFIX, suffix=_SUFFIX)
    with FileIO(handle, "wb") as file:
        _try_lock(handle)
        yield file, name


def _try_lock(handle: int) -> bool:
    """Lock an open file or folder until it is closed, if nobody else holds its lock and the file system has locks."""
    import fcntl  # POSIX only

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder whole or not at all: a staging folder becomes `path` at the end, and is removed after an error.

    Yields:
      The staging folder, to write into.

    Raises:
      InputError: `path` exists and is not an empty folder, or cannot be written.
    """
    check_new_folder(path)
    staging: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place = path.resolve()
        staging = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{place.name}-", suffix=_SUFFIX, dir=place.parent))
        handle = os.open(staging, os.O_RDONLY)
        try:
            _try_lock(handle)
            yield staging
            share(staging, 0o777)
            os.replace(staging, place)  # over an empty folder at most
        finally:
            os.close(handle)
    except OSError as error:
        why = error.strerror or (os.strerror(errno.ENOSPC) if is_disk_full(error) else error)
        raise InputError(f"Cannot write {path}: {why}; choose another place.") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what killed processes did not finish writing; what a process is writing now is locked, and stays.

    Args:
      folder: Where they wrote.
      name: Only those that were to become the folder of this name; all by default.
    """
    with suppress(OSError):
        for entry in os.scandir(folder):
            if not (is_leftover(entry.name) and entry.name.startswith(f"{_PREFIX}{name}")) or entry.is_symlink():
                continue
            with suppress(OSError):
                handle = os.open(entry.path, os.O_RDONLY)
                try:
                    if _try_lock(handle):
                        shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
                finally:
                    os.close(handle)


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is not yet whole, or never will be."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, unless they exist.

    Raises:
      InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        there = next(one for one in (path, *path.parents) if os.path.lexists(one) and not one.is_dir())
        raise InputError(
            f"{shorten(there, 400)} is no folder, and one belongs there; remove it, or choose another place."
        ) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"Cannot make the folder {shorten(path, 400)}: {why}; choose another place.") from error


@contextmanager
def locked(path: Path, *, blocking: bool = True) -> Iterator[None]:
    """Hold the lock on a file; on file systems without locks, go on without.

    The system releases it when the process ends, even by a kill. (That is why this is no `filelock.FileLock`: where
    there are no locks, that waits for ever, or leaves a file behind which locks out the next process.)

    Args:
      path: The lock file; it is empty, made if it is missing, and stays.
      blocking: Wait while another process holds it, for a minute at most: a process may have been suspended.

    Raises:
      BlockingIOError: another process holds it, and `blocking` is false.
      InputError: the file cannot be written or locked, or another process does not let go of it.
    """
    import fcntl  # POSIX only

    with explained(path):
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            # Of ours alone: a link may lead to somebody else's file, and opening a pipe waits for ever.
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        file = path.open("a")
    with file:
        try:
            _wait_for_lock(file, path) if blocking else fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                where = shorten(path, 400)
                raise InputError(f"Cannot lock {where}: {error.strerror}; choose another place.") from error
        yield


def _wait_for_lock(file: IO[str], path: Path) -> None:
    import fcntl  # POSIX only

    until = time.monotonic() + LONGEST_WAIT
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise InputError(
                    f"Another command, perhaps a suspended one, holds {shorten(path, 400)} for too long; let it go on, "
                    "or end it."
                ) from error
        time.sleep(_BETWEEN_TRIES)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is that of a disk without room."""
    full = errno.ENOSPC, errno.EDQUOT
    while error is not None:
        if isinstance(error, OSError) and error.errno in full:
            return True
        # Of other processes, Orbax and NumPy there is only the text.
        if any(os.strerror(code) in str(error) or f"os_error_code='{code}'" in str(error) for code in full):
            return True
        if re.search(r"\d requested and \d+ written", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def share(path: str | Path, mode: int = 0o666) -> None:
    """Give a temporary file or folder, which only its owner may read, the permissions of new ones."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, mode & ~umask)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """A context in which errors of writing a file become an InputError that names it."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InputError(
            f"Cannot write {shorten(path, 400)}: a name in it is not valid text; mend the name."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a circle of links, before Python 3.13
        if isinstance(error, InputError):
            raise
        why = error.strerror if isinstance(error, OSError) else one_line(error)
        raise InputError(f"Cannot write {shorten(path, 400)}: {why}; choose another place.") from error
