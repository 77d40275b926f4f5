"""Ready-made tasks on real data from packages: spelling to phonemes, English to Spanish, senses of nouns to topics.

Each keeps a part of its data back for pretraining (`experiments/pocket_zoo`); models are never fine-tuned or tested on
that part.
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
class ReadyMadeTask:
    """A task whose rows come from corpora.

    Attributes:
      about: A description in one line.
      licence: Licence and owner of the data.
      rows: Reads the rows.
      prompt, target: Templates of a `lensjax.tasks.spec.TaskSpec`.
      choices: Answers to choose from, as `choices` of a TaskSpec has them.
      max_prompt_tokens, max_target_tokens: Limits that few examples exceed with the tokenizer of the pocket zoo.
    """

    about: str
    licence: str
    rows: Callable[[], Iterator[Row]]
    prompt: str
    target: str
    max_prompt_tokens: int
    max_target_tokens: int
    choices: tuple[str, ...] | None = None


def place_of(text: str) -> float:
    """A number from 0 to 1 made of a text's hash; a share s of all texts has numbers below s."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def is_kept_back(task: str, key: str) -> bool:
    """Whether the rows of a key are kept back from a task, for pretraining."""
    return place_of(f"{task} {key}") < KEPT_BACK[task]


def spelling_rows() -> Iterator[Row]:
    """Words, letter by letter, and their phonemes."""
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
    """Nouns with their meanings, and the topic that WordNet files them under."""
    for sense in corpora.senses():
        if len(sense.gloss) <= _LONGEST_GLOSS and not is_kept_back("topics", sense.gloss):
            yield {"noun": sense.noun, "gloss": sense.gloss, "topic": sense.topic}


TASKS: Mapping[str, ReadyMadeTask] = MappingProxyType(
    {
        "spelling": ReadyMadeTask(
            "how English words sound, letter by letter, from the CMU Pronouncing Dictionary",
            "BSD 2-clause, Carnegie Mellon University",
            spelling_rows,
            prompt="{letters} :",
            target=" {phonemes}",
            max_prompt_tokens=32,
            max_target_tokens=40,
        ),
        "verses": ReadyMadeTask(
            "English to Spanish, verses of the World English Bible and the Reina-Valera of 1909",
            "public domain",
            verse_rows,
            prompt="English: {en}\nSpanish:",
            target=" {es}",
            max_prompt_tokens=112,
            max_target_tokens=112,
        ),
        "topics": ReadyMadeTask(
            "which of 25 topics a noun belongs to, from what it means, in WordNet 3.0",
            "WordNet licence, Princeton University",
            topic_rows,
            prompt="{noun}: {gloss}\nTopic:",
            target=" {topic}",
            max_prompt_tokens=72,
            max_target_tokens=8,
            choices=corpora.TOPICS,
        ),
    }
)


def write_rows(name: str, folder: Path) -> Path:
    """Write the rows of a ready-made task as NAME.jsonl.

    Args:
      name: One of `TASKS`.
      folder: Made if it is missing.

    Returns:
      The path of the file.

    Raises:
      InputError: there is no such task, a package of its data is not installed, or the folder cannot be written.
    """
    if name not in TASKS:
        raise InputError(f"There is no ready-made task '{shorten(name)}'; choose one of {listing(list(TASKS))}.")
    make_folder(folder)
    path = folder / f"{name}.jsonl"
    write_files({path: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TASKS[name].rows())})
    return path
