"""How well pretrained hidden states tell targets apart: LogME and the H-score, from forward passes alone."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel

from lensjax.core.sections import DataTable, Section
from lensjax.core.specs import Count, Strict
from lensjax.measure.measurement import MEASUREMENTS, Cell, Measured, Measurement, Records, Subject
from lensjax.train.prepare import FIRST_RUNG

if TYPE_CHECKING:  # what is computed with is imported by what computes
    from lensjax.models.model import Batch, Model

KIND = "transferability"


class TransferabilityFinding(Strict):
    """What the hidden states of a candidate tell of targets before fine-tuning; more is better.

    Attributes:
      model: The candidate.
      logme, h_score: Means over layers; see `lensjax.measure.transferability`.
      layers: Number of layers.
      classes: Number of different tokens that targets begin with.
      size: Number of examples.
    """

    model: str
    logme: float
    h_score: float
    layers: int
    classes: int
    size: int


class TransferabilityFindings(BaseModel):
    """Scores of candidates, where they were measured."""

    transferability: tuple[TransferabilityFinding, ...] = ()


@MEASUREMENTS.register(KIND)
class HiddenStates(Measurement):
    """LogME and the H-score of every candidate before fine-tuning.

    Attributes:
      examples: Number of training examples of the first seed that they are measured on.
    """

    title, label = "Transferability", "transferability"
    help = "how well the hidden states of every pretrained model tell apart what targets begin with (LogME, H-score)"
    findings: ClassVar[type[BaseModel] | None] = TransferabilityFindings

    examples: Count = FIRST_RUNG

    @property
    def rows(self) -> int:
        return self.examples

    def flops(self, model: "Model", batch: "Batch | None") -> int:
        from lensjax.measure.transferability import transferability_flops

        assert batch is not None
        return transferability_flops(model, batch)

    def measure(self, subject: Subject) -> Measured:
        from lensjax.measure.transferability import measure_transferability, transferability_flops

        model = subject.model()
        batch = subject.batch(model)
        found = measure_transferability(model, batch)
        arrays = {"logme": found.logme, "h_score": found.h_score}
        numbers = {name: float(np.mean(values)) for name, values in arrays.items()}
        numbers |= {"layers": len(found.logme), "classes": found.classes, "size": len(batch["labels"])}
        return Measured(numbers, arrays, transferability_flops(model, batch))

    @classmethod
    def collect(cls, records: Records) -> TransferabilityFindings:
        return TransferabilityFindings(transferability=tuple(scores(records)))

    @classmethod
    def for_methods(cls, records: Records) -> Mapping[str, Any]:
        return {one.model: {"logme": one.logme, "h_score": one.h_score} for one in scores(records)}

    @classmethod
    def show(cls, findings: Any) -> Sequence[Section]:
        found: Sequence[TransferabilityFinding] = findings.transferability
        if not found:
            return ()
        note = (
            f"Of the hidden states of every candidate before fine-tuning, where it predicts the first token of each of "
            f"{found[0].size:,} targets: how well they tell those tokens apart. More is better. Candidates with other "
            "tokenizers have other tokens to tell apart, and are compared with some injustice."
        )
        rows = [
            (one.model, [f"{one.logme:.3f}", f"{one.h_score:.3f}", str(one.layers), f"{one.classes:,}"])
            for one in found
        ]
        columns = ["LogME", "H-score", "Layers", "First tokens"]
        return [Section(KIND, cls.title, [note], tables=[DataTable("Transferability of candidates", columns, rows)])]


def scores(records: Records) -> list[TransferabilityFinding]:
    """Scores of candidates whose hidden states were looked at.

    Raises:
      InputError: a file of them cannot be read.
    """
    found = {name: records.read(Cell(KIND, name, 0, records.seeds[0])) for name in records.models}
    names = [name for name in TransferabilityFinding.model_fields if name != "model"]
    return [
        TransferabilityFinding(model=model, **{name: one.summary[name] for name in names})
        for model, one in found.items()
        if one is not None and "logme" in one.summary
    ]
