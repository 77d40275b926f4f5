"""A model's kernel on examples of a task, and what it says of fine-tuning on them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float

from lensjax.core.errors import InputError
from lensjax.curvature.dynamics import alignment, effective_rank, kernel_drift, residual_loss, spectrum
from lensjax.curvature.ntk.contract import Output
from lensjax.curvature.ntk.ntk import ntk, ntk_flops
from lensjax.measure import functionals
from lensjax.models.losses import IGNORED
from lensjax.models.model import Model

FunctionalName = Literal["loss", "target_logprob", "label_logits", "fisher_sketch"]
SAMPLES = 32  # projections of a Fisher sketch
LABELS = 16  # classes at most of label_logits
_TIMES = 97
_NOT_COMPUTED = ("architectures", "dtype", "_name_or_path", "transformers_version")  # of a configuration
_LEAST = 1e-6  # of the largest eigenvalue: directions below are not waited for


@dataclass(frozen=True)
class Kernel:
    """What was measured of a model on N examples.

    Attributes:
      functional: Of what the kernel is, see `lensjax.measure.functionals`.
      theta: [N, N], for label_logits [N × labels, N × labels], with all labels of an example side by side.
      standard_error: Of every entry where it is an estimate, as fisher_sketch is.
      f0, y: Outputs of the model and what they should be, where there is a residual.
      eigenvalues: Of Θ / N, largest first.
      times: η t, of the residuals.
      residuals: F(Θ, t), see `lensjax.curvature.dynamics.residual_loss`.
      labels: Tokens that stand for the classes of label_logits.
      flops: What computing the kernel took, see `ntk_flops`.
    """

    functional: FunctionalName
    theta: Float[np.ndarray, "n n"]
    standard_error: Float[np.ndarray, "n n"] | None
    f0: Float[np.ndarray, " n"] | None
    y: Float[np.ndarray, " n"] | None
    eigenvalues: Float[np.ndarray, " n"]
    times: Float[np.ndarray, " times"] | None
    residuals: Float[np.ndarray, " times"] | None
    labels: tuple[int, ...]
    flops: int

    def summary(self) -> dict[str, Any]:
        """Numbers that describe the kernel."""
        known = self.f0 is not None and self.y is not None
        return {
            "functional": self.functional,
            "size": len(self.theta),
            "trace": float(np.trace(self.theta)),
            "largest_eigenvalue": float(self.eigenvalues[0]),
            "effective_rank": effective_rank(self.theta),
            "target_alignment": alignment(self.theta, self.f0 - self.y) if known else None,  # type: ignore[operator]
            "labels": list(self.labels),
            "flops": self.flops,
        }

    def arrays(self) -> dict[str, Any]:
        """The arrays there are, by name."""
        names = ("theta", "standard_error", "f0", "y", "eigenvalues", "times", "residuals")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def moved(before: Kernel, after: Kernel) -> dict[str, float | None]:
    """What fine-tuning has made of a kernel: how far it drifted, how often its trace it has, and what it is like now.

    Raises:
      InputError: they are not of the same examples.
    """
    summary = after.summary()
    return {
        "drift": kernel_drift(before.theta, after.theta),
        "growth": float(np.trace(after.theta) / np.trace(before.theta)),
        "effective_rank": summary["effective_rank"],
        "target_alignment": summary["target_alignment"],
    }


def measure_kernel(
    model: Model,
    batch: Mapping[str, np.ndarray[Any, Any]],
    functional: FunctionalName = "loss",
    *,
    samples: int = SAMPLES,
    memory_limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Kernel:
    """The kernel of a model on N examples, its spectrum, and the residual of linearised training.

    Targets are losses of 0 for "loss", and for "label_logits" one-hot vectors over the first target tokens that occur.
    The others have no residual: "target_logprob" gives the kernel summed over target tokens, "fisher_sketch" an
    unbiased estimate of the Fisher-weighted one.

    Args:
      model: At whose parameters the kernel is.
      batch: {name: [N, time]}, see `lensjax.measure.probes`.
      samples: Random projections of "fisher_sketch".
      memory_limit, progress: See `lensjax.curvature.ntk.ntk.ntk`.

    Raises:
      InputError: see `ntk`; or there are too many first target tokens for label_logits.
    """
    f, output, labels = _function(model, batch, functional, samples)
    flops = ntk_flops(f, model.params, batch, output=output, memory_limit=memory_limit)
    found = ntk(f, model.params, batch, output=output, memory_limit=memory_limit, progress=progress)
    error = f0 = y = times = residuals = None
    if functional == "fisher_sketch":
        error, found = found.std(axis=-1, ddof=1) / np.sqrt(samples), found.mean(axis=-1)
    if functional == "label_logits":
        size = len(found) * len(labels)
        found = found.transpose(0, 2, 1, 3).reshape(size, size)
    eigenvalues = spectrum(found)
    if functional in ("loss", "label_logits"):
        f0 = np.asarray(_values(f, model.params, batch))
        y = np.zeros_like(f0)
        if labels:
            y[np.arange(len(y)), np.searchsorted(labels, _first_targets(batch))] = 1
        f0, y = f0.reshape(-1), y.reshape(-1)
        times = choose_times(eigenvalues)
        residuals = np.asarray(residual_loss(found, f0, y, times))
    return Kernel(functional, found, error, f0, y, eigenvalues, times, residuals, labels, flops)


def kernel_flops(model: Model, batch: Mapping[str, np.ndarray[Any, Any]], functional: FunctionalName = "loss") -> int:
    """What computing the kernel will take, see `Kernel.flops`; the model may be abstract.

    Raises:
      InputError: see `measure_kernel`.
    """
    f, output, _ = _function(model, batch, functional, SAMPLES)
    return ntk_flops(f, model.params, batch, output=output)


def choose_times(eigenvalues: Float[np.ndarray, " n"]) -> Float[np.ndarray, " times"]:
    """Times η t from before the first direction is learnt to after the last one is, evenly spaced in their logs."""
    kept = eigenvalues[eigenvalues > _LEAST * eigenvalues[0]]
    if not kept.size:
        raise InputError("The kernel is 0: the function does not depend on the parameters at any of these examples.")
    return np.geomspace(0.01 / kept[0], 10 / kept[-1], _TIMES)


def _function(
    model: Model, batch: Mapping[str, np.ndarray[Any, Any]], functional: FunctionalName, samples: int
) -> tuple[functionals.Functional, Output, tuple[int, ...]]:
    """A functional of a model, what of its kernel is measured, and the tokens of its classes."""
    labels = _labels(batch) if functional == "label_logits" else ()
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_COMPUTED}
    architecture = _Architecture(
        (model.graphdef, json.dumps(config, sort_keys=True, default=str)), model.without_params()
    )
    output: Output = "full" if labels else "diagonal" if functional == "fisher_sketch" else "trace"
    return _functional(architecture, functional, samples, labels), output, labels


@dataclass(frozen=True)
class _Architecture:
    """A model without weights; what two of the same `identity` compute of parameters is the same."""

    identity: tuple[Any, ...]
    model: Model = field(compare=False)


@lru_cache(maxsize=32)
def _functional(
    architecture: _Architecture, functional: FunctionalName, samples: int, labels: tuple[int, ...]
) -> functionals.Functional:
    """The same function for all models of an architecture, such as fine-tuned ones, so that it is compiled once."""
    if functional == "label_logits":
        return functionals.label_logits(architecture.model, labels)
    if functional == "fisher_sketch":
        return functionals.fisher_sketch(architecture.model, samples)
    return (functionals.loss if functional == "loss" else functionals.target_logprob)(architecture.model)


@partial(jax.jit, static_argnums=0)
def _values(f: functionals.Functional, params: Any, batch: Any) -> jax.Array:
    """f of every example, one after the other."""
    return jax.lax.map(lambda example: f(params, example), batch)


def _first_targets(batch: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    labels = np.asarray(batch["labels"])
    return labels[np.arange(len(labels)), (labels != IGNORED).argmax(axis=1)]


def _labels(batch: Mapping[str, np.ndarray[Any, Any]]) -> tuple[int, ...]:
    found = np.unique(_first_targets(batch))
    if len(found) > LABELS:
        raise InputError(
            f"The targets begin with {len(found)} different tokens, and label_logits is for {LABELS} classes at most; "
            "take another functional, such as loss."
        )
    return tuple(int(token) for token in found)
