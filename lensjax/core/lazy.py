"""Names of a package that are imported from its modules when they are first used.

    __getattr__, __dir__ = lazy(__name__, {"read_study": "spec", "run_study": "runner"})

So `lensjax.study.read_study` needs no long path, and `import lensjax.study` costs nothing.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    Args:
      package: Its name.
      places: The module, below the package or (with a dot in front) below lensjax, that each name is imported from. A
        module that is to be listed itself is "" where its own name says which it is.

    Returns:
      A function that imports a name, or a module of the package that is not listed, and one that lists the names.
    """

    def get(name: str) -> Any:
        if name in places:
            module = importlib.import_module(_module(package, name, places[name]))
            value = getattr(module, name) if places[name] else module
            setattr(sys.modules[package], name, value)
            return value
        is_private, has_modules = name.startswith("_"), "__path__" in vars(sys.modules[package])
        if not is_private and has_modules and importlib.util.find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    def names() -> list[str]:
        own = vars(sys.modules[package])
        return sorted({*places, *(name for name in own if name.startswith("__"))})

    return get, names


def _module(package: str, name: str, place: str) -> str:
    if place.startswith("."):
        return f"lensjax{place}"
    return f"{package}.{place or name}"
