"""What users read where a command ends in an error that nobody foresaw."""

import errno
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lensjax.core.errors import InputError, one_line, shorten

_NO_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


@contextmanager
def sentences() -> Iterator[None]:
    """A context in which errors of the machine, which any command may meet, become an InputError.

    Raises:
      PeerLost: another process that computed with this one is gone.
      InputError: a file cannot be used, the disk is full, or the memory ended.
    """
    try:
        yield
    except InputError as error:
        if (lost := _lost(error)) is not None:
            raise lost from error
        raise
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError("The disk is full; make room, and run the same command again.") from error
        if error.errno is None or error.filename is None:
            raise
        why = os.strerror(error.errno)
        raise InputError(f"Cannot use {shorten(error.filename, 200)}: {why}; mend it, or give another.") from error
    except MemoryError as error:
        raise InputError(_ended("this machine's")) from error
    except Exception as error:
        if (lost := _lost(error)) is not None:
            raise lost from error
        if any(sign in str(error) for sign in _NO_MEMORY):
            raise InputError(_ended("a device's")) from error
        raise


def _lost(error: Exception) -> InputError | None:
    """What is said where another process has ended; None of all other errors."""
    if "jax" not in sys.modules:  # and so there is none
        return None
    from lensjax.core.processes import peer_lost

    return peer_lost(error)


def _ended(whose: str) -> str:
    return (
        f"It takes more than {whose} memory; lower the batch size or the lengths of a spec, or read less at once, and "
        "run the same command again."
    )


def internal_error(error: Exception) -> str:
    """A sentence about a fault of LensJAX, whose details it writes to a new file for a report."""
    from lensjax.core.version import __version__

    what = f"{type(error).__name__}: {one_line(error, 200)}".rstrip(": ")
    about = f"lensjax {__version__}, Python {platform.python_version()}, {platform.platform()}"
    details = "\n".join([about, " ".join(["lensjax", *sys.argv[1:]]), "", *traceback.format_exception(error)])
    try:
        handle, name = tempfile.mkstemp(prefix="lensjax-fault-", suffix=".txt", dir=_writable())
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(details)
    except OSError:
        return f"internal error ({what}), a fault of LensJAX, whose details could not be written; please report it."
    return (
        f"internal error ({what}), a fault of LensJAX; please report it and attach {name}, which may quote your input."
    )


def _writable() -> str:
    """The working folder, where it can be written, or that of temporary files."""
    here = Path.cwd()
    return str(here) if os.access(here, os.W_OK) else tempfile.gettempdir()
