"""Writing files whole or not at all, and one at a time."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lensjax.core.errors import InputError, shorten

LOCK = ".lock"  # held by a command while it changes files that others may change too
_PREFIX, _SUFFIX = ".lensjax-", ".part"  # of what is not yet whole
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # what file systems without locks say


def check_writable(outputs: Sequence[Path], inputs: Sequence[str | Path] = ()) -> None:
    """Fail before long work rather than after it where a file plainly cannot be written.

    Raises:
      InputError: an output is given twice, is an input or a folder, or its folder is missing or not writable.
    """
    places = [path.resolve() for path in outputs]
    read = {Path(path).resolve() for path in inputs}
    for path, place in zip(outputs, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{path} is named for two outputs; give each its own file.")
        if place in read:
            raise InputError(f"{path} is read, and writing to it would lose what it holds; give another file.")
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file to write.")
        if not path.parent.is_dir():
            raise InputError(f"Cannot write {path}: there is no folder {path.parent}; make it first.")
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"Cannot write {path}: the folder {path.parent} is not writable; choose another place.")


def check_new_folder(folder: Path) -> None:
    """Fail before long work rather than after it where a folder plainly cannot be made.

    Raises:
      InputError: it exists and is not an empty folder, or the one it would lie in is not a writable folder.
    """
    if os.path.lexists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        raise InputError(f"{folder} is there already and not an empty folder; give a new one.")
    above = next((path for path in folder.absolute().parents if os.path.lexists(path)), Path("/"))
    if not os.path.isdir(above):
        raise InputError(f"Cannot write {shorten(folder, 400)}: {above} is not a folder; choose another place.")
    if not os.access(above, os.W_OK):
        raise InputError(f"Cannot write {shorten(folder, 400)}: {above} is not writable; choose another place.")


def write_files(contents: Mapping[Path, str | bytes]) -> None:
    """Write every text to its path as UTF-8, and bytes as they are, all of them or none.

    Everything is first written in full beside its destination; only when all are on disk are they moved
    into place, so an interrupted or failed write leaves the earlier files as they were. Links are followed, and
    what is not a regular file (a device, a pipe) is written to as it is.

    Raises:
      InputError: a folder is missing, is not writable, or the disk is full.
    """
    staged: list[tuple[str, Path]] = []
    try:
        for path, content in contents.items():
            data = content.encode() if isinstance(content, str) else content
            with _explained(path):
                destination = path.resolve()
                if destination.is_dir():
                    raise InputError(f"{path} is a folder; give the name of a file to write.")
                if destination.exists() and not destination.is_file():
                    destination.write_bytes(data)
                    continue
                handle, name = tempfile.mkstemp(dir=destination.parent, prefix=_PREFIX, suffix=_SUFFIX)
                staged.append((name, destination))
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                share(name)
        for name, destination in staged:
            with _explained(destination):
                os.replace(name, destination)
    finally:
        for name, _ in staged:
            if os.path.exists(name):
                os.unlink(name)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes `path`, which may be an empty folder, if all goes well, and goes otherwise.

    Raises:
      InputError: `path` is there already and not empty, or cannot be written.
    """
    check_new_folder(path)
    staging: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place = path.resolve()
        staging = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{place.name}-", suffix=_SUFFIX, dir=place.parent))
        yield staging
        share(staging, 0o777)
        os.replace(staging, place)  # over an empty folder at most
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}; choose another place.") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what processes that were killed had not yet written whole; none may be writing there now.

    Args:
      folder: Where they wrote.
      name: Of the folder that they were making, if only what was to become that is to go.
    """
    for path in folder.iterdir():
        if is_leftover(path.name) and path.name.startswith(f"{_PREFIX}{name}"):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is not yet whole, or never will be."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def make_folder(path: Path) -> None:
    """Make a folder, and those that it lies in, where they are not there.

    Raises:
      InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"Cannot make the folder {shorten(path, 400)}: {why}; choose another place.") from error


@contextmanager
def locked(path: Path, *, blocking: bool = True) -> Iterator[None]:
    """Hold a lock file, which is made where it is not there; on file systems without locks, go on without.

    The system lets go of it when the process ends, however that ends.

    Args:
      path: The lock file, which holds nothing and is left behind.
      blocking: Wait while another process holds it.

    Raises:
      BlockingIOError: another process holds it, and `blocking` is false.
      InputError: the file cannot be written or locked.
    """
    import fcntl  # POSIX only

    try:
        file = path.open("a")
    except OSError as error:
        raise InputError(f"Cannot write {shorten(path, 400)}: {error.strerror}; choose another place.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                where = shorten(path, 400)
                raise InputError(f"Cannot lock {where}: {error.strerror}; choose another place.") from error
        yield


def read_json(path: Path) -> dict[str, object] | None:
    """A small file of ours; None where it is not there.

    Raises:
      InputError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise InputError(f"{shorten(path.parent, 400)} is not a folder; give the name of one.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {shorten(path, 400)}; remove it, and it is made again.") from error
    return content if isinstance(content, dict) else None


def share(path: str | Path, mode: int = 0o666) -> None:
    """Give what was made for its owner alone the permissions that new files have."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, mode & ~umask)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeEncodeError as error:
        raise InputError(f"Cannot write {path}: a name in it is not valid text; mend the name.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"Cannot write {shorten(path, 400)}: {why}; choose another place.") from error
