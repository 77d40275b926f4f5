"""The files of a model that results depend on, as one hash, and what is wrong with their values."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lensjax.core.errors import InputError, NotFinite, shorten
from lensjax.core.hashes import file_hashes
from lensjax.models.gguf.header import is_gguf, parts_of, read_header
from lensjax.models.gguf.tensors import stored_tensors
from lensjax.models.hub import model_files
from lensjax.models.safetensors_files import TensorFiles, weight_files


def check_finite_weights(folder: Path) -> None:
    """Look for a cause of losses that are not finite in a model's weights, all of which are read.

    Args:
      folder: Folder or GGUF file with the model.

    Raises:
      InputError: a tensor holds NaN or infinity; or a file cannot be read.
    """
    for path in [folder] if is_gguf(folder) else weight_files(folder):
        name = (stored_tensors(path) if is_gguf(path) else TensorFiles.of_file(path)).not_finite()
        if name is not None:
            path = read_header(path).tensors[name].path if is_gguf(path) else path  # one of several
            raise InputError(
                f"{shorten(path, 400)} holds NaN or infinity in the tensor {shorten(name, 200)}; fetch it again, or "
                "take another model."
            )


@contextmanager
def naming_weights(folders: Iterable[Path | None]) -> Iterator[None]:
    """A context in which values that are not finite are those of models' weights, where these hold such.

    Args:
      folders: Of the models that are computed with, see `check_finite_weights`; None for those of no folder.

    Raises:
      InputError: a tensor of one holds NaN or infinity.
      NotFinite: what was raised in the context, where none does.
    """
    try:
        yield
    except NotFinite:
        for folder in filter(None, folders):
            check_finite_weights(folder)
        raise


def model_fingerprint(folder: Path) -> str:
    """A hash of the whole content of a model's weights, configuration and tokenizer.

    Files are read once, and again when their size, time of change or inode changes.

    Args:
      folder: Folder or GGUF file with the model.

    Raises:
      InputError: there are no weights, or a file cannot be read.
    """
    held = {*parts_of(folder)} if is_gguf(folder) else {*weight_files(folder), *model_files(folder)}
    paths = sorted(held, key=lambda path: path.name)
    lines = (f"{path.name} {found}\n" for path, found in zip(paths, file_hashes(paths), strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
