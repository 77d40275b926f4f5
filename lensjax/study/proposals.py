"""Settings of a new study that suit its rows and models, so that it costs less than what it is to save."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lensjax.core import text
from lensjax.core.errors import InputError
from lensjax.models.family import family_of
from lensjax.models.hub import local_folder, read_config, read_tokenizer
from lensjax.tasks.batches import choose_lengths, fits
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.tokens import tokenise
from lensjax.train.loop import planned_steps
from lensjax.train.prepare import FIRST_RUNG, rungs
from lensjax.train.spec import TrainingSpec

if TYPE_CHECKING:
    from lensjax.tasks.task import Example
    from lensjax.tasks.tokens import Tokens

BATCH, EPOCHS = 32, 10
RATES = (3e-5, 1e-4, 3e-4)
_WHOLE = 0.5  # of FullTuning, that a study should cost at most
_EIGHTH = 8  # part of the target that the largest rung is by default
_LONG = 0.995  # "99.5 %": share of the examples that no length cuts
_FEWEST = 100  # examples of a validation that is made smaller
_MANY = 1 << 20  # tokens, more than any example has


@dataclass(frozen=True)
class Ladder:
    """The runs of each candidate in a study.

    Attributes:
      budget: The largest rung.
      target: Number of examples that the winner will be trained on.
      rates: Learning rates that are tried on the first rung.
      min_steps: See `lensjax.train.spec.TrainingSpec`.
      validation, test: Numbers of examples held out.
      row: Cost of a row of a training batch, in rows of a validation, see `Proposed`; None where it is not known.
    """

    budget: int
    target: int
    rates: tuple[float, ...]
    min_steps: int
    validation: int = 0
    test: int = 0
    row: float | None = None

    def passes(self, examples: int) -> float:
        """Rows that a run passes through the model, at most: in training thrice, in validations and tests once."""
        if not examples:
            return self.test
        spec = TrainingSpec(epochs=EPOCHS, batch_size=BATCH, min_steps=self.min_steps)
        steps, every = planned_steps(spec, math.ceil(examples / BATCH))
        trained = 3 * BATCH * steps * (1.0 if self.row is None else self.row)
        return trained + math.ceil(steps / every) * self.validation + self.test

    @property
    def total(self) -> float:
        """Those of all runs of a candidate."""
        return sum(map(self.passes, rungs(self.budget))) + (len(self.rates) - 1) * self.passes(FIRST_RUNG)

    @property
    def share(self) -> float:
        """The cost of the study over that of fine-tuning every candidate on the target, at one learning rate."""
        return self.total / self.passes(self.target)

    @property
    def sentence(self) -> str:
        """What the study costs beside full fine-tuning, and what makes it cheaper."""
        cuts = ["a smaller budget"] if self.budget > 2 * FIRST_RUNG else []
        cuts += ["one learning rate"] if len(self.rates) > 1 else []
        cuts += ["a smaller min_steps"] if self.min_steps else []
        how = f" Cheaper with {', or '.join(cuts)}." if cuts else ""
        saves = "" if self.share < 1 else " So little data is cheaper to fine-tune every candidate on."
        alike = "" if self.row else " and as if all rows were equally long"
        return (
            f"The study costs roughly {text.share(self.share)} of fine-tuning every candidate on all {self.target:,} "
            f"examples, with validations and tests{alike}; the plan says it exactly.{saves}{how}"
        )


class Proposed(NamedTuple):
    """Limits of prompts and targets that cut next to no example, within what the candidates have positions for.

    Attributes:
      prompt, target: Tokens of each, at most.
      row: Tokens of a row of a training batch, padding included, by those of a row of a validation, on average over
        the candidates: in training, short rows are in batches of their own.
      said: What this is from, in a sentence.
    """

    prompt: int
    target: int
    row: float
    said: str


def propose_ladder(
    available: int,
    target: int | None = None,
    budget: int | None = None,
    validation: int = 0,
    test: int = 0,
    row: float | None = None,
) -> Ladder:
    """The most thorough runs that cost at most half of fine-tuning every candidate on the target, or else the cheapest.

    Args:
      available: Number of examples to train on.
      target: Number that the winner will be trained on; by default all.
      budget: The largest rung, where the user gives one; by default the largest within an eighth of the target.
      validation, test: Numbers of examples that can be held out. A validation is made smaller, down to an eighth or a
        hundred examples, before runs are made shorter.
      row: See `Ladder`.
    """
    target = target or available
    ladders = []
    largest = budget or max(rungs(min(target // _EIGHTH, available))[-1], 2 * FIRST_RUNG)
    smaller = [size for size in rungs(largest)[::-1] if size >= 2 * FIRST_RUNG]
    for size in [largest] if budget else smaller:
        for rates, steps in ((RATES, 500), (RATES, 250), (RATES, 120), (RATES[1:2], 120), (RATES[1:2], 0)):
            held_out = dict.fromkeys(max(validation // part, min(validation, _FEWEST)) for part in (1, 2, 4, 8))
            ladders += [Ladder(size, target, rates, steps, some, test, row) for some in held_out]
    return next((one for one in ladders if one.share <= _WHOLE), min(ladders, key=lambda one: one.total))


def propose_lengths(task: TaskSpec, examples: Sequence["Example"], candidates: Iterable[str]) -> Proposed | None:
    """How long rows may be, by what the candidates' tokenizers make of some examples.

    Args:
      task: The task.
      examples: Some of its examples.
      candidates: Folders, hub ids or pocket:NAME of models; those that are not here are passed over.

    Returns:
      The limits; None where no candidate's tokenizer is here.
    """
    wide = task.model_copy(update={"max_prompt_tokens": _MANY, "max_target_tokens": _MANY})
    prompts, targets, rooms = [1], [1], [_MANY]
    rows: list[tuple[Tokens, bool]] = []
    for source in dict.fromkeys(candidates):
        try:
            folder = local_folder(source)
            if folder is None:
                continue
            config = read_config(folder)
            apart = family_of(config.model_type).encoder_decoder
            tokens = tokenise(examples, read_tokenizer(folder, config), wide, encoder_decoder=apart)
        except InputError:  # which the plan says of the candidate
            continue
        rows.append((tokens, apart))
        prompts.append(_long(tokens.prompt_lengths))
        targets.append(_long(tokens.target_lengths))
        rooms.append(int(getattr(config, "max_position_embeddings", None) or _MANY))
    if not rows:
        return None
    longest, room = (max(prompts), max(targets)), min(rooms)
    target = min(_rounded(longest[1]), max(room // 2, 1))
    prompt = min(_rounded(longest[0]), room - target)
    said = f"Of {len(examples):,} examples, 99.5 % have at most {longest[0]:,} tokens of prompt and "
    said += f"{longest[1]:,} of target, by the candidates' own tokenizers."
    if sum(longest) > room:
        said += f" Longer ones are cut, as a candidate has positions for {room:,} tokens."
    return Proposed(prompt, target, float(np.mean([_row(*one, prompt, target) for one in rows])), said)


def _row(tokens: "Tokens", apart: bool, prompt: int, target: int) -> float:
    """A candidate's part of `Proposed.row`, given the limits; `apart` of an encoder–decoder."""
    prompts, targets = np.minimum(tokens.prompt_lengths, prompt), np.minimum(tokens.target_lengths, target)
    needed = np.stack([prompts, targets], axis=1) if apart else (prompts + targets)[:, None]
    short, long = choose_lengths([needed])
    share = float(fits(needed, short).mean())
    return share * sum(short) / sum(long) + 1 - share


def _long(lengths: np.ndarray) -> int:
    return int(np.quantile(lengths, _LONG, method="higher"))


def _rounded(length: int) -> int:
    """A limit somewhat above a length."""
    return math.ceil(length / 16) * 16
