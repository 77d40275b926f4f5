"""Registries of named things, which other packages can add to.

A registry lists the modules of one package, each named after the thing that it registers, and the entry points that
installed packages declare for it. Names are known without importing anything, so the command line can offer them as
choices; a module is imported when its name is first looked up. Adding one thing is adding one file:

    # lensjax/selection/methods/my_method.py
    @METHODS.register("my_method")
    def my_method(table, target, evidence): ...

A package of its own does the same, and names the module in its pyproject.toml:

    [project.entry-points."lensjax.methods"]
    my_method = "my_package.my_module:my_method"
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from lensjax.core.errors import InputError, listing, meant, shorten

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind by name.

    Args:
      kind: The name of such a thing in messages, such as "method".
      package: Package of which every module, but for those that begin with an underscore, registers the thing that it
        is named after.
      group: Group of entry points by which other packages add to it, such as "lensjax.methods".
    """

    def __init__(self, kind: str, package: str, group: str) -> None:
        self.kind, self.package, self.group = kind, package, group
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds a thing under a name.

        Raises:
          InputError: the name is taken.
        """

        def add(thing: T) -> T:
            known = self._entries.setdefault(name, thing)
            if known is not thing:
                raise InputError(f"There are two {self.kind}s called {shorten(name)}; rename one of them.")
            return thing

        return add

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, in alphabetical order; nothing is imported for it.

        Raises:
          InputError: two packages declare one name.
        """
        return tuple(sorted({*self._modules, *self._plugins, *self._entries}))

    def __getitem__(self, name: str) -> T:
        """The thing of a name.

        Raises:
          InputError: there is none of that name, or the package that declares it cannot be imported.
        """
        if name not in self._entries:
            self._load(name)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __len__(self) -> int:
        return len(self.names)

    def items(self) -> Iterator[tuple[str, T]]:
        """Every name with its thing."""
        return ((name, self[name]) for name in self.names)

    def check(self, name: str) -> str:
        """The name itself.

        Raises:
          InputError: there is nothing of that name.
        """
        if name not in self.names:
            near = meant(name, self.names)
            mend = f"did you mean {near}?" if near else f"choose from {listing(self.names, 20)}."
            raise InputError(f"There is no {self.kind} '{shorten(name)}'; {mend}")
        return name

    def _load(self, name: str) -> None:
        """Import what registers a name."""
        if self.check(name) in self._modules:
            importlib.import_module(f"{self.package}.{name}")
            return
        plugin = self._plugins[name]
        try:
            thing = plugin.load()
        except Exception as error:  # whatever somebody else's module raises
            raise InputError(
                f"The {self.kind} {shorten(name)} of {plugin.value} cannot be imported ({shorten(error, 200)}); mend "
                "that package, or uninstall it."
            ) from error
        self._entries.setdefault(name, thing)

    @cached_property
    def _modules(self) -> frozenset[str]:
        path = importlib.import_module(self.package).__path__
        return frozenset(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))

    @cached_property
    def _plugins(self) -> "dict[str, EntryPoint]":
        from importlib.metadata import entry_points  # which takes longer to import than all else here

        plugins: dict[str, EntryPoint] = {}
        for plugin in entry_points(group=self.group):
            other = plugins.setdefault(plugin.name, plugin)
            if plugin.name in self._modules or other.value != plugin.value:
                who = "LensJAX itself" if plugin.name in self._modules else other.value
                raise InputError(
                    f"The {self.kind} {shorten(plugin.name)} of {plugin.value} has the name of one of {who}; rename "
                    "it, or uninstall one of the two."
                )
        return plugins
