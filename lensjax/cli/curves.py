"""Checks that commands on fine-tuning curves share."""

from lensjax.core.errors import InputError


def check_target(target: int) -> None:
    """Check the number of training examples to predict for.

    Raises:
      InputError: it is not from 1 to the largest that a table may hold.
    """
    from lensjax.curves.table import MAX_EXAMPLES

    if not 1 <= target <= MAX_EXAMPLES:
        raise InputError(f"--target is {target}; give a number of training examples from 1 to {MAX_EXAMPLES:.0e}.")
