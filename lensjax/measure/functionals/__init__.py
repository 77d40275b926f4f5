"""Functions of a language model's output that a kernel can be of: a registry with one file for each.

A file registers a `Functional` under its own name, and other packages do through entry points "lensjax.functionals"
(see `lensjax.core.registry`). Names are known without importing JAX.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lensjax.core.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Array

    from lensjax.models.model import Model, Params

Example = Mapping[str, Any]  # as a model takes it, without the axis of examples
Batch = Mapping[str, "np.ndarray[Any, Any]"]  # {name: [N, time]}
OfModel = Callable[["Params", Example], "Array"]


@dataclass(frozen=True)
class Functional:
    """A function of a model's parameters and one example, and the form of its kernel.

    Attributes:
      description: What the kernel is of, for the page that shows it: "Of the loss of each example".
      make: (model, classes, samples) → f, with f(params, example) → array.
      output: "trace": the kernel is summed over the outputs of f. "full": it has every pair of outputs, those of an
        example side by side, [N × outputs, N × outputs]. "diagonal": the outputs are independent estimates of one
        kernel, whose mean and standard error are taken.
      classes: Batch → the tokens that stand for classes, if f needs any.
      targets: (batch, classes) → [N, *outputs], the targets of f, if the residual of training is to be computed.
    """

    description: str
    make: Callable[["Model", tuple[int, ...], int], OfModel]
    output: Literal["trace", "diagonal", "full"] = "trace"
    classes: Callable[[Batch], tuple[int, ...]] | None = None
    targets: Callable[[Batch, tuple[int, ...]], "np.ndarray[Any, Any]"] | None = None


FUNCTIONALS = Registry[Functional]("functional", __name__, "lensjax.functionals")
