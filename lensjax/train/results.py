"""The results of fine-tuning runs, and the table of curves that is made of them."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, model_validator

from lensjax.core.artefacts import Damaged, read_sealed, sealed
from lensjax.core.csv_text import csv_text
from lensjax.core.files import LOCK, locked, write_files
from lensjax.core.tabular import Columns, Tabular
from lensjax.curves.units import BITS_PER_BYTE, NATS_PER_TOKEN
from lensjax.tasks.writing import Writing
from lensjax.train.samples import Sample

if TYPE_CHECKING:
    from lensjax.train.evaluate import Evaluation

RESULT = "result.json"
WRITING = ("unwritable", "ineligible")  # columns of curves.csv that are made of `Result.writing`
_APART = {"writing", "samples"}  # fields that are no columns
CURVES = "curves.csv"
METRICS = (  # each has a column for its error
    "bits_per_byte",
    "nats_per_example",
    "token_accuracy",
    "exact_match",
    "choice_accuracy",
    "choice_accuracy_per_byte",
)


_ROUNDING = 1e-4  # how far below 0 a loss may come out that is none


def _without_rounding(value: object) -> object:
    return 0.0 if isinstance(value, float) and -_ROUNDING < value < 0 else value


Finite = Annotated[NonNegativeFloat, Field(allow_inf_nan=False), BeforeValidator(_without_rounding)]
Share = Annotated[float, Field(ge=0, le=1)]


class Result(Tabular, BaseModel):
    """One point of a curve: the columns of curves.csv, in this order, but for `writing` and `samples`.

    Attributes:
      model, family, size: The model's name, Hugging Face model_type, and number of parameters.
      examples: Number of training examples.
      loss: Test loss in nats per target token, at the lowest validation loss; None if the run failed.
      standard_error: Of the loss, over other draws of the test examples.
      bits_per_byte: The loss of all test targets, end-of-text tokens included, in bits, over the UTF-8 bytes of their
        texts as they are written: comparable across tokenizers. None if it is not known; `note` says why.
      nats_per_example: Mean of the loss of a whole test target, end-of-text token included; None where one was cut.
      token_accuracy: Share of target tokens that have the highest logit after the true tokens before them.
      exact_match: Share of targets that greedy decoding writes exactly, end-of-text token included; none that was cut.
      choice_accuracy: Share of test examples of whose choices the target has the lowest loss; None without choices.
      choice_accuracy_per_byte: The same by the loss over the UTF-8 bytes of each choice.
      bits_per_byte_error and so on: Their standard errors over other draws of the test examples.
      seed: Of the choice and the order of training examples.
      status, error: Whether the run succeeded, and if not, why.
      validation_loss, best_step, steps: The lowest validation loss, its step, and the number of steps.
      learning_rate, method, dtype: Peak learning rate, "full" or "lora", and the type of computation.
      test_examples, test_tokens: Numbers of test examples and of their target tokens.
      test_bytes: Number of bytes in `bits_per_byte`; those after the cut of a target do not count.
      tokens: Tokens trained on over all steps, with prompts.
      flops: Floating-point operations of matrix products, in training, validation and test.
      seconds: Time of training, validation and test, with the compilation of programs that were not cached.
      device, devices: Kind and number of devices.
      xla: The preset of flags of XLA (`lensjax.core.presets`); "" for none.
      spec, data: Hashes of the spec with its validation and test sets, and of the training examples.
      weights: Hash of the model's files before fine-tuning; see `lensjax.models.inputs`.
      origin: The data set on the hub that examples come from, and its commit; "" for files.
      lensjax, jax: Versions.
      note: That weights were dequantised; how conversations are rendered, unless the tokenizer's own template does all;
        why metrics are not known, if test targets or choices were cut.
      writing: What the tokenizer cannot write; None if an earlier version made the result.
      samples: What the model writes for the first test examples, where that was asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    examples: NonNegativeInt
    loss: Finite | None
    seed: NonNegativeInt
    size: NonNegativeInt
    family: str
    standard_error: Finite | None = None
    bits_per_byte: Finite | None = None
    bits_per_byte_error: Finite | None = None
    nats_per_example: Finite | None = None
    nats_per_example_error: Finite | None = None
    token_accuracy: Share | None = None
    token_accuracy_error: Finite | None = None
    exact_match: Share | None = None
    exact_match_error: Finite | None = None
    choice_accuracy: Share | None = None
    choice_accuracy_error: Finite | None = None
    choice_accuracy_per_byte: Share | None = None
    choice_accuracy_per_byte_error: Finite | None = None
    status: Literal["ok", "failed"] = "ok"
    validation_loss: Finite | None = None
    learning_rate: Finite | None = None
    best_step: NonNegativeInt = 0
    steps: NonNegativeInt = 0
    tokens: NonNegativeInt = 0
    flops: NonNegativeInt = 0
    seconds: Finite = 0.0
    test_examples: NonNegativeInt = 0
    test_tokens: NonNegativeInt = 0
    test_bytes: NonNegativeInt | None = None
    method: str = "full"
    dtype: str = "float32"
    device: str = ""
    devices: NonNegativeInt = 1
    xla: str = ""
    spec: str = ""
    data: str = ""
    weights: str = ""
    origin: str = ""
    lensjax: str = ""
    jax: str = ""
    error: str = ""
    note: str = ""
    writing: Writing | None = None
    samples: tuple[Sample, ...] = ()

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if self.loss is None and self.status == "ok":
            raise ValueError("it has no loss, and did not fail")
        return self

    @property
    def headline(self) -> str:
        """The run, and what its test showed, in a line."""
        ended = f"failed, {self.error}" if self.loss is None else result_sentence(self)
        return f"{self.model} on {self.examples:,} examples, seed {self.seed}: {ended}"

    def as_columns(self) -> Columns:
        """One row, with a column for every field of curves.csv that is known."""
        known = {name: getattr(self, name) for name in Result.model_fields if name not in _APART}
        return {name: [value] for name, value in known.items() if value is not None}

    @property
    def still_learning(self) -> bool:
        """Whether the validation loss was lowest at the very last step, so that more steps might lower it."""
        return 0 < self.steps == self.best_step


