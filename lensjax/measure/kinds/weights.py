"""Heavy tails of the weights (NLPmetrics), which need no data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lensjax.measure.measurement import MEASUREMENTS, Cell, Measured, Measurement, Records, Subject


@MEASUREMENTS.register("weights")
class HeavyTails(Measurement):
    """Spectra of every pretrained model's weight matrices; see `lensjax.models.heavy_tails`."""

    title, label, help = "Weight metrics", "weight metrics", "heavy tails of the weights (NLPmetrics)"
    counts_flops = False

    def seeds_on(self, rung: int, seeds: Sequence[int]) -> Sequence[int]:
        return () if rung else (0,)  # whatever the study's seeds are, as no example is drawn

    def measure(self, subject: Subject) -> Measured:
        from lensjax.models.heavy_tails import weight_metrics

        return Measured(asdict(weight_metrics(subject.model())))

    @classmethod
    def for_methods(cls, records: Records) -> Mapping[str, Any]:
        return weight_scores(records)


def weight_scores(records: Records) -> dict[str, float]:
    """NLPmetrics' score, PL_alpha + E_TPL_lambda, of candidates whose weights were measured; less is better.

    Raises:
      InputError: a file of them cannot be read.
    """
    from pydantic import TypeAdapter

    from lensjax.models.heavy_tails import WeightMetrics

    metrics = TypeAdapter(WeightMetrics)
    found = {name: records.read(Cell("weights", name)) for name in records.models}
    return {name: metrics.validate_python(one.summary).score for name, one in found.items() if one is not None}
