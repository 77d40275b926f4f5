"""The neural tangent kernel: before fine-tuning, and where asked for also along the ladder."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, field_validator, model_validator

from lensjax.core import text
from lensjax.core.errors import listing
from lensjax.core.sections import DataTable, Line, LinePlot, Section
from lensjax.core.specs import Count, Strict
from lensjax.curvature.dynamics import kernel_drift, kernel_growth, residual_modes
from lensjax.measure.functionals import FUNCTIONALS
from lensjax.measure.measurement import MEASUREMENTS, Cell, Measured, Measurement, Records, Subject
from lensjax.train.prepare import FIRST_RUNG

if TYPE_CHECKING:  # what is computed with is imported by what computes
    from lensjax.models.model import Batch, Model

KIND = "ntk"
_FLAT = 1e-12  # of F(0): what is below is rounding

Modes = tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]


class KernelFinding(Strict):
    """The neural tangent kernel of a candidate before fine-tuning.

    Attributes:
      model: The candidate.
      functional: The function of parameters and an example whose kernel it is.
      size: N, its side.
      effective_rank, target_alignment: See `lensjax.curvature.dynamics`.
      eigenvalues: Of Θ / N, largest first.
      times, residuals: η t, and F(Θ, t) there.
    """

    model: str
    functional: str
    size: int
    effective_rank: float
    target_alignment: float | None
    eigenvalues: tuple[float, ...]
    times: tuple[float, ...]
    residuals: tuple[float, ...]


class KernelDrift(Strict):
    """The kernels of models fine-tuned from a candidate, on the examples that its own kernel is on.

    Attributes:
      model, seed: The ladder.
      examples: Of each rung.
      drift: 1 − cos between its kernel and the candidate's; see `lensjax.curvature.dynamics.kernel_drift`.
      growth: Trace of its kernel, divided by that of the candidate's.
      effective_rank, target_alignment: Of its kernel; see `lensjax.curvature.dynamics`.
    """

    model: str
    seed: int
    examples: tuple[int, ...]
    drift: tuple[float, ...]
    growth: tuple[float, ...]
    effective_rank: tuple[float, ...]
    target_alignment: tuple[float | None, ...]


class KernelFindings(BaseModel):
    """Kernels of candidates, and how far they drift along ladders, where they were measured."""

    kernels: tuple[KernelFinding, ...] = ()
    kernel_drifts: tuple[KernelDrift, ...] = ()


@MEASUREMENTS.register(KIND)
class TangentKernel(Measurement):
    """The neural tangent kernel of every candidate before fine-tuning; see `lensjax ntk`.

    Attributes:
      examples: Number of training examples of the first seed that the kernel is on.
      functional: Of which the kernel is; one that has a residual.
      along_ladder: Whether every model that is fine-tuned with the first seed has its kernel measured too, on the same
        examples, which shows how far fine-tuning moves it.
    """

    title, label = "Kernel", "kernel"
    help = (
        "the kernel of every pretrained model, which tells how fast it could learn; {along_ladder: true} adds that of "
        "every model that is fine-tuned with the first seed, which tells how far it moves"
    )
    by_default = True
    findings: ClassVar[type[BaseModel] | None] = KernelFindings

    examples: Count = 64
    functional: str = "loss"
    along_ladder: bool = False

    @field_validator("functional")
    @classmethod
    def _with_residual(cls, value: str) -> str:
        if value not in FUNCTIONALS or FUNCTIONALS[value].targets is None:
            fitting = [name for name, functional in FUNCTIONALS.items() if functional.targets is not None]
            raise ValueError(f"choose from {listing(fitting, 20)}, whose kernels have a residual")
        return value

    @model_validator(mode="after")
    def _trained_on(self) -> Self:
        if self.along_ladder and self.examples > FIRST_RUNG:
            raise ValueError(f"along_ladder is on examples that every rung was trained on: {FIRST_RUNG} at most")
        return self

    @property
    def rows(self) -> int:
        return self.examples

    def seeds_on(self, rung: int, seeds: Sequence[int]) -> Sequence[int]:
        return seeds[:1] if self.along_ladder or not rung else ()

    def deciding(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"along_ladder"})

    def flops(self, model: "Model", batch: "Batch | None") -> int:
        from lensjax.measure.kernel import kernel_flops

        assert batch is not None
        return kernel_flops(model, batch, self.functional)

    def measure(self, subject: Subject) -> Measured:
        from lensjax.measure.kernel import measure_kernel

        model = subject.model()
        kernel = measure_kernel(model, subject.batch(model), self.functional)
        return Measured(kernel.summary(), kernel.arrays(), kernel.flops)

    @classmethod
    def collect(cls, records: Records) -> KernelFindings:
        return KernelFindings(kernels=tuple(kernels(records)), kernel_drifts=tuple(kernel_drifts(records)))

    @classmethod
    def for_methods(cls, records: Records) -> Mapping[str, Any]:
        return residuals(records)

    @classmethod
    def show(cls, findings: Any) -> Sequence[Section]:
        if not findings.kernels:
            return ()
        note = (
            "The exact neural tangent kernel Θ of every candidate before fine-tuning, on the same training examples. "
            "Effective rank is the exponential of the spectrum’s entropy; alignment is the cosine between Θ and the "
            "outer product of the residual."
        )
        plots = _plots(findings.kernels, findings.kernel_drifts)
        return [Section("kernels", "Kernels", [note], plots, [_table(findings.kernels, findings.kernel_drifts)])]


def _before(records: Records) -> dict[str, Measured]:
    """Candidates' kernels before fine-tuning, where they were measured."""
    kernels = {name: records.read(Cell(KIND, name, 0, records.seeds[0])) for name in records.models}
    return {name: one for name, one in kernels.items() if one is not None and "theta" in one.arrays}


