"""Which models of a table may be chosen."""

from lensjax.core.errors import InputError, shorten
from lensjax.curves.table import CurveTable

_QUOTED = 3  # reasons in a message


def check_choices(table: CurveTable) -> None:
    """Raise InputError where no model of a table may be chosen."""
    if not table.eligible.any():
        reasons = [f"{shorten(model)}: {why}" for model, why in zip(table.models, table.ineligible, strict=True)]
        several = f"{'; '.join(reasons[:_QUOTED])}{f' and {len(reasons) - _QUOTED} more' * (len(reasons) > _QUOTED)}"
        raise InputError(
            f"None of the {len(reasons)} models of task '{shorten(table.task)}' may be chosen ({several}); add one "
            "that may, or allow more."
        )
