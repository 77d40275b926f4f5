"""LensJAX: which of these language models should we fine-tune on our data?

Submodules are imported when first used, so that `import lensjax` is immediate and ranking needs nothing of measuring.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_SUBMODULES = (
    "curvature",
    "curves",
    "fit",
    "measure",
    "models",
    "report",
    "selection",
    "study",
    "tasks",
    "train",
)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"lensjax.{name}")
    raise AttributeError(f"module 'lensjax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *_SUBMODULES]
