"""What of a language model's output a kernel can be of: a registry with one file for each functional.

A file registers a `Functional` under its own name, and other packages do through entry points "lensjax.functionals"
(see `lensjax.core.registry`). Names are known without importing JAX.
"""

from lensjax.core.registry import Registry
from lensjax.measure.functionals._functional import Batch, Example, Functional, OfModel

__all__ = ["FUNCTIONALS", "Batch", "Example", "Functional", "OfModel"]

FUNCTIONALS = Registry[Functional]("functional", __name__, "lensjax.functionals")
