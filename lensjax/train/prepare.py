"""A task's examples as a model's tokens, made once and kept beside the results."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lensjax.data.batches import Lengths, choose_lengths, example_lengths
from lensjax.data.tasks import Example, Task, fingerprint
from lensjax.data.tokens import Tokens, tokenise
from lensjax.errors import InputError
from lensjax.models.base import Model
from lensjax.train.distributed import agreed, is_first, wait_for_all
from lensjax.train.spec import FinetuneSpec

FOLDER = "tokens"


@dataclass(frozen=True)
class Examples:
    """A task's examples.

    Attributes:
      train: For each seed, the largest rung's; smaller ones are its first.
      validation, test: The same for every seed.
      digest: Hash of the spec with the validation and test sets.
    """

    train: dict[int, list[Example]]
    validation: list[Example]
    test: list[Example]
    digest: str


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


def read_examples(task: Task, spec: FinetuneSpec, examples: int, seeds: Sequence[int]) -> Examples:
    """The examples that a ladder up to `examples` needs."""
    return Examples(
        train={seed: task.train(seed, examples) for seed in seeds},
        validation=list(task.validation),
        test=list(task.test),
        digest=spec.digest(fingerprint([*task.validation, *task.test])),
    )


def tokenise_all(examples: Examples, model: Model, spec: FinetuneSpec, out: Path) -> TokenSets:
    """Every example's tokens; the first process makes them, all read them from disk.

    Raises:
      InputError: see `lensjax.data.tokens.tokenise`; or rows are longer than the model can take.
    """
    encoder_decoder = model.family.encoder_decoder
    tokenizer = model.tokenizer
    kind = hashlib.sha256(
        f"{tokenizer.backend_tokenizer.to_str()}{spec.max_prompt_tokens}{spec.max_target_tokens}{spec.cut_prompt}"
        f"{encoder_decoder}{tokenizer.eos_token_id}{tokenizer.bos_token_id}".encode()
    ).hexdigest()
    sets = [*examples.train.values(), examples.validation, examples.test]
    folders = [out / FOLDER / hashlib.sha256((kind + fingerprint(rows)).encode()).hexdigest()[:16] for rows in sets]
    failure: InputError | None = None
    if is_first():
        try:
            for rows, folder in zip(sets, folders, strict=True):
                if not folder.exists():
                    tokenise(rows, tokenizer, spec, encoder_decoder=encoder_decoder).save(folder)
        except InputError as error:
            failure = error
    if not agreed(failure is None):
        raise failure or InputError("The first process could not make the tokens; see its message.")
    wait_for_all("tokens")
    *train, validation, test = (Tokens.load(folder) for folder in folders)
    held_out = [example_lengths(tokens, encoder_decoder) for tokens in (validation, test)]
    needed = [example_lengths(tokens, encoder_decoder) for tokens in train]
    lengths = choose_lengths([rows for rows in needed if len(rows)] or held_out)
    evaluation = choose_lengths(held_out)[1]
    _check_fit(model, max(lengths[1], evaluation))
    return TokenSets(dict(zip(examples.train, train, strict=True)), validation, test, lengths, evaluation)


def remove_tokens(out: Path) -> None:
    """Remove the tokens kept in a folder; they are made again when they are needed."""
    if is_first():
        shutil.rmtree(out / FOLDER, ignore_errors=True)


def _check_fit(model: Model, lengths: Lengths) -> None:
    """Raise InputError where a model has fewer positions than the longest row."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and max(lengths) > positions:
        raise InputError(
            f"Rows of this task are up to {max(lengths)} tokens long, and {model.folder} takes {positions}; "
            "lower max_prompt_tokens and max_target_tokens in the spec."
        )
