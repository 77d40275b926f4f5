"""The small language models that are part of LensJAX, named `pocket:NAME`.

`experiments/pocket_zoo` pretrained them, so that everything can be tried without a network. They are far too small for
anything else.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.files import make_folder, write_files

SCHEME = "pocket:"
_FOLDER = Path(str(files("lensjax.models.pocket"))) / "weights"
_MANIFEST = "manifest.json"  # SHA-256 of every file of every model


def bundled() -> tuple[str, ...]:
    """Names of the bundled models, as in "pocket:gpt2-0.2m", the smallest first."""
    return tuple(SCHEME + name for name in _manifest())


def bundled_folder(name: str) -> Path:
    """The folder of a bundled model, whose files are checked.

    Args:
      name: As in "pocket:gpt2-0.2m".

    Raises:
      InputError: there is no such model, or one of its files has been changed.
    """
    known = _manifest()
    short = name.removeprefix(SCHEME)
    if short not in known:
        raise InputError(f"There is no bundled model '{shorten(name)}'; choose one of {listing(bundled())}.")
    for file, expected in known[short].items():
        path = _FOLDER / short / file
        try:
            actual = _sha256(path)
        except OSError as error:
            raise InputError(f"Cannot read {path}: {error.strerror}; install LensJAX again.") from error
        if actual != expected:
            raise InputError(
                f"{path} has been changed since it was installed (its SHA-256 is {actual[:12]}… and not "
                f"{expected[:12]}…); install LensJAX again, or copy its folder elsewhere to use it as it is."
            )
    return _FOLDER / short


def write_bundle(folders: Mapping[str, Path]) -> None:
    """Replace the bundled models, and record the hashes of their files.

    Args:
      folders: Folders of models by name, in the order in which `bundled` lists them.

    Raises:
      InputError: a file cannot be read or written.
    """
    try:
        shutil.rmtree(_FOLDER, ignore_errors=True)
        for name, folder in folders.items():
            shutil.copytree(folder, _FOLDER / name)
        manifest = {name: {path.name: _sha256(path) for path in sorted((_FOLDER / name).iterdir())} for name in folders}
    except OSError as error:
        raise InputError(f"Cannot put models into {_FOLDER} ({error}); make room, or check who may write.") from error
    make_folder(_FOLDER)
    write_files({_FOLDER / _MANIFEST: json.dumps(manifest, indent=2) + "\n"})
    _manifest.cache_clear()


@cache
def _manifest() -> dict[str, dict[str, str]]:
    try:
        content: dict[str, dict[str, str]] = json.loads((_FOLDER / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"The bundled models are not whole ({_FOLDER / _MANIFEST} cannot be read); install LensJAX again."
        ) from error
    return content


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
