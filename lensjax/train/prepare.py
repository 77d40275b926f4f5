"""A task's examples as a model's tokens, made once and kept beside the results."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensjax.core.errors import InputError
from lensjax.core.files import remove_leftovers
from lensjax.core.processes import on_first
from lensjax.models.model import Model
from lensjax.tasks.batches import Lengths, choose_lengths, example_lengths
from lensjax.tasks.task import Example, fingerprint, fingerprints, load_task
from lensjax.tasks.tokens import Tokens, tokenise
from lensjax.train.spec import FinetuneSpec

FIRST_RUNG = 200  # training examples of the ladder's first step above 0
FOLDER = "tokens"


@dataclass(frozen=True)
class Examples:
    """A task's examples, which only the first process reads.

    Attributes:
      train: For each seed, the largest rung's, of which smaller ones are the first; {} in other processes. Seed 0 is
        always among them where a learning rate is to be chosen.
      validation, test: The same for every seed; () in other processes.
      digest: Hash of the spec with the validation and test sets.
      fingerprints: For each seed, hash of the first so many training examples, by their number.
      search: Number of examples of seed 0 that a learning rate is chosen on; 0 where there is nothing to choose.
    """

    train: Mapping[int, Sequence[Example]]
    validation: Sequence[Example]
    test: Sequence[Example]
    digest: str
    fingerprints: Mapping[int, Mapping[int, str]]
    search: int

    def fingerprint(self, seed: int, size: int) -> str:
        """Hash of the first so many training examples of a seed."""
        return self.fingerprints[seed][size]


@dataclass(frozen=True)
class TokenSets:
    """The tokens of the same examples, and the shapes of batches that hold them.

    Attributes:
      train: For each seed.
      lengths: Of the short and the long shape of training batches.
      evaluation_length: Of validation and test batches.
    """

    train: dict[int, Tokens]
    validation: Tokens
    test: Tokens
    lengths: tuple[Lengths, Lengths]
    evaluation_length: Lengths


def read_examples(spec: FinetuneSpec, sizes: Sequence[int], seeds: Sequence[int]) -> Examples:
    """The examples that runs of the given numbers of training examples and seeds need.

    Raises:
      InputError: see `lensjax.tasks.task`.
    """
    train: dict[int, list[Example]] = {}
    held_out: dict[str, Sequence[Example]] = {}

    def read() -> dict[str, Any]:
        task = load_task(spec)
        held_out.update(validation=task.validation, test=task.test)
        several = len(spec.training.learning_rates) > 1 and max(sizes) > 0
        search = (FIRST_RUNG if task.available(FIRST_RUNG) == FIRST_RUNG else max(sizes)) if several else 0
        largest = dict.fromkeys(seeds, max(sizes))
        if search:
            largest[0] = max(largest.get(0, 0), search)
        train.update({seed: task.train(seed, size) for seed, size in largest.items()})
        prints = [[seed, [*fingerprints(rows, {*sizes, search}).items()]] for seed, rows in train.items()]
        digest = spec.digest(fingerprint([*task.validation, *task.test]))
        return {"digest": digest, "prints": prints, "search": search}

    said = on_first(read)
    known = {seed: dict(prints) for seed, prints in said["prints"]}
    sets = held_out.get("validation", ()), held_out.get("test", ())
    return Examples(train, *sets, said["digest"], known, said["search"])


def tokenise_all(examples: Examples, model: Model, spec: FinetuneSpec, out: Path) -> TokenSets:
    """Every example's tokens; the first process makes them, all read what they need of them from disk.

    Raises:
      InputError: see `lensjax.tasks.tokens.tokenise`; or rows are longer than the model can take.
    """
    encoder_decoder = model.family.encoder_decoder

    def make() -> list[str]:
        tokenizer = model.tokenizer
        kind = _kind(tokenizer, spec, encoder_decoder)
        # The training examples may be many, and their fingerprints are known.
        train = [(examples.fingerprint(seed, len(rows)), rows) for seed, rows in examples.train.items()]
        held_out = [(fingerprint(rows), rows) for rows in (examples.validation, examples.test)]
        names = []
        for found, rows in (*train, *held_out):
            names.append(hashlib.sha256((kind + found).encode()).hexdigest()[:16])
            folder = out / FOLDER / names[-1]
            if not folder.exists():
                tokens = tokenise(rows, tokenizer, spec, encoder_decoder=encoder_decoder)
                try:
                    tokens.save(folder)
                except InputError:
                    if not folder.exists():  # or else another command has just made them
                        raise
            remove_leftovers(folder.parent, folder.name)
        return names

    *train, validation, test = (Tokens.load(out / FOLDER / name) for name in on_first(make))
    held_out = [example_lengths(tokens, encoder_decoder) for tokens in (validation, test)]
    needed = [example_lengths(tokens, encoder_decoder) for tokens in train]
    check_fit(model, max(int(rows.max()) for rows in (*needed, *held_out) if rows.size))
    # Which examples share a batch depends on the short shape, so on nothing that another command could change.
    short, evaluation = choose_lengths(held_out)
    lengths = short, choose_lengths([*needed, *held_out])[1]
    return TokenSets(dict(zip(examples.fingerprints, train, strict=True)), validation, test, lengths, evaluation)


def _kind(tokenizer: Any, spec: FinetuneSpec, encoder_decoder: bool) -> str:
    """What tokens depend on besides the texts."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    limits = (spec.max_prompt_tokens, spec.max_target_tokens, spec.cut_prompt)
    return f"{told}{limits}{encoder_decoder}{tokenizer.bos_token_id}{tokenizer.eos_token_id}"


def check_fit(model: Model, longest: int) -> None:
    """Raise InputError where a model has fewer positions than the longest row has tokens."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise InputError(
            f"Rows of this task are up to {longest} tokens long, and {model.folder} takes {positions}; "
            "lower max_prompt_tokens and max_target_tokens in the spec."
        )
