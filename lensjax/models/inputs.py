"""The files of a model that results depend on, as one hash."""

import hashlib
from pathlib import Path

from lensjax.core.errors import InputError, shorten
from lensjax.core.hashes import file_hashes
from lensjax.models.gguf.header import is_gguf, parts_of
from lensjax.models.hub import model_files
from lensjax.models.safetensors_files import TensorFiles, weight_files


def check_finite_weights(folder: Path) -> None:
    """Look for a cause of losses that are not finite in a model's weights, all of which are read.

    Args:
      folder: Folder or GGUF file with the model; of the latter nothing is known.

    Raises:
      InputError: a tensor holds NaN or infinity; or a file cannot be read.
    """
    for path in () if is_gguf(folder) else weight_files(folder):
        name = TensorFiles.of_file(path).not_finite()
        if name is not None:
            raise InputError(
                f"{shorten(path, 400)} holds NaN or infinity in the tensor {shorten(name, 200)}; fetch it again, or "
                "take another model."
            )


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
