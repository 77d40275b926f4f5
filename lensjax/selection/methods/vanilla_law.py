"""VanillaLaw: a power law with an outer exponent, fitted to each model by itself."""

from lensjax.curves.table import CurveTable
from lensjax.fit.per_model import fit_per_model
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import register
from lensjax.selection.prediction import Prediction


@register("vanilla_law", "per-model fit of L = (B / D^β + E)^α", place=5)
def vanilla_law(table: CurveTable, target: int, evidence: Evidence) -> Prediction:
    """Least squares in log loss, each model by itself; needs two sizes above 0."""
    return Prediction(fit_per_model(table, "vanilla").predict(target))
