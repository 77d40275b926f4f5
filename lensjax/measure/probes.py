"""Examples of a task for measuring a model's curvature."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lensjax.core.errors import InputError
from lensjax.models.model import Model
from lensjax.tasks.batches import collate, example_lengths
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import Example, load_task
from lensjax.tasks.tokens import padding_token, tokenise
from lensjax.train.prepare import check_fit


def probe_examples(spec: TaskSpec, count: int, seed: int = 0) -> list[Example]:
    """The first training examples of a seed, the same ones for every model.

    Raises:
      InputError: there are fewer, or see `lensjax.tasks.task`.
    """
    if count < 1:
        raise InputError(f"{count} examples are asked for; measure on one at least.")
    return load_task(spec).train(seed, count)


def probe_batch(model: Model, spec: TaskSpec, examples: list[Example]) -> Mapping[str, np.ndarray[Any, Any]]:
    """Examples as one batch of a model's tokens, {name: [N, time]}, filled up to the longest.

    Of a conversation, an encoder–decoder has the last turn.

    Raises:
      InputError: they are longer than the model can take, or its tokenizer does not fit the task.
    """
    encoder_decoder = model.family.encoder_decoder
    shown = [example.rows(encoder_decoder=encoder_decoder)[-1] for example in examples]
    size = model.config.vocab_size
    tokens = tokenise(shown, model.tokenizer, spec, encoder_decoder=encoder_decoder, embeddings=size)
    needed = example_lengths(tokens, encoder_decoder).max(axis=0)
    check_fit(model, int(needed.max()))
    rows = range(len(examples))
    return collate(tokens, rows, rows, tuple(int(length) for length in needed), padding_token(model.tokenizer, size))
