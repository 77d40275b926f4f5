"""Real tasks, made from packages when they are asked for: spelling to phonemes, English to Spanish, senses to topics.

Each keeps a part of its source back, which models may be pretrained on (`experiments/pocket_zoo`), and which is never
fine-tuned or tested on.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.files import make_folder, write_files
from lensjax.tasks import corpora

Row = dict[str, str]

_LONGEST_WORD = 14  # letters, and phonemes
_LONGEST_VERSE = 240  # characters, in either language
_LONGEST_GLOSS = 140  # characters
KEPT_BACK = MappingProxyType({"spelling": 0.3, "verses": 0.3, "topics": 0.4})  # share of words, books, senses


@dataclass(frozen=True)
class PackagedTask:
    """A task whose rows come from corpora.

    Attributes:
      about: What it is, in a line.
      licence: Whose the data are.
      rows: Reads them.
      prompt, target: Templates of a `lensjax.tasks.spec.TaskSpec`.
      max_prompt_tokens, max_target_tokens: Which few examples exceed with the tokenizer of the pocket zoo.
    """

    about: str
    licence: str
    rows: Callable[[], Iterator[Row]]
    prompt: str
    target: str
    max_prompt_tokens: int
    max_target_tokens: int


def place_of(text: str) -> float:
    """A number from 0 to 1 that its hash gives a text: those below a share are that share of all texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def is_kept_back(task: str, key: str) -> bool:
    """Whether what has this key is kept back from a task, for pretraining."""
    return place_of(f"{task} {key}") < KEPT_BACK[task]


def spelling_rows() -> Iterator[Row]:
    """Words letter by letter, and their phonemes."""
    for word, phonemes in corpora.pronunciations().items():
        if max(len(word), len(phonemes)) <= _LONGEST_WORD and not is_kept_back("spelling", word):
            yield {"letters": " ".join(word), "phonemes": " ".join(phonemes)}


def verse_rows() -> Iterator[Row]:
    """Verses in English and in Spanish; whole books are kept back."""
    for verse in corpora.verses():
        fits = max(len(verse.english), len(verse.spanish)) <= _LONGEST_VERSE
        if fits and not is_kept_back("verses", verse.book):
            yield {"en": verse.english, "es": verse.spanish}


def topic_rows() -> Iterator[Row]:
    """Nouns with what they mean, and the topic that WordNet files them under."""
    for sense in corpora.senses():
        if len(sense.gloss) <= _LONGEST_GLOSS and not is_kept_back("topics", sense.gloss):
            yield {"noun": sense.noun, "gloss": sense.gloss, "topic": sense.topic}


TASKS: Mapping[str, PackagedTask] = MappingProxyType(
    {
        "spelling": PackagedTask(
            "how English words sound, letter by letter, from the CMU Pronouncing Dictionary",
            "BSD 2-clause, Carnegie Mellon University",
            spelling_rows,
            prompt="{letters} :",
            target=" {phonemes}",
            max_prompt_tokens=32,
            max_target_tokens=40,
        ),
        "verses": PackagedTask(
            "English to Spanish, verses of the World English Bible and the Reina-Valera of 1909",
            "public domain",
            verse_rows,
            prompt="English: {en}\nSpanish:",
            target=" {es}",
            max_prompt_tokens=112,
            max_target_tokens=112,
        ),
        "topics": PackagedTask(
            "which of 25 topics a noun belongs to, from what it means, in WordNet 3.0",
            "WordNet licence, Princeton University",
            topic_rows,
            prompt="{noun}: {gloss}\nTopic:",
            target=" {topic}",
            max_prompt_tokens=72,
            max_target_tokens=8,
        ),
    }
)


def write_rows(name: str, folder: Path) -> Path:
    """Write the rows of a packaged task, as NAME.jsonl in a folder that is made where it is not there.

    Raises:
      InputError: there is no such task, a package that it comes from is not installed, or the folder cannot be
        written.
    """
    if name not in TASKS:
        raise InputError(f"There is no packaged task '{shorten(name)}'; choose one of {listing(list(TASKS))}.")
    make_folder(folder)
    path = folder / f"{name}.jsonl"
    write_files({path: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TASKS[name].rows())})
    return path
