"""Modules of experiments, imported as their scripts import them."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def imported() -> Callable[..., AbstractContextManager[dict[str, ModuleType]]]:
    """Imports modules of an experiment's folder, which import each other as a script's do, and forgets them after."""

    @contextmanager
    def modules(folder: Path, *names: str) -> Iterator[dict[str, ModuleType]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(folder))
            yield {name: importlib.import_module(name) for name in names}
        for name in names:
            del sys.modules[name]

    return modules
