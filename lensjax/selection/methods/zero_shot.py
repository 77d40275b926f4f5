"""ZeroShot: models by their pretrained loss."""

from lensjax.curves.table import CurveTable
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction


@register("zero_shot", "test loss of the pretrained model (D = 0)", place=2)
def zero_shot(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """The pretrained loss, unchanged by the target; NaN where it was not measured."""
    return Prediction(table.column(0))
