"""What a benchmark's numbers were measured with: the machine, the versions and the revision of the code."""

import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any


def describe(*packages: str) -> dict[str, Any]:
    """The machine, the versions of Python and of the packages named, the git revision where known, and the date."""
    return {
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
            "os": _system(),
            "load_at_start": round(os.getloadavg()[0], 2),  # processes that want a core, ours or others'
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "revision": _revision(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def refuse_unless_idle(most: float = 0.5) -> None:
    """End the program where its numbers could not be compared: on a busy machine, or of code that is in no commit."""
    load, revision = os.getloadavg()[0], _revision()
    if load > most:
        sys.exit(f"The load is {load:.2f}; nothing is measured above {most}: wait until the machine is idle.")
    if revision is None or revision.endswith("-dirty"):
        sys.exit(f"The revision is {revision}; commit what has changed, so that the numbers have a revision.")


def peak_memory_gb() -> float:
    """Largest resident memory that this process has had.

    On Linux it starts from that of the process it was started by: measure in one started by a process that has
    done nothing but import the same modules.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = f"{platform.system()} {platform.release()}"
    return f"{name}, {platform.machine()}"


def _revision() -> str | None:
    """Short hash of the commit, "-dirty" after it where tracked files, not results, changed; None outside of git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    run = partial(subprocess.run, check=True, capture_output=True, text=True)
    try:
        commit = run([*git, "rev-parse", "--short", "HEAD"]).stdout.strip()
        changed = run([*git, "status", "--porcelain", "--untracked-files=no", ":/", ":(exclude)results"]).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit
