"""The loss of a model on a set of examples and what else the same pass shows, with standard errors."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from lensjax.models.model import Params
from lensjax.tasks.batches import Lengths, evaluation_batches
from lensjax.tasks.choices import Choices
from lensjax.tasks.target_bytes import UNKNOWN
from lensjax.tasks.tokens import Tokens
from lensjax.train.placement import BatchPlacement
from lensjax.train.step import Programs

_IN_FLIGHT = 16  # batches handed to the devices before their losses are fetched


class Estimate(NamedTuple):
    """A number and its standard error over other draws of the examples, which is NaN for a single example."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Evaluation:
    """Loss and task metrics over examples.

    A target that was cut to max_target_tokens has no end-of-text token, and its loss covers a part of its text.

    Attributes:
      loss: Mean over all target tokens, in nats.
      standard_error: Of the loss, over other draws of the examples; NaN for a single example.
      examples: Number of examples.
      tokens: Number of target tokens.
      nats_per_example: Mean over examples of the loss of the whole target, end-of-text token included, in nats; None
        where a target was cut.
      bits_per_byte: The loss of all targets, end-of-text tokens included, in bits, over the UTF-8 bytes of their texts
        as they are written: comparable across tokenizers. Of cut targets only the bytes before the cut count. None
        where the bytes are not known.
      token_accuracy: Share of target tokens that have the highest logit after the true tokens before them.
      exact_match: Share of targets all of whose tokens do: those that greedy decoding writes, and ends, exactly. A
        target that was cut is not one of them.
      choice_accuracy: Share of examples of whose choices the target has the lowest loss, end-of-text token included. If
        n have it, among them the target, that counts as one nth. None where there are no choices, or one was cut.
      choice_accuracy_per_byte: The same by the loss over the UTF-8 bytes of each choice's text.
      bytes: Number of bytes in `bits_per_byte`.
    """

    loss: float
    standard_error: float
    examples: int
    tokens: int
    nats_per_example: Estimate | None = None
    bits_per_byte: Estimate | None = None
    token_accuracy: Estimate | None = None
    exact_match: Estimate | None = None
    choice_accuracy: Estimate | None = None
    choice_accuracy_per_byte: Estimate | None = None
    bytes: int | None = None


def evaluate(
    programs: Programs,
    params: Params,
    frozen: Params,
    tokens: Tokens,
    lengths: Lengths,
    placement: BatchPlacement,
    padding: int,
    target_bytes: Int[np.ndarray, " examples"] | None = None,
    choices: Choices | None = None,
) -> Evaluation:
    """The loss on all examples, and the task metrics; all processes must call it, and all get it.

    Args:
      programs: Of the model.
      params, frozen: Its parameters, as `Programs.losses` takes them.
      tokens: The examples.
      lengths: Shape of the batches.
      placement: How batches lie on the devices.
      padding: Token that fills rows up.
      target_bytes: Bytes of each target's text; see `lensjax.tasks.target_bytes`.
      choices: The choices beside the targets. Their losses take a pass of their own.
    """

    def scores(of: Tokens, shape: Lengths) -> Float[np.ndarray, "3 examples"]:
        return _scores(programs, params, frozen, of, shape, placement, padding)

    sums, counts, hits = tokens.by_example(scores(tokens, lengths))
    others = None
    if choices is not None and not choices.cut and not tokens.target_cut.any():
        others = scores(choices.tokens, choices.lengths)[0]
    return summarise(sums, counts, hits, tokens.by_example(tokens.target_cut), target_bytes, choices, others)


def _scores(
    programs: Programs,
    params: Params,
    frozen: Params,
    tokens: Tokens,
    lengths: Lengths,
    placement: BatchPlacement,
    padding: int,
) -> Float[np.ndarray, "3 examples"]:
    """What `Programs.losses` says of every example."""
    fetched: list[np.ndarray] = []
    in_flight: list[tuple[jax.Array, ...]] = []

    def fetch() -> None:
        fetched.extend(np.stack([np.asarray(part, np.float64) for part in parts]) for parts in in_flight)
        in_flight.clear()

    for batch in evaluation_batches(tokens, lengths, placement.rows, placement.local_rows(), padding):
        in_flight.append(programs.losses(params, frozen, placement.to_devices(batch)))
        if len(in_flight) == _IN_FLIGHT:
            fetch()
    fetch()
    return np.concatenate(fetched, axis=1)[:, : len(tokens)]


def summarise(
    sums: Float[np.ndarray, " examples"],
    counts: Float[np.ndarray, " examples"],
    hits: Float[np.ndarray, " examples"] | None = None,
    cut: Bool[np.ndarray, " examples"] | None = None,
    target_bytes: Int[np.ndarray, " examples"] | None = None,
    choices: Choices | None = None,
    others: Float[np.ndarray, " choices"] | None = None,
) -> Evaluation:
    """Totals over examples.

    Args:
      sums: Loss of each example's target tokens, in nats.
      counts: Number of them.
      hits: Number of them that have the highest logit.
      cut: Which targets were cut; by default none.
      target_bytes: Bytes of each target's text, or `UNKNOWN`.
      choices: The choices beside the targets.
      others: Loss of each of them, in nats; None where it does not tell which is best.
    """
    each, whole = np.ones_like(sums), np.ones(len(sums), bool) if cut is None else ~cut
    if target_bytes is not None and ((target_bytes == UNKNOWN).any() or not target_bytes.any()):
        target_bytes = None
    chosen: dict[str, Estimate] = {}
    if choices is not None and others is not None:
        chosen["choice_accuracy"] = _ratio(_right(sums, others, choices), each)
        if target_bytes is not None:
            rates = sums / target_bytes, others / choices.bytes
            chosen["choice_accuracy_per_byte"] = _ratio(_right(*rates, choices), each)
    loss = _ratio(sums, counts)
    return Evaluation(
        loss=loss.value,
        standard_error=loss.standard_error,
        examples=len(sums),
        tokens=int(counts.sum()),
        nats_per_example=_ratio(sums, each) if whole.all() else None,
        bits_per_byte=None if target_bytes is None else _ratio(sums / math.log(2), target_bytes),
        token_accuracy=None if hits is None else _ratio(hits, counts),
        exact_match=None if hits is None else _ratio((whole & (hits == counts)).astype(np.float64), each),
        bytes=None if target_bytes is None else int(target_bytes.sum()),
        **chosen,
    )


def _right(
    target: Float[np.ndarray, " examples"], others: Float[np.ndarray, " choices"], choices: Choices
) -> Float[np.ndarray, " examples"]:
    """Whether each target has the lowest loss of its choices; a share where others have the same."""
    of = choices.examples
    others = np.where(choices.same, target[of], others)
    lower = np.bincount(of, others < target[of], minlength=len(target))
    equal = np.bincount(of, others == target[of], minlength=len(target))
    return np.where(lower > 0, 0.0, 1 / (1 + equal))


def _ratio(numerators: Float[np.ndarray, " examples"], denominators: Float[np.ndarray, " examples"]) -> Estimate:
    """The ratio of two totals, with the standard error of a ratio estimator over examples (by the delta method)."""
    n, total = len(numerators), denominators.sum()
    ratio = float(numerators.sum() / total)
    spread = np.square(numerators - ratio * denominators).sum()
    return Estimate(ratio, math.sqrt(n / (n - 1) * spread) / float(total) if n > 1 else math.nan)
