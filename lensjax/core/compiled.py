"""Where the command line keeps the programs that JAX has compiled, so that the next command need not compile them."""

import hashlib
import os
import platform
from pathlib import Path

_SETTINGS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2 * 2**30),  # bytes; what was not used for longest goes
}


def keep_compiled_programs() -> None:
    """Tell JAX, before it is imported, to keep programs in the user's cache folder.

    Nothing changes where `JAX_COMPILATION_CACHE_DIR` says another folder, or where that folder cannot be made.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = compiled_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    if os.access(folder, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)


def compiled_folder() -> Path:
    """The folder for programs of this kind of machine: those for one CPU may not run on another that shares a home."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    kind = hashlib.sha256(f"{platform.machine()} {_instructions()}".encode()).hexdigest()[:16]
    return Path(home) / "lensjax" / "compiled" / kind


def _instructions() -> str:
    """What the CPU says of itself, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
