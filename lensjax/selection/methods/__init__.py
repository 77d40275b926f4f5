"""Selection methods: each is one function of a table of curves, a target size and further evidence.

A new one is a file of this package, or of another package that names it in its entry points::

    @register("my_method", "what it predicts from, in a few words")
    def my_method(table: CurveTable, target: int, evidence: Evidence) -> Prediction: ...

Names of methods are known without importing them or NumPy, so that the command line can offer them at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from lensjax.core.errors import InputError, shorten
from lensjax.core.registry import Registry
from lensjax.selection.evidence import Evidence

if TYPE_CHECKING:
    from pydantic import BaseModel

    from lensjax.core.sections import Section
    from lensjax.curves.table import CurveTable
    from lensjax.selection.prediction import Prediction

    Function: TypeAlias = Callable[[CurveTable, int, Evidence], Prediction]


@dataclass(frozen=True)
class Method:
    """A selection method.

    Attributes:
      name: as users type it.
      summary: what it predicts from, in a few words.
      function: (table, target, evidence) → prediction; raises InputError where it lacks what it needs.
      place: where it stands among the others in tables and files; methods of other packages come last.
      needs: names of measurements besides curves that it cannot do without, each with its plural for messages, as in
        {"ntk": "kernels"}.
      findings: a Pydantic model that the method adds to a study's report, in the field of its name.
      show: makes a section of a study's page of these, or of the reason why there are none.
    """

    name: str
    summary: str
    function: "Function"
    place: float = 100
    needs: Mapping[str, str] = field(default_factory=dict)
    findings: "type[BaseModel] | None" = None
    show: "Callable[[Any, str], Section] | None" = None

    def predict(self, table: "CurveTable", target: int, evidence: Evidence | None = None) -> "Prediction":
        """Predict the losses, or the order, of the M models of a table.

        Losses that the table holds at the target itself are taken from it.

        Args:
          table: measured curves; all of it may be looked at.
          target: number of training examples to predict the loss for.
          evidence: measured values besides curves.

        Raises:
          InputError: the evidence lacks what the method needs, or the curves cannot be fitted.
        """
        from lensjax.selection.prediction import as_measured  # which needs NumPy

        prediction = self.function(table, target, evidence or Evidence())
        return as_measured(replace(prediction, eligible=table.eligible), table.column(target))


METHODS: Registry[Method] = Registry("method", __name__, "lensjax.methods")
DEFAULT_METHOD = "stacked"


def register(name: str, summary: str, **settings: Any) -> "Callable[[Function], Method]":
    """A decorator that makes a function a method and adds it to `METHODS`; see `Method` for all arguments.

    Raises:
      InputError: the name is taken.
    """

    def add(function: "Function") -> Method:
        return METHODS.register(name)(Method(name, summary, function, **settings))

    return add


def predict_by(
    name: str, table: "CurveTable", target: int, evidence: Evidence | None = None, *, otherwise: str | None = None
) -> "tuple[str, Prediction]":
    """The prediction of a method, or of another where that one can judge nothing.

    Args:
      name: of the method.
      table, target, evidence: see `Method.predict`.
      otherwise: name of the method to ask then; there is none by default.

    Returns:
      The name of the method that answered, and its prediction, with a choice.

    Raises:
      InputError: the method lacks evidence, and so does the other, or it can judge none of the models.
    """
    try:
        prediction = METHODS[name].predict(table, target, evidence)
        if prediction.choice is None:
            raise InputError(f"The method {name} cannot rank: {judges_none(name, table.task)}")
    except InputError:
        if otherwise is None or otherwise == name:
            raise
        return predict_by(otherwise, table, target, evidence)
    return name, prediction


def judges_none(name: str, task: str) -> str:
    """What to say where a method has no score for any model."""
    return (
        f"By {METHODS[name].summary}, none of the models of task '{shorten(task)}' can be judged; add what {name} "
        "needs, or choose another method."
    )


def methods_in_order() -> list[str]:
    """Names of all methods, in the order in which tables and files show them."""
    return sorted(METHODS, key=lambda name: (METHODS[name].place, name))
