"""Selection methods, the rankings they give, and how good those are."""

from lensjax.selection.methods import DEFAULT_METHOD, METHODS, register

__all__ = ["DEFAULT_METHOD", "METHODS", "register"]
