"""H-score with a shrunk covariance (Ibrahim et al., arXiv 2110.06893): models by how hidden states part targets."""

from lensjax.curves.table import CurveTable
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.methods.logme import TRANSFERABILITY, by_score
from lensjax.selection.prediction import Prediction


@register(
    "h_score",
    "H-score of the pretrained hidden states",
    place=8.4,
    needs={TRANSFERABILITY: "scores of hidden states"},
)
def h_score(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """An order, not a loss; NaN where hidden states were not looked at."""
    return by_score("h_score", table, evidence)
