"""Registries: names without imports, suggestions, collisions, and what other packages add."""

import importlib
import sys

import pytest

from lensjax.core.errors import InputError

GROUP = "lensjax_tests.sizes"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry of a package with the modules small and large, of which large cannot be imported."""
    folder = tmp_path / "tiny_sizes"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        f"from lensjax.core.registry import Registry\nSIZES = Registry('size', __name__, '{GROUP}')\n"
    )
    (folder / "small.py").write_text("from tiny_sizes import SIZES\n\nSIZES.register('small')(1)\n")
    (folder / "large.py").write_text("raise RuntimeError('too large')\n")
    (folder / "_shared.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("tiny_sizes").SIZES
    for name in [name for name in sys.modules if name.partition(".")[0] == "tiny_sizes"]:
        del sys.modules[name]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package called NAME with a module and entry points of the group."""

    def install(name, module, entries):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (tmp_path / f"{name}.py").write_text(module)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return install


def test_names_are_those_of_modules_and_nothing_is_imported_for_them(registry):
    assert registry.names == tuple(registry) == ("large", "small")
    assert len(registry) == 2
    assert "small" in registry
    assert "_shared" not in registry
    assert "tiny_sizes.small" not in sys.modules
    assert registry["small"] == 1
    assert "tiny_sizes.small" in sys.modules


def test_unknown_names_get_a_suggestion_or_all_choices(registry):
    with pytest.raises(InputError, match=r"There is no size 'smal'; did you mean small\?"):
        registry["smal"]
    with pytest.raises(InputError, match=r"There is no size 'x'; choose from large, small\."):
        registry.check("x")
    assert registry.check("small") == "small"


def test_a_name_is_taken_once(registry):
    registry.register("medium")(2)
    registry.register("medium")(registry["medium"])  # a module that is imported again
    with pytest.raises(InputError, match="There are two sizes called medium; rename one of them"):
        registry.register("medium")(3)
    assert registry.names == ("large", "medium", "small")


def test_packages_add_things_that_are_imported_when_looked_up(registry, install):
    install("tiny_huge", "HUGE = 100\n", "huge = tiny_huge:HUGE")
    assert registry.names == ("huge", "large", "small")
    assert "tiny_huge" not in sys.modules
    assert registry["huge"] == 100
    assert "tiny_huge" in sys.modules


def test_a_broken_package_is_named_with_what_to_do(registry, install):
    install("tiny_broken", "import nothing_of_that_name\n", "broken = tiny_broken:THING")
    assert "broken" in registry.names
    with pytest.raises(InputError, match=r"size broken of tiny_broken:THING cannot be imported .*mend that package"):
        registry["broken"]
    assert registry["small"] == 1  # which does not need it


def test_packages_cannot_take_a_name_of_ours_or_of_each_other(registry, install):
    install("tiny_small", "SMALL = 2\n", "small = tiny_small:SMALL")
    with pytest.raises(InputError, match=r"size small of tiny_small:SMALL has the name of one of LensJAX itself"):
        registry["small"]


def test_two_packages_cannot_share_a_name(registry, install):
    install("tiny_first", "A = 1\n", "both = tiny_first:A")
    install("tiny_second", "B = 2\n", "both = tiny_second:B")
    with pytest.raises(InputError, match=r"the name of one of tiny_\w+:.; rename it, or uninstall one of the two"):
        registry.names  # noqa: B018


def test_a_module_of_our_own_that_fails_is_not_hidden(registry):
    with pytest.raises(RuntimeError, match="too large"):
        registry["large"]
