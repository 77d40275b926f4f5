"""The files of a model that results depend on, as one hash."""

import hashlib
from pathlib import Path

from lensjax.core.hashes import file_hashes
from lensjax.models.gguf.header import is_gguf
from lensjax.models.hub import model_files
from lensjax.models.safetensors_files import weight_files


def model_fingerprint(folder: Path) -> str:
    """A hash of the whole content of a model's weights, configuration and tokenizer.

    Files are read once, and again when their size, time of change or inode changes.

    Args:
      folder: Folder or GGUF file with the model.

    Raises:
      InputError: there are no weights, or a file cannot be read.
    """
    held = {folder} if is_gguf(folder) else {*weight_files(folder), *model_files(folder)}
    paths = sorted(held, key=lambda path: path.name)
    lines = (f"{path.name} {found}\n" for path, found in zip(paths, file_hashes(paths), strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
