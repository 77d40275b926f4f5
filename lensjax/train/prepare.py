"""A task's examples, and the same as a model's tokens, which are kept beside the results."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from lensjax.core.artefacts import Damaged, set_aside
from lensjax.core.errors import InputError
from lensjax.core.files import remove_leftovers
from lensjax.core.processes import on_first
from lensjax.tasks.batches import Lengths, choose_lengths, example_lengths, fits
from lensjax.tasks.chat import chat_remark
from lensjax.tasks.choices import Choices, choice_facts, wrong_choices
from lensjax.tasks.target_bytes import target_bytes
from lensjax.tasks.task import Example, Task, fingerprint, fingerprints, load_task
from lensjax.tasks.tokens import TOKENS_VERSION, Tokens, tokenise
from lensjax.tasks.writing import Writing, examine, sample
from lensjax.train.spec import FinetuneSpec

if TYPE_CHECKING:  # Flax is slow to import
    from lensjax.models.model import Model

FIRST_RUNG = 200  # training examples of the ladder's first step above 0
FOLDER = "tokens"


def rungs(largest: int) -> list[int]:
    """The ladder's numbers of training examples: 0, 200, 400, 800 and so on, up to `largest`."""
    sizes = [0]
    while FIRST_RUNG << (len(sizes) - 1) <= largest:
        sizes.append(FIRST_RUNG << (len(sizes) - 1))
    return sizes


@dataclass(frozen=True)
class Examples:
    """A task's examples, which only the first process reads.

    Attributes:
      train: The examples of the largest rung for each seed, of which smaller rungs are the first; {} in other
        processes. Seed 0 is among them if a learning rate is to be chosen.
      validation, test: The same for every seed; () in other processes.
      digest: Hash of the spec with the validation and test sets.
      fingerprints: Hashes of the first n training examples, by seed and n.
      search: Number of examples of seed 0 that a learning rate is chosen on; 0 if there is only one.
      origin: Where rows that may change come from; see `lensjax.tasks.source.Source.origin`.
      sample: The examples by which a tokenizer is judged; () in other processes.
    """

    train: Mapping[int, Sequence[Example]]
    validation: Sequence[Example]
    test: Sequence[Example]
    digest: str
    fingerprints: Mapping[int, Mapping[int, str]]
    search: int
    origin: str = ""
    sample: Sequence[Example] = ()

    def fingerprint(self, seed: int, size: int) -> str:
        """Hash of the first `size` training examples of a seed."""
        return self.fingerprints[seed][size]


@dataclass(frozen=True)
class TokenSets:
    """The tokens of a task's examples, and the shapes of batches that hold them.

    Attributes:
      train: Tokens of each seed.
      validation, test: Tokens of the held-out sets.
      lengths: The short and the long shape of training batches.
      evaluation_length: The shape of validation and test batches.
      test_bytes: Bytes of the test targets' texts, as `target_bytes` counts them.
      writing: What the tokenizer cannot write.
      remark: See `lensjax.tasks.chat.chat_remark`.
      choices: The choices beside the targets of the test set; None without any.
    """

    train: dict[int, Tokens]
    validation: Tokens
    test: Tokens
    lengths: tuple[Lengths, Lengths]
    evaluation_length: Lengths
    test_bytes: Int[np.ndarray, " N"]
    writing: Writing
    remark: str = ""
    choices: Choices | None = None


def read_examples(
    spec: FinetuneSpec, sizes: Sequence[int], seeds: Sequence[int], task: Callable[[], Task] | None = None
) -> Examples:
    """Read the examples that runs need.

    Args:
      spec: The task.
      sizes: Numbers of training examples.
      seeds: Of their choice and order.
      task: Gives the task where it has been loaded, which of millions of rows takes seconds.

    Raises:
      InputError: see `lensjax.tasks.task`.
    """
    train: dict[int, list[Example]] = {}
    held_out: dict[str, Sequence[Example]] = {}
    judged: list[Example] = []

    def read() -> dict[str, Any]:
        loaded = load_task(spec) if task is None else task()
        held_out.update(validation=loaded.validation, test=loaded.test)
        judged.extend(sample(loaded))
        several = len(spec.training.learning_rates) > 1 and max(sizes) > 0
        search = (FIRST_RUNG if loaded.available(FIRST_RUNG) == FIRST_RUNG else max(sizes)) if several else 0
        largest = dict.fromkeys(seeds, max(sizes))
        if search:
            largest[0] = max(largest.get(0, 0), search)
        train.update({seed: loaded.train(seed, size) for seed, size in largest.items()})
        prints = [[seed, [*fingerprints(rows, {*sizes, search}).items()]] for seed, rows in train.items()]
        digest = spec.digest(fingerprint([*loaded.validation, *loaded.test]))
        return {"digest": digest, "prints": prints, "search": search, "origin": spec.source.origin}

    said = on_first(read)
    known = {seed: dict(prints) for seed, prints in said["prints"]}
    sets = held_out.get("validation", ()), held_out.get("test", ())
    return Examples(train, *sets, said["digest"], known, said["search"], said["origin"], judged)


