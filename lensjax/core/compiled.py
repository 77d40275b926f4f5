"""The cache in which commands keep the programs that JAX has compiled."""

import hashlib
import os
import platform
from pathlib import Path

from platformdirs import user_cache_path

_SETTINGS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2 * 2**30),  # bytes; the programs that were not used for longest go first
}


def keep_compiled_programs() -> None:
    """Tell JAX to keep compiled programs in the user's cache folder; call it before JAX is imported.

    It does nothing where `JAX_COMPILATION_CACHE_DIR` names another folder, or where the folder cannot be made.
    """
    folder = compiled_folder()
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or not folder.is_absolute():  # users may have no home
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)


def compiled_folder() -> Path:
    """The cache folder for this kind of CPU; another CPU that shares the home may not run the same programs."""
    kind = hashlib.sha256(f"{platform.machine()} {_instructions()}".encode()).hexdigest()[:16]
    return user_cache_path("lensjax") / "compiled" / kind


def _instructions() -> str:
    """The features of the CPU, where the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
