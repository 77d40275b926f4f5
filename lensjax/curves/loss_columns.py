"""Which column of a file with a row per measurement holds the losses that models are compared by."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from lensjax.core.errors import InputError, listing
from lensjax.curves.units import BITS_PER_BYTE, NATS_PER_TOKEN, UNITS, Unit

_LOSS, _BYTES = NATS_PER_TOKEN.column, "test_bytes"
_SAME = 0.01  # share of the bytes of test targets by which models may differ without a word


class LossColumn(NamedTuple):
    """A column of losses.

    Attributes:
      column: Its name.
      unit: What its losses are in.
      caution: Why models are not compared as well as they could be, in a sentence; "" where nothing is amiss.
      ineligible: Models that cannot be compared by it, and why.
    """

    column: str
    unit: Unit
    caution: str
    ineligible: Mapping[str, str] = MappingProxyType({})


def choose_losses(
    header: str, at: Mapping[str, int], rows: Sequence[Sequence[str]], named: Unit | None, asked: Unit | None
) -> LossColumn:
    """The first column, in the order of `UNITS`, by which two models or more can be compared.

    Those are models that have a loss there of each of their rows that has any. Where there are two, a model without
    does not spoil the comparison of the others: it may not be chosen. Tokens of different tokenizers would.

    Args:
      header: Where the columns are named, for messages.
      at: Places of columns by name.
      rows: Cells.
      named: The unit of the column `loss`, where rows name one.
      asked: The unit to read losses in, if that is not to be chosen.

    Raises:
      InputError: there is no such column.
    """
    units = {unit.column: unit for unit in UNITS.values() if unit.column in at}
    if named is not None and _LOSS in units:
        units[_LOSS] = named
    if asked is not None:
        units = {column: unit for column, unit in units.items() if unit == asked}
    if not units:
        others = " or ".join(unit.column for unit in UNITS.values() if unit.column != _LOSS)
        raise InputError(
            f"{header} names no column of losses; name it '{_LOSS}' where they are in nats per token, or {others}."
            if asked is None
            else f"{header} names no column of losses in {asked}; name it '{asked.column}'."
        )
    measured = [cells for cells in rows if any(cells[at[column]].strip() for column in units)]
    lacking = {
        column: list(dict.fromkeys(cells[at["model"]].strip() for cells in measured if not cells[at[column]].strip()))
        for column in units
    }
    models = {cells[at["model"]].strip() for cells in measured}
    whole = [column for column in units if not lacking[column]]
    better, some = next(iter(units)), [column for column in units if len(models - {*lacking[column]}) > 1]
    if units[better].any_tokenizer and some:
        column = some[0]
    else:
        column = whole[0] if whole else _LOSS if _LOSS in units else better
    unit, caution = units[column], ""
    if asked is None and unit.any_tokenizer and lacking[column] and column in some:
        why = f"its losses are not all known in {unit}, which the others are compared by"
        return LossColumn(column, unit, "", dict.fromkeys(lacking[column], why))
    if unit == BITS_PER_BYTE and _BYTES in at:
        caution = _different_texts([cells for cells in measured if cells[at[column]].strip()], at)
    elif not unit.any_tokenizer and units[better].any_tokenizer and any(c[at[better]].strip() for c in measured):
        caution = (
            f"Losses of {listing(lacking[better])} are not known in {units[better]}, so all are compared in {unit}, of "
            "each model's own tokens, which is lower where a tokenizer cuts a text into more."
        )
    return LossColumn(column, unit, caution)


def _different_texts(rows: Sequence[Sequence[str]], at: Mapping[str, int]) -> str:
    """A caution where the bytes that losses are of differ between models."""
    sizes = {
        cells[at["model"]].strip(): int(cells[at[_BYTES]]) for cells in rows if cells[at[_BYTES]].strip().isdecimal()
    }
    if not sizes:
        return ""
    most, least = max(sizes, key=lambda model: sizes[model]), min(sizes, key=lambda model: sizes[model])
    if sizes[most] - sizes[least] <= _SAME * sizes[most]:
        return ""
    return (
        f"Losses are not of the same texts: those of {most} are of {sizes[most]:,} bytes of the test targets, those of "
        f"{least} of {sizes[least]:,}. Targets were cut, so raise max_target_tokens."
    )
