"""Linear maps of vectors that are pytrees, known by their products."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from lensjax.core.errors import InputError
from lensjax.core.pytrees import PyTree
from lensjax.curvature.streaming import check_params

Product = Callable[[PyTree], PyTree]


@dataclass(frozen=True, eq=False)
class LinearOperator:
    """A square matrix A that is never formed: `operator(v)` is A v, and `jax.vmap(operator)` takes many vectors.

    Attributes:
      product: v ↦ A v.
      like: A pytree of floating-point arrays that has the structure, shapes, types and shardings of vectors.
      symmetric: Whether A is symmetric.
    """

    product: Product
    like: PyTree
    symmetric: bool = True

    def __call__(self, v: PyTree) -> PyTree:
        """A v."""
        return self.product(v)

    @property
    def size(self) -> int:
        """Rows of A."""
        return sum(int(np.prod(np.shape(leaf))) for leaf in jax.tree.leaves(self.like))

    def check_symmetric(self) -> None:
        """Raise InputError where A is not symmetric, or vectors are not of floating-point numbers."""
        if not self.symmetric:
            raise InputError("The operator is not symmetric; give one that is, such as a Hessian.")
        check_params(self.like)
