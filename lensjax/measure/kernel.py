"""A model's kernel on examples of a task, and its forecast of fine-tuning on them."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float

from lensjax.core.errors import InputError
from lensjax.core.pytrees import PyTree
from lensjax.core.tabular import Columns, Tabular
from lensjax.curvature.dynamics import alignment, effective_rank, kernel_drift, kernel_growth, residual_loss, spectrum
from lensjax.curvature.ntk.explain import Explanation, explain
from lensjax.curvature.ntk.ntk import ntk, ntk_flops
from lensjax.curvature.ntk.proof import Verification
from lensjax.measure.functionals import FUNCTIONALS, Batch, Functional, OfModel
from lensjax.models.inputs import naming_weights
from lensjax.models.model import Model

SAMPLES = 32  # projections of a Fisher sketch
_TIMES = 97
_NOT_COMPUTED = ("architectures", "dtype", "_name_or_path", "transformers_version")  # of a configuration
_LEAST = 1e-6  # of the largest eigenvalue: times do not wait for directions below


@dataclass(frozen=True, repr=False)
class MeasuredKernel(Tabular):
    """A model's kernel on N examples.

    Attributes:
      functional: Its name, see `lensjax.measure.functionals`.
      theta: [N, N], or [N × outputs, N × outputs] with all outputs of an example side by side, as for label_logits.
      standard_error: Of every entry where it is an estimate, as for fisher_sketch.
      f0, y: Outputs of the model and their targets, if there is a residual.
      eigenvalues: Of Θ / N, largest first.
      times: η t, of the residuals.
      residuals: F(Θ, t), see `lensjax.curvature.dynamics.residual_loss`.
      labels: Tokens that stand for the classes of label_logits.
      flops: FLOPs that computing the kernel took, see `ntk_flops`.
      verified: What of it was computed a second time, see `ntk`.
    """

    functional: str
    theta: Float[np.ndarray, "n n"]
    standard_error: Float[np.ndarray, "n n"] | None
    f0: Float[np.ndarray, " n"] | None
    y: Float[np.ndarray, " n"] | None
    eigenvalues: Float[np.ndarray, " n"]
    times: Float[np.ndarray, " times"] | None
    residuals: Float[np.ndarray, " times"] | None
    labels: tuple[int, ...]
    flops: int
    verified: Verification | None = None

    @property
    def headline(self) -> str:
        """Its functional, size and largest eigenvalue, in a line."""
        size = f"{len(self.theta):,} × {len(self.theta):,}"
        return f"Kernel of {self.functional}, {size}, largest eigenvalue of Θ / N {self.eigenvalues[0]:.4g}"

    def as_columns(self) -> Columns:
        """Its eigenvalues, largest first, by rank."""
        return {"rank": range(1, len(self.eigenvalues) + 1), "eigenvalue": self.eigenvalues}

    def summary(self) -> dict[str, Any]:
        """Numbers that describe the kernel, the same whenever it is measured; trace and eigenvalue are of Θ / N."""
        verified = {} if self.verified is None else asdict(self.verified)
        known = self.f0 is not None and self.y is not None
        return {
            "functional": self.functional,
            "size": len(self.theta),
            "trace": float(np.trace(self.theta)) / len(self.theta),
            "largest_eigenvalue": float(self.eigenvalues[0]),
            "effective_rank": effective_rank(self.theta),
            "target_alignment": alignment(self.theta, self.f0 - self.y) if known else None,  # type: ignore[operator]
            "labels": list(self.labels),
            "flops": self.flops,
            "verified": "nothing" if self.verified is None else str(self.verified),
            "verification": {name: value for name, value in verified.items() if name not in ("seconds", "since")},
        }

    @property
    def sentence(self) -> str:
        """What is said of it first."""
        rank, size = effective_rank(self.theta), len(self.theta)
        return f"Effective rank {rank:.1f} of {size:,}, largest eigenvalue of Θ / N {self.eigenvalues[0]:.4g}."

    def arrays(self) -> dict[str, Any]:
        """The arrays by name, without those that are None."""
        names = ("theta", "standard_error", "f0", "y", "eigenvalues", "times", "residuals")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def moved(before: MeasuredKernel, after: MeasuredKernel) -> dict[str, float | None]:
    """How fine-tuning changed a kernel.

    Returns:
      drift: See `kernel_drift`.
      growth: See `kernel_growth`.
      effective_rank, target_alignment: Of the kernel after it.

    Raises:
      InputError: they are not of the same examples.
    """
    summary = after.summary()
    return {
        "drift": kernel_drift(before.theta, after.theta),
        "growth": kernel_growth(before.theta, after.theta),
        "effective_rank": summary["effective_rank"],
        "target_alignment": summary["target_alignment"],
    }


def measure_kernel(
    model: Model,
    batch: Batch,
    functional: str = "loss",
    *,
    samples: int = SAMPLES,
    memory_limit: int | None = None,
    verify: bool = True,
    on_mismatch: Literal["raise", "dense"] = "raise",
    progress: Callable[[int, int], None] | None = None,
) -> MeasuredKernel:
    """The kernel of a model on N examples, its spectrum, and the residual of linearised training.

    Functionals with targets have a residual: "loss", which should be 0, and "label_logits", one-hot vectors over the
    first target tokens that occur. "target_logprob" gives the kernel summed over target tokens, "fisher_sketch" an
    unbiased estimate of the Fisher-weighted one.

    Args:
      model: At whose parameters the kernel is.
      batch: {name: [N, time]}, see `lensjax.measure.probes`.
      functional: The name of one, see `lensjax.measure.functionals`.
      samples: Random projections of "fisher_sketch".
      memory_limit, verify, on_mismatch, progress: See `lensjax.curvature.ntk.ntk.ntk`.

    Raises:
      InputError: there is no such functional, or see it and `ntk`.
    """
    kind = FUNCTIONALS[functional]
    f, classes = functional_of(model, batch, functional, samples)
    flops = ntk_flops(f, model.params, batch, output=kind.output, memory_limit=memory_limit)
    always = "always" if verify else False  # so that what is written does not depend on what was measured before
    how: Any = {"memory_limit": memory_limit, "verify": always, "on_mismatch": on_mismatch, "progress": progress}
    with naming_weights([model.folder]):
        kernel = ntk(f, model.params, batch, output=kind.output, **how)
    theta = np.asarray(kernel)
    error = f0 = y = times = residuals = None
    if kind.output == "diagonal":
        error, theta = theta.std(axis=-1, ddof=1) / np.sqrt(theta.shape[-1]), theta.mean(axis=-1)
    if kind.output == "full":
        size = len(theta) * theta.shape[-1]
        theta = theta.transpose(0, 2, 1, 3).reshape(size, size)
    eigenvalues = spectrum(theta)
    if kind.targets is not None:
        f0 = np.asarray(values_of(f, model.params, batch)).reshape(-1)
        y = kind.targets(batch, classes).reshape(-1).astype(f0.dtype)
        times = choose_times(eigenvalues)
        residuals = np.asarray(residual_loss(theta, f0, y, times))
    known = functional, theta, error, f0, y, eigenvalues, times, residuals, classes, flops
    return MeasuredKernel(*known, kernel.verified)


def explain_kernel(
    model: Model, batch: Batch, functional: str = "loss", *, memory_limit: int | None = None, measure: bool = False
) -> Explanation:
    """How `measure_kernel` computes the kernel, see `lensjax.curvature.ntk.explain.explain`.

    Raises:
      InputError: see `measure_kernel`.
    """
    f, _ = functional_of(model, batch, functional)
    how: Any = {"output": FUNCTIONALS[functional].output, "memory_limit": memory_limit}
    return explain(f, model.params, batch, measure=measure, **how)


def kernel_flops(model: Model, batch: Batch, functional: str = "loss") -> int:
    """FLOPs that computing the kernel will take, see `MeasuredKernel.flops`; the model may be abstract.

    Raises:
      InputError: see `measure_kernel`.
    """
    f, _ = functional_of(model, batch, functional, SAMPLES)
    return ntk_flops(f, model.params, batch, output=FUNCTIONALS[functional].output)


def choose_times(eigenvalues: Float[np.ndarray, " n"]) -> Float[np.ndarray, " times"]:
    """Times η t from before the first direction is learnt to after the last one is, evenly spaced in their logs."""
    kept = eigenvalues[eigenvalues > _LEAST * eigenvalues[0]]
    if not kept.size:
        raise InputError("The kernel is 0: the function does not depend on the parameters at any of these examples.")
    return np.geomspace(0.01 / kept[0], 10 / kept[-1], _TIMES)


def functional_of(
    model: Model, batch: Batch, functional: str, samples: int = SAMPLES
) -> tuple[OfModel, tuple[int, ...]]:
    """A functional of a model, and the tokens of its classes."""
    kind = FUNCTIONALS[functional]
    classes = () if kind.classes is None else kind.classes(batch)
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_COMPUTED}
    identity = model.graphdef, json.dumps(config, sort_keys=True, default=str)
    return _of_architecture(_Architecture(identity, model.without_params()), kind, classes, samples), classes


@dataclass(frozen=True)
class _Architecture:
    """A model without weights; two of the same `identity` compute the same of parameters."""

    identity: tuple[Any, ...]
    model: Model = field(compare=False)


@lru_cache(maxsize=32)
def _of_architecture(architecture: _Architecture, kind: Functional, classes: tuple[int, ...], samples: int) -> OfModel:
    """The same function for all models of an architecture, such as fine-tuned ones, so that it is compiled once."""
    return kind.make(architecture.model, classes, samples)


@partial(jax.jit, static_argnums=0)
def values_of(f: OfModel, params: PyTree, batch: PyTree) -> jax.Array:
    """f of every example, one after the other."""
    return jax.lax.map(lambda example: f(params, example), batch)
