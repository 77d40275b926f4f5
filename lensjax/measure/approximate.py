"""Kernels of more examples than a whole kernel can be computed for: sketched, or their largest eigenvalues alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from lensjax.core.errors import InputError
from lensjax.core.flops import matmul_flops
from lensjax.core.tabular import Columns, Tabular
from lensjax.curvature.low_rank import lanczos, lanczos_plan
from lensjax.curvature.ntk import Resources, ntk_sketch, ntk_vp, sketch_plan
from lensjax.curvature.ntk.proof import Verification
from lensjax.measure.functionals import FUNCTIONALS, Batch
from lensjax.measure.kernel import choose_times, functional_of, values_of
from lensjax.models.model import Model


@dataclass(frozen=True, repr=False)
class ApproximateKernel(Tabular):
    """A model's kernel Θ of `size` rows, as rows · rowsᵀ of random features, or as V diag(λ) Vᵀ.

    Attributes:
      functional: Its name, see `lensjax.measure.functionals`.
      method: "sketch" or "lanczos".
      size: Rows of Θ: N, or N × outputs for functionals that keep all pairs of outputs.
      columns: Features, or vectors.
      eigenvalues: Of Θ / size, largest first: of the sketch, or the largest of Θ itself.
      estimate: For a sketch the trace of Θ / size; else ‖Θ − V diag(λ) Vᵀ‖_F / ‖Θ‖_F.
      standard_error: Of the estimate.
      f0, y, times, residuals: See `lensjax.measure.kernel.MeasuredKernel`; what is not among the eigenvectors does not
        fall.
      labels: Tokens that stand for the classes of label_logits.
      flops: FLOPs of all products.
      verified: What of the factors that features are made of was computed a second time; products with vectors are
        JAX's own.
    """

    functional: str
    method: Literal["sketch", "lanczos"]
    size: int
    columns: Float[np.ndarray, "size columns"]
    eigenvalues: Float[np.ndarray, " columns"]
    estimate: float
    standard_error: float
    f0: Float[np.ndarray, " size"] | None
    y: Float[np.ndarray, " size"] | None
    times: Float[np.ndarray, " times"] | None
    residuals: Float[np.ndarray, " times"] | None
    labels: tuple[int, ...]
    flops: int
    verified: Verification | None = None

    @property
    def sentence(self) -> str:
        """What is said of it first."""
        largest = f"largest eigenvalue {self.eigenvalues[0]:.4g}"
        if self.method == "sketch":
            features = f"{self.columns.shape[1]:,} random features of {self.size:,} rows"
            return f"{features}: Θ / N has trace {self.estimate:.4g} ± {self.standard_error:.2g}, {largest}."
        missing = f"{self.estimate:.2%} ± {self.standard_error:.2%} of the kernel's norm is missing"
        return f"{len(self.eigenvalues):,} eigenvalues of {self.size:,}: {largest} of Θ / N; {missing}."

    @property
    def headline(self) -> str:
        """Its functional, and what is said of it first."""
        return f"Kernel of {self.functional}, {self.method}: {self.sentence.rstrip('.')}"

    def as_columns(self) -> Columns:
        """The eigenvalues of Θ / size, largest first."""
        return {"rank": list(range(1, len(self.eigenvalues) + 1)), "eigenvalue": self.eigenvalues}

    def summary(self) -> dict[str, Any]:
        """Numbers that describe the kernel; trace and eigenvalue are those of Θ / size."""
        of = "trace" if self.method == "sketch" else "relative_error"
        return {
            "functional": self.functional,
            "method": self.method,
            "size": self.size,
            "columns": self.columns.shape[1],
            "largest_eigenvalue": float(self.eigenvalues[0]),
            of: self.estimate,
            f"{of}_standard_error": self.standard_error,
            "labels": list(self.labels),
            "flops": self.flops,
        } | ({} if self.verified is None else {"verified": str(self.verified)})

    def arrays(self) -> dict[str, Any]:
        """The arrays by name, without those that are None."""
        columns = {"features" if self.method == "sketch" else "vectors": self.columns}
        names = ("eigenvalues", "f0", "y", "times", "residuals")
        return columns | {name: value for name in names if (value := getattr(self, name)) is not None}


def measure_approximate_kernel(
    model: Model,
    batch: Batch,
    functional: str = "loss",
    *,
    sketch: int | None = None,
    rank: int | None = None,
    seed: int = 0,
    memory_limit: int | None = None,
    verify: bool = True,
    on_mismatch: Literal["raise", "dense"] = "raise",
    progress: Callable[[int, int], None] | None = None,
) -> ApproximateKernel:
    """A model's kernel on N examples in time and memory proportional to N.

    Args:
      model, batch, functional, memory_limit, progress: See `lensjax.measure.kernel.measure_kernel`.
      sketch: Number of random features; see `lensjax.curvature.ntk.ntk_sketch`.
      rank: Number of eigenvalues instead, by Lanczos' method; see `lensjax.curvature.low_rank.lanczos`.
      seed: Of projections or of the start.
      verify, on_mismatch: Of a sketch, see `lensjax.curvature.ntk.ntk_sketch`.

    Raises:
      WrongKernelError: see `ntk_sketch`.
      InputError: see `measure_kernel`; or not one of the two is asked for, or the functional's kernel is a sum over
        several outputs, of which Lanczos' method has no products.
    """
    _check_one(sketch, rank)
    kind = FUNCTIONALS[functional]
    f, classes = functional_of(model, batch, functional)
    verified = None
    if sketch is not None:
        plan = sketch_plan(f, model.params, batch, sketch, memory_limit=memory_limit)
        how: Any = {"memory_limit": memory_limit, "verify": verify, "on_mismatch": on_mismatch, "progress": progress}
        made = ntk_sketch(f, model.params, batch, sketch, seed=seed, **how)
        verified = made.verified
        n, outputs, _ = made.features.shape
        trace, scale = made.trace(), 1.0
        if kind.output == "diagonal":  # outputs are estimates of one kernel, whose mean is taken
            scale = 1 / outputs
        rows = made.features.reshape(n * outputs if kind.output == "full" else n, -1) * float(np.sqrt(scale))
        vectors, singular, _ = np.linalg.svd(rows, full_matrices=False)
        values, flops = np.square(singular), plan.flops
        estimate, error = (scale / len(rows) * part for part in (trace.value, trace.standard_error))
        columns = rows
    else:
        assert rank is not None
        operator = ntk_vp(f, model.params, batch, memory_limit=memory_limit)
        if kind.output != "full" and operator.like.ndim > 1:
            raise InputError(f"The kernel of {functional} is a sum over outputs; take --sketch, or another functional.")
        found = lanczos(operator, rank, seed=seed, progress=progress)
        flops = found.products * matmul_flops(operator.product, operator.like)
        values, columns, estimate, error = found.values, found.vectors, found.relative_error, found.standard_error
        vectors = columns
    eigenvalues = values / len(columns)
    f0 = y = times = residuals = None
    if kind.targets is not None:
        f0 = np.asarray(values_of(f, model.params, batch)).reshape(-1)
        y = kind.targets(batch, classes).reshape(-1).astype(f0.dtype)
        times = choose_times(eigenvalues)
        residuals = _residuals(vectors, eigenvalues, f0 - y, times)
    method: Literal["sketch", "lanczos"] = "lanczos" if sketch is None else "sketch"
    numbers, curve = (float(estimate), float(error)), (f0, y, times, residuals)
    return ApproximateKernel(
        functional, method, len(columns), columns, eigenvalues, *numbers, *curve, classes, flops, verified
    )


def plan_approximate_kernel(
    model: Model,
    batch: Batch,
    functional: str = "loss",
    *,
    sketch: int | None = None,
    rank: int | None = None,
    memory_limit: int | None = None,
) -> Resources:
    """What `measure_approximate_kernel` with the same arguments takes; parameters may be shapes.

    Raises:
      InputError: see `measure_approximate_kernel`.
    """
    _check_one(sketch, rank)
    f, _ = functional_of(model, batch, functional)
    if sketch is not None:
        return sketch_plan(f, model.params, batch, sketch, memory_limit=memory_limit)
    assert rank is not None
    return lanczos_plan(f, model.params, batch, rank, memory_limit=memory_limit)


def _check_one(sketch: int | None, rank: int | None) -> None:
    if (sketch is None) == (rank is None):
        raise InputError("Give --sketch or --rank, one of the two.")


def _residuals(
    vectors: Float[np.ndarray, "n k"],
    rates: Float[np.ndarray, " k"],
    residual: Float[np.ndarray, " n"],
    times: Float[np.ndarray, " times"],
) -> Float[np.ndarray, " times"]:
    """F(Θ, t) of eigenvectors, with what is orthogonal to them as it is."""
    weights = np.square(vectors.T @ residual) / len(residual)
    rest = max(float(np.mean(np.square(residual)) - weights.sum()), 0.0)
    falling: Float[np.ndarray, " times"] = np.exp(-2 * times[:, None] * rates) @ weights
    return falling + rest