def kernels(records: Records) -> list[KernelFinding]:
    """Candidates' kernels before fine-tuning.

    Raises:
      InputError: a file of them cannot be read.
    """
    numbers, lines = ("functional", "size", "effective_rank", "target_alignment"), ("eigenvalues", "times", "residuals")
    return [
        KernelFinding.model_validate(
            {"model": name}
            | {key: one.summary[key] for key in numbers}
            | {key: tuple(one.arrays[key].tolist()) for key in lines}
        )
        for name, one in _before(records).items()
    ]


def residuals(records: Records) -> dict[str, Modes]:
    """Rates and weights of the residuals of candidates' kernels; see `lensjax.curvature.dynamics.residual_modes`.

    Raises:
      InputError: a file of them cannot be read.
    """
    modes = {
        name: residual_modes(*(one.arrays[key] for key in ("theta", "f0", "y")))
        for name, one in _before(records).items()
    }
    return {name: (np.asarray(rates), np.asarray(weights)) for name, (rates, weights) in modes.items()}


def kernel_drifts(records: Records) -> list[KernelDrift]:
    """How far fine-tuning moves kernels, along every ladder on which any were measured.

    Rungs whose kernel is of another functional or of other examples than the candidate's are left out.

    Raises:
      InputError: a file of them cannot be read.
    """
    drifts, seed = [], records.seeds[0]
    for name, before in _before(records).items():
        cells = {size: records.read(Cell(KIND, name, size, seed)) for size in records.sizes if size}
        rungs = {
            size: after
            for size, after in cells.items()
            if after is not None and "theta" in after.arrays and _measured_on(after) == _measured_on(before)
        }
        if rungs:
            theta, summaries = before.arrays["theta"], [after.summary for after in rungs.values()]
            drifts.append(
                KernelDrift(
                    model=name,
                    seed=seed,
                    examples=tuple(rungs),
                    drift=tuple(kernel_drift(theta, after.arrays["theta"]) for after in rungs.values()),
                    growth=tuple(kernel_growth(theta, after.arrays["theta"]) for after in rungs.values()),
                    effective_rank=tuple(summary["effective_rank"] for summary in summaries),
                    target_alignment=tuple(summary["target_alignment"] for summary in summaries),
                )
            )
    return drifts


def _measured_on(kernel: Measured) -> dict[str, Any]:
    """Everything that two kernels must share to be compared; how the model was fine-tuned is not among it."""
    return {name: value for name, value in (kernel.summary.get("asked") or {}).items() if name != "training"}


def _plots(kernels: Sequence[KernelFinding], drifts: Sequence[KernelDrift]) -> list[LinePlot]:
    spectra = [Line(one.model, range(1, len(one.eigenvalues) + 1), one.eigenvalues) for one in kernels]
    falls = []
    for one in kernels:
        least = _FLAT * max(one.residuals, default=0)
        points = [(t, f) for t, f in zip(one.times, one.residuals, strict=True) if f > least]
        falls.append(Line(one.model, [t for t, _ in points], [f for _, f in points]))
    note = "Eigenvalues of Θ / N at the pretrained weights, largest first."
    plots = [LinePlot("spectra", "NTK spectra", "rank", "eigenvalue of Θ / N", spectra, note)]
    note = "Squared error per example that linearised training has left after a time t."
    plots += [LinePlot("residuals", "Residuals F(Θ, t)", "η t", "F(Θ, t)", falls, note)]
    if drifts:
        note = "1 − cos between the kernel before and after fine-tuning: 0 where only its scale changes."
        lines, y = [Line(one.model, one.examples, one.drift) for one in drifts], "1 − cos of kernels"
        plots += [LinePlot("drifts", "Drift of kernels", "training examples", y, lines, note, ladder=True)]
    return plots


def _table(kernels: Sequence[KernelFinding], drifts: Sequence[KernelDrift]) -> DataTable:
    drift_of = {one.model: one for one in drifts}
    rows = []
    for one in kernels:
        aligned = text.DASH if one.target_alignment is None else f"{one.target_alignment:.3f}"
        first = [text.significant(of[0]) if of else text.DASH for of in (one.eigenvalues, one.residuals)]
        values = [f"{one.effective_rank:.1f} of {one.size:,}", aligned, *first]
        if drifts:
            drift = drift_of.get(one.model)
            values += [f"{drift.drift[-1]:.3f}", text.significant(drift.growth[-1], 3)] if drift else [text.DASH] * 2
        rows.append((one.model, values))
    after = ["Drift, last rung", "Growth of its trace"] if drifts else []
    columns = ["Effective rank", "Alignment", "Largest eigenvalue", "F(Θ, 0)", *after]
    return DataTable("Kernels of candidates", columns, rows)
