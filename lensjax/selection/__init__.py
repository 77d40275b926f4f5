"""Selection methods, what they say of a table of curves, and how good that is.

Importing this package registers every method.
"""

from lensjax.selection import ats, baselines
from lensjax.selection.methods import METHODS, Prediction, register

__all__ = ["METHODS", "Prediction", "ats", "baselines", "register"]
