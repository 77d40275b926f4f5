"""The Hessian of a model's loss on examples of a task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from lensjax.core.errors import InputError
from lensjax.core.tabular import Columns, Tabular
from lensjax.curvature.bound import layer_names
from lensjax.curvature.hvp import hvp_fn
from lensjax.curvature.operator import LinearOperator, Product
from lensjax.curvature.spectrum import (
    Density,
    StochasticEstimate,
    layer_traces,
    spectral_density,
    top_eigenpairs,
    trace,
)
from lensjax.curvature.streaming import Batches, scanned_layers
from lensjax.measure.model_losses import target_tokens
from lensjax.models.inputs import naming_weights
from lensjax.models.model import Batch, Model

_NARROW = 2**25  # parameters from which the basis of eigenvectors is held in bfloat16
_LEAST_PRODUCTS, _PRODUCTS_EACH = 30, 6  # at most for the first eigenvalues, and for each


@dataclass(frozen=True, repr=False)
class Hessian(Tabular):
    """The Hessian of a model's loss, the mean over all target tokens of some examples, in nats.

    Attributes:
      eigenvalues: [top], the largest, in descending order.
      residuals: [top], ‖H u − λ u‖ of each.
      density: The spectral density.
      trace: Of the whole Hessian.
      layers: [l] names, see `lensjax.curvature.bound.LayerTerms`.
      layer_traces: Of every layer's own block, values and standard errors [l].
      products: Number of products taken.
    """

    eigenvalues: Float[np.ndarray, " top"]
    residuals: Float[np.ndarray, " top"]
    density: Density
    trace: StochasticEstimate
    layers: tuple[str, ...]
    layer_traces: StochasticEstimate
    products: int

    @property
    def headline(self) -> str:
        """Its trace and largest eigenvalue, in a line."""
        value, error = float(self.trace.value), float(self.trace.standard_error)
        return f"Hessian: trace {value:.4g} ± {error:.2g}, largest eigenvalue {self.eigenvalues[0]:.4g}"

    def as_columns(self) -> Columns:
        """The largest eigenvalues with the residuals of their vectors, largest first."""
        places = list(range(1, len(self.eigenvalues) + 1))
        return {"rank": places, "eigenvalue": self.eigenvalues, "residual": self.residuals}

    def summary(self) -> dict[str, Any]:
        """Numbers that describe it, for JSON."""
        squares = self.density.trace(np.square)
        return {
            "eigenvalues": [float(value) for value in self.eigenvalues],
            "residuals": [float(value) for value in self.residuals],
            "trace": float(self.trace.value),
            "trace_standard_error": float(self.trace.standard_error),
            "squared_frobenius_norm": float(squares.value),
            "squared_frobenius_norm_standard_error": float(squares.standard_error),
            "least_node": float(self.density.nodes.min()),
            "layer_traces": {
                name: {"value": float(value), "standard_error": float(error)}
                for name, value, error in zip(
                    self.layers, self.layer_traces.value, self.layer_traces.standard_error, strict=True
                )
            },
            "products": self.products,
        }

    def arrays(self) -> dict[str, Any]:
        """The arrays, by name."""
        return {
            "eigenvalues": self.eigenvalues,
            "residuals": self.residuals,
            "density_nodes": self.density.nodes,
            "density_weights": self.density.weights,
            "layers": np.array(self.layers),
            "layer_traces": self.layer_traces.value,
            "layer_trace_standard_errors": self.layer_traces.standard_error,
        }


def measure_hessian(
    model: Model,
    batches: Sequence[Batch],
    *,
    top: int = 5,
    steps: int = 16,
    samples: int = 3,
    products: int = 10,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Hessian:
    """Largest eigenvalues, spectral density and traces of the Hessian of a model's loss.

    The devices hold a batch at a time and, besides the product's own memory, 2 top + 8 vectors as large as the
    parameters: in bfloat16 for models of more than 2²⁵ parameters.

    Args:
      model: The Hessian is at its parameters.
      batches: {name: [N, time]}; the loss is the mean over their target tokens.
      top: Number of eigenvalues, which take max(30, 6 top) products at most.
      steps, samples: Of the density: products for each random vector, and number of vectors.
      products: For the trace of the whole, and again for those of the layers.
      seed: Of random vectors.
      progress: Called with the number of products taken, and their largest possible number.

    Raises:
      InputError: a number is too small or odd, or see `hvp_fn` and `top_eigenpairs`.
    """
    for name, value, least in (
        ("top", top, 1),
        ("steps", steps, 1),
        ("samples", samples, 2),
        ("products", products, 4),
    ):
        if value < least:
            raise InputError(f"{name} is {value}; give {least} or more.")
    if products % 2:
        raise InputError(f"products is {products}; give an even number.")
    loss, params = model.loss, model.params
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    most = max(_LEAST_PRODUCTS, _PRODUCTS_EACH * top)
    counted = _Counted(
        hvp_fn(loss, params, Batches(batches, target_tokens(model))),
        [most, samples * min(steps, size), products, products],
        progress,
    )
    operator = LinearOperator(counted, params)
    kind = "bfloat16" if size > _NARROW else None
    with naming_weights([model.folder]):
        pairs = top_eigenpairs(operator, top, products=most, basis=2 * top + 8, basis_dtype=kind, seed=seed)
    counted.next_stage()
    density = spectral_density(operator, steps=steps, samples=samples, reorthogonalize=False, seed=seed)
    counted.next_stage()
    whole = trace(operator, products=products, seed=seed)
    counted.next_stage()
    layers = scanned_layers(loss, params, batches[0])
    parts = list(layer_traces(operator, layers, products=products, seed=seed).values())
    counted.next_stage()
    return Hessian(
        pairs.values,
        pairs.residuals,
        density,
        whole,
        layer_names(params, layers),
        StochasticEstimate(*(np.concatenate([np.atleast_1d(x) for x in column]) for column in _columns(parts))),
        counted.taken,
    )


def _columns(estimates: Sequence[StochasticEstimate]) -> tuple[list[Any], list[Any]]:
    return [each.value for each in estimates], [each.standard_error for each in estimates]


class _Counted:
    """A product that reports how many were taken, in stages that may end early."""

    def __init__(self, product: Product, stages: Sequence[int], progress: Callable[[int, int], None] | None) -> None:
        self.product, self.progress = product, progress
        self.ends = [int(end) for end in np.cumsum(stages)]
        self.stage = self.done = self.taken = 0

    def __call__(self, v: Any) -> Any:
        result = self.product(v)
        self.taken += 1
        self._say(min(self.done + 1, self.ends[self.stage]))
        return result

    def next_stage(self) -> None:
        """A stage has ended."""
        self._say(self.ends[self.stage])
        self.stage = min(self.stage + 1, len(self.ends) - 1)

    def _say(self, done: int) -> None:
        self.done = done
        if self.progress is not None:
            self.progress(done, self.ends[-1])