def tokenise_all(examples: Examples, model: "Model", spec: FinetuneSpec, out: Path) -> TokenSets:
    """Tokenise all examples; the first process does, and all map the tokens from disk.

    Args:
      examples: The examples.
      model: Its tokenizer is used.
      spec: Limits the lengths of prompts and targets.
      out: Folder of results, in which tokens are kept.

    Raises:
      InputError: see `lensjax.tasks.tokens.tokenise` and `lensjax.tasks.writing.examine`; or a row is longer than the
        model can take.
    """
    encoder_decoder = model.family.encoder_decoder

    def make() -> list[str]:
        tokenizer, size = model.tokenizer, model.config.vocab_size
        kind = _kind(tokenizer, spec, encoder_decoder)
        # The training examples may be many, and their fingerprints are known.
        train = [(examples.fingerprint(seed, len(rows)), rows) for seed, rows in examples.train.items()]
        held_out = [(fingerprint(rows), rows) for rows in (examples.validation, examples.test)]
        others = wrong_choices(examples.test)
        if others:
            held_out.append((fingerprint(others), others))
        names = []
        for texts, rows in (*train, *held_out):
            names.append(hashlib.sha256((kind + texts).encode()).hexdigest()[:16])
            folder = out / FOLDER / names[-1]
            if _is_damaged(folder, out):
                tokens = tokenise(rows, tokenizer, spec, encoder_decoder=encoder_decoder, embeddings=size)
                try:
                    tokens.save(folder)
                except InputError:
                    if not folder.exists():  # or else another command has just made them
                        raise
            remove_leftovers(folder.parent, folder.name)
        return names

    sets = [Tokens.load(out / FOLDER / name) for name in on_first(make)]
    others = sets.pop() if spec.choices is not None else None
    *train, validation, test = sets
    held_out = [example_lengths(tokens, encoder_decoder) for tokens in (validation, test)]
    needed = [example_lengths(tokens, encoder_decoder) for tokens in train]
    check_fit(model, max(int(rows.max()) for rows in (*needed, *held_out) if rows.size))
    # Batches depend on the short shape, so that may not depend on the rungs that a command asks for.
    short, evaluation = choose_lengths(held_out)
    lengths = short, choose_lengths([*needed, *held_out])[1]
    counts = on_first(lambda: target_bytes(examples.test, test, model.tokenizer, encoder_decoder=encoder_decoder))
    remark = on_first(lambda: chat_remark(model.tokenizer, examples.test, encoder_decoder=encoder_decoder))
    choices = None
    if others is not None:
        needs = example_lengths(others, encoder_decoder)
        check_fit(model, int(needs.max()))
        fitting = evaluation if fits(needs, evaluation).all() else choose_lengths([*held_out, needs])[1]
        facts = on_first(
            lambda: choice_facts(examples.test, test, others, model.tokenizer, encoder_decoder=encoder_decoder)
        )
        choices = Choices(
            others, fitting, np.array(facts["examples"]), np.array(facts["bytes"]), np.array(facts["same"], bool)
        )

    def judge() -> dict[str, Any]:
        name = str(model.folder or model.family.model_type)
        found = examine(examples.sample, model.tokenizer, encoder_decoder=encoder_decoder, model=name)
        return found.model_dump(mode="json")

    return TokenSets(
        train=dict(zip(examples.fingerprints, train, strict=True)),
        validation=validation,
        test=test,
        lengths=lengths,
        evaluation_length=evaluation,
        test_bytes=np.array(counts, np.int64),
        writing=Writing.model_validate(on_first(judge)),
        remark=remark,
        choices=choices,
    )


def _is_damaged(folder: Path, out: Path) -> bool:
    """Whether a folder of tokens is missing or damaged; a damaged one is set aside."""
    try:
        Tokens.load(folder)
    except Damaged as error:
        if os.path.lexists(folder):
            set_aside(folder, error.why, out)
        return True
    return False


def _kind(tokenizer: Any, spec: FinetuneSpec, encoder_decoder: bool) -> str:
    """A text of everything that tokens depend on besides the examples."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    limits = (TOKENS_VERSION, spec.max_prompt_tokens, spec.max_target_tokens, spec.cut_prompt)
    chat = (tokenizer.chat_template, tokenizer.special_tokens_map) if spec.is_chat else ""
    return f"{content}{limits}{encoder_decoder}{tokenizer.bos_token_id}{tokenizer.eos_token_id}{chat}"


def check_fit(model: "Model", longest: int) -> None:
    """Raise InputError if a model has fewer positions than the longest row has tokens."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise InputError(
            f"Rows of this task are up to {longest} tokens long, and {model.folder} takes {positions}; "
            "lower max_prompt_tokens and max_target_tokens in the spec."
        )
