"""LogME (You et al., arXiv 2102.11005): models by the evidence of their hidden states, before any fine-tuning."""

import numpy as np

from lensjax.core.errors import InputError
from lensjax.curves.table import CurveTable
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction

TRANSFERABILITY = "transferability"


@register(
    "logme",
    "LogME of the pretrained hidden states",
    place=8.2,
    needs={TRANSFERABILITY: "scores of hidden states"},
)
def logme(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """An order, not a loss; NaN where hidden states were not looked at."""
    return by_score("logme", table, evidence)


def by_score(name: str, table: CurveTable, evidence: Evidence) -> Prediction:
    """The order of models by one of the scores of their hidden states, of which more is better.

    Raises:
      InputError: no model has it.
    """
    known = evidence.of(TRANSFERABILITY, table.models)
    if all(scores is None for scores in known):
        raise InputError("No model has scores of hidden states; measure them (evidence.transferability in a study).")
    return Prediction(np.array([np.nan if scores is None else -scores[name] for scores in known]), is_loss=False)