def metric_fields(test: "Evaluation") -> dict[str, Any]:
    """The task metrics of a test as fields of a result."""
    fields: dict[str, Any] = {"test_bytes": test.bytes}
    for name in METRICS:
        estimate = getattr(test, name)
        if estimate is not None:
            fields[name] = estimate.value
            fields[f"{name}_error"] = None if math.isnan(estimate.standard_error) else estimate.standard_error
    return fields


def result_sentence(result: Result) -> str:
    """The test loss of a run that succeeded and what else the test showed, with standard errors.

    The loss in the unit that models are compared in comes first: bits per byte where that is known.
    """

    def value(number: float, error: float | None) -> str:
        return f"{number:.4f}" if error is None else f"{number:.4f} ± {error:.4f}"

    assert result.loss is not None
    tokens = f"{value(result.loss, result.standard_error)} {NATS_PER_TOKEN}"
    if result.bits_per_byte is None:
        parts = [f"test loss {tokens}"]
    else:
        bits = f"{value(result.bits_per_byte, result.bits_per_byte_error)} {BITS_PER_BYTE}"
        parts = [f"test loss {bits} ({tokens})"]
    if result.token_accuracy is not None:
        parts.append(f"token accuracy {value(result.token_accuracy, result.token_accuracy_error)}")
    if result.exact_match is not None:
        parts.append(f"exact match {value(result.exact_match, result.exact_match_error)}")
    return ", ".join(parts)


def notes(results: Sequence[Result]) -> list[str]:
    """What limits what results say, once for each model, in sentences."""
    found = dict.fromkeys((result.model, result.note) for result in results if result.note)
    return [f"{model}: {note}" for model, note in found]


def read_result(folder: Path) -> Result | None:
    """The result in a run's folder; None if the run has not ended.

    Raises:
      Damaged: the file does not hold a result, or that of a run of another folder.
    """
    path = folder / RESULT
    result = read_sealed(path, Result, required=False)  # earlier versions wrote none
    if result is not None and (why := _misplaced(folder, result)):
        raise Damaged(path, why)
    return result


def _misplaced(folder: Path, result: Result) -> str:
    """Why a result is not of the run whose folder it lies in, as far as the folder's name tells; "" where it may be."""
    named = re.fullmatch(r"examples-(\d+)-seed-(\d+)", folder.name)
    if named is not None and (int(named[1]), int(named[2])) != (result.examples, result.seed):
        return f"it is of {result.examples:,} examples and seed {result.seed}"
    return ""


def write_result(folder: Path, result: Result) -> None:
    """Write a run's result into its folder.

    Raises:
      InputError: the folder is missing or not writable, or the disk is full.
    """
    write_files({folder / RESULT: sealed(result.model_dump(mode="json"))}, follow=False)


def write_curves(folder: Path, max_unwritable: float) -> Path:
    """Collect the results of all runs of all models in a folder, as curves.csv that `lensjax rank` reads.

    Several commands may do so at once.

    Args:
      folder: The folder.
      max_unwritable: See `curves_csv`.

    Returns:
      The path of curves.csv.

    Raises:
      InputError: a result cannot be read, or the file cannot be written.
    """
    path = folder / CURVES
    with locked(folder / LOCK):
        results = (read_result(run) for run in sorted(folder.glob("*/examples-*")))
        write_files({path: curves_csv([one for one in results if one is not None], max_unwritable)}, follow=False)
    return path


def steps_caution(results: Sequence[Result]) -> str | None:
    """A caution about runs that ended while their models were still learning; None if there are none."""
    different = {(result.model, result.examples, result.seed): result for result in results}
    trained = [result for result in different.values() if result.status == "ok" and result.steps]
    short = [result for result in trained if result.still_learning]
    if not short:
        return None
    least = min(result.examples for result in short)
    return (
        f"In {len(short):,} of {len(trained):,} runs (the smallest on {least:,} examples) the validation loss was "
        "lowest at the last step, so more steps may lower it. Where small sets are left half learned, curves look "
        "steeper than they are, and rankings come out wrong: raise min_steps, or epochs for large sets, and max_steps "
        "where it stands in the way."
    )


def curves_csv(results: Sequence[Result], max_unwritable: float) -> str:
    """Results as tidy CSV text with a column for every field, by model, seed and number of examples.

    Of `writing`, there is the share of targets that cannot be written (`unwritable`), and why the model may not be
    chosen for that (`ineligible`).

    Args:
      results: The results.
      max_unwritable: Largest share of targets that a model may be unable to write and still be chosen.
    """
    rows: list[list[object]] = [[*(name for name in Result.model_fields if name not in _APART), *WRITING]]
    for result in sorted(results, key=lambda r: (r.model, r.seed, r.examples)):
        cells = [*result.model_dump(exclude=_APART).values()]
        found = result.writing
        cells += [None, ""] if found is None else [found.unwritable, found.why_not(max_unwritable)]
        rows.append(["" if cell is None else repr(cell) if isinstance(cell, float) else cell for cell in cells])
    return csv_text(rows)
