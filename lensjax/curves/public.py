"""Public fine-tuning curves of 30 language models: the benchmark of the Rectified Scaling Law (arXiv 2402.02314).

Its files belong to others and are not part of LensJAX: `rectified` reads them from `$LENSJAX_BENCHMARKS`, from the
user's cache, or downloads them once and checks their SHA-256.
"""

import hashlib
import os
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType
from urllib.error import HTTPError

from platformdirs import user_cache_path

from lensjax.core.errors import InputError, shorten
from lensjax.core.files import write_files
from lensjax.curves.csv_files import read_curves
from lensjax.curves.table import CurveTable

VARIABLE = "LENSJAX_BENCHMARKS"
BASE_URL = "https://raw.githubusercontent.com/linhaowei1/Fine-tuning-Scaling-Law/main/benchmark"
TIMEOUT = 10.0  # seconds
MAX_BYTES = 1_000_000

SHA256: Mapping[str, str] = MappingProxyType(
    {
        "flan": "ead24af8eaa97ac0507bbd76c4880eb09c6361e252f4971666ba55017215d1e9",
        "gigaword": "7d0b08ef9df06eefb4355f859fb44e7860c1e55effd781d318d60a1f8661f2b3",
        "wmt19": "523b044495f87c1f954c359fb489cf4e38f739c7fca8161d70665853fb2d293a",
    }
)


def rectified(name: str) -> CurveTable:
    """The public fine-tuning curves of 30 models on one task: losses in nats per token, 0 to 1,638,400 examples.

    Looks for NAME.csv in `$LENSJAX_BENCHMARKS/rectified`, in `$LENSJAX_BENCHMARKS` and in the user's cache, then
    downloads it into the cache. Files in the user's own folder are taken as they are; a file from the cache or
    the network must have the expected SHA-256.

    Args:
      name: "flan", "gigaword" or "wmt19".

    Raises:
      InputError: the name is unknown; the file is missing and cannot be downloaded, or not as expected; or it is not
        a table of curves.
    """
    if name not in SHA256:
        raise InputError(f"There is no benchmark '{shorten(name)}'; choose one of {', '.join(SHA256)}.")
    return read_curves(_local(name) or _download(name))


def available() -> tuple[str, ...]:
    """Names of the tables that `rectified` can read without the network."""
    return tuple(name for name in SHA256 if _local(name))


def _local(name: str) -> Path | None:
    """The file, if it is at hand without the network."""
    folder = os.environ.get(VARIABLE)
    if folder:
        for path in (Path(folder) / "rectified" / f"{name}.csv", Path(folder) / f"{name}.csv"):
            if path.is_file():
                return path
    cached = _cached(name)
    try:
        return cached if hashlib.sha256(cached.read_bytes()).hexdigest() == SHA256[name] else None
    except OSError:
        return None


def _cached(name: str) -> Path:
    return user_cache_path("lensjax") / "rectified" / f"{name}.csv"


def _download(name: str) -> Path:
    """The file, downloaded into the cache; nothing but the expected bytes is kept."""
    url, expected, path = f"{BASE_URL}/{name}.csv", SHA256[name], _cached(name)
    by_hand = f"save {url} as FOLDER/{name}.csv and set {VARIABLE}=FOLDER"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:  # noqa: S310  # https
            body: bytes = response.read(MAX_BYTES + 1)
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise InputError(f"Cannot download {name}.csv ({shorten(error)}); when online, {by_hand}.") from error
    actual = hashlib.sha256(body).hexdigest()
    if actual != expected:
        raise InputError(
            f"The file downloaded as {name}.csv has SHA-256 {actual[:12]}…, not {expected[:12]}…, and was not "
            f"kept; try again later, or {by_hand} once you trust its content."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_files({path: body.decode()})
    except (OSError, InputError) as error:
        raise InputError(f"Cannot keep {name}.csv in the cache ({shorten(error, 200)}); {by_hand}.") from error
    return path
