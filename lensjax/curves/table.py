"""Fine-tuning curves: test loss of models against the number of training examples.

`CurveTable` is where measuring and predicting meet. It holds one task; `lensjax.curves.csv_files` reads it from a file.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from lensjax.core.csv_text import csv_text
from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.files import write_files
from lensjax.core.tabular import Columns, Tabular
from lensjax.curves.metrics import ENDS, Metric, Shares
from lensjax.curves.units import NATS_PER_TOKEN, Unit

MAX_EXAMPLES = 10**15
MIN_LOSS, MAX_LOSS = 1e-30, 1e30  # what is predicted from them, and sums of squares over seeds, stay above 0 and finite
NAME_COLUMNS = ("config name", "config_name", "model", "name")
META_COLUMNS = ("size", "family", "ineligible")
UNIT_COLUMN = "unit"  # of what a loss of a row is in, where its column does not say
TIDY_COLUMNS = ("model", "examples")


@dataclass(frozen=True, repr=False)
class CurveTable(Tabular):
    """Test losses of M models of one task at S data-set sizes.

    Attributes:
      task: name of the task, usually the stem of the file it was read from.
      models: M distinct names.
      sizes: S numbers of training examples, strictly increasing; 0 is the pretrained model.
      loss: mean test loss over seeds, in `unit`; NaN where not measured.
      loss_sd: standard deviation over seeds (ddof 1); NaN where fewer than two seeds were measured.
      seeds: number of seeds behind each loss; 0 where not measured.
      parameters: number of parameters of each model; NaN where unknown.
      families: family of each model; "" where unknown.
      unit: what losses are in.
      caution: why they are in no unit that suits a comparison better, in a sentence; "" where nothing is amiss.
      ineligible: why each model is measured and shown, but never chosen, in a sentence without its full stop, as in "it
        cannot write 2 % of the targets"; "" where it may be chosen. An empty tuple stands for M of those.
      metrics: task metrics that were measured with the losses, by their column; see `lensjax.curves.metrics`.
    """

    task: str
    models: tuple[str, ...]
    sizes: Int[np.ndarray, " S"]
    loss: Float[np.ndarray, "M S"]
    loss_sd: Float[np.ndarray, "M S"]
    seeds: Int[np.ndarray, "M S"]
    parameters: Float[np.ndarray, " M"]
    families: tuple[str, ...]
    unit: Unit = NATS_PER_TOKEN
    caution: str = ""
    ineligible: tuple[str, ...] = ()
    metrics: Mapping[str, Shares] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.ineligible:
            object.__setattr__(self, "ineligible", ("",) * len(self.models))

    @property
    def eligible(self) -> Bool[np.ndarray, " M"]:
        """Which models may be chosen."""
        return np.array([not why for why in self.ineligible], bool)

    def barring(self, reasons: Mapping[str, str]) -> "CurveTable":
        """The table in which some models are not eligible, for one reason each, besides those that are not already."""
        both = ([why, reasons.get(model, "")] for model, why in zip(self.models, self.ineligible, strict=True))
        return replace(self, ineligible=tuple("; ".join(filter(None, each)) for each in both))

    @property
    def measured(self) -> Bool[np.ndarray, "M S"]:
        """Where a loss was measured."""
        return np.isfinite(self.loss)

    def column(self, examples: int) -> Float[np.ndarray, " M"]:
        """Loss of every model at one size; NaN where not measured."""
        place = np.flatnonzero(self.sizes == examples)
        return self.loss[:, place[0]] if place.size else np.full(len(self.models), np.nan)

    def metric_column(self, metric: Metric, examples: int) -> Float[np.ndarray, " M"]:
        """A metric of every model at one size; NaN where not measured."""
        place = np.flatnonzero(self.sizes == examples)
        shares = self.metrics.get(metric.column)
        return np.full(len(self.models), np.nan) if shares is None or not place.size else shares.value[:, place[0]]

    @property
    def headline(self) -> str:
        """Its task, models, sizes and unit, in a line."""
        sizes = f"{self.sizes.min():,} to {self.sizes.max():,} examples" if self.sizes.size else "no sizes"
        return f"Curves of {self.task}: {len(self.models)} models, {sizes}, in {self.unit}"

    def as_columns(self) -> Columns:
        """A row for each measured loss, with what is known of its model and the task metrics measured with it."""
        i, j = np.nonzero(self.measured)
        return {
            "model": [self.models[k] for k in i],
            "examples": self.sizes[j],
            self.unit.column: self.loss[i, j],
            "loss_sd": self.loss_sd[i, j],
            "seeds": self.seeds[i, j],
            "size": self.parameters[i],
            "family": [self.families[k] for k in i],
            **{name: shares.value[i, j] for name, shares in self.metrics.items()},
        }

    def up_to(self, budget: int) -> "CurveTable":
        """The table without sizes above `budget` examples."""
        return self._take(columns=np.flatnonzero(self.sizes <= budget))

    def select(self, keep: Sequence[int] | np.ndarray) -> "CurveTable":
        """The table of the models at these positions, in that order, or where a mask of M is true."""
        return self._take(rows=np.arange(len(self.models))[list(keep)])

    def points(self) -> Int[np.ndarray, " M"]:
        """Number of measured sizes D > 0 of each model: the points that a curve is fitted to."""
        return self.measured[:, self.sizes > 0].sum(axis=1)

    def _take(self, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> "CurveTable":
        rows = np.arange(len(self.models)) if rows is None else rows
        columns = np.arange(len(self.sizes)) if columns is None else columns
        cells = np.ix_(rows, columns)
        return replace(
            self,
            models=tuple(self.models[i] for i in rows),
            sizes=self.sizes[columns],
            loss=self.loss[cells],
            loss_sd=self.loss_sd[cells],
            seeds=self.seeds[cells],
            parameters=self.parameters[rows],
            families=tuple(self.families[i] for i in rows),
            ineligible=tuple(self.ineligible[i] for i in rows),
            metrics={name: Shares(*(part[cells] for part in shares)) for name, shares in self.metrics.items()},
        )

    def to_csv(self, layout: Literal["wide", "tidy"] = "wide") -> str:
        """The table as CSV text with means over seeds; "wide" has a row per model, "tidy" one per measured loss.

        A wide table says in a column what its losses are in, unless that is nats per token; a tidy one by the name of
        the column that holds them.
        """
        # Before Python 3.13 the writer leaves a lone carriage return unquoted, a new row to a reader.
        bare = "\r" in "".join(self.models + self.families + self.ineligible)
        counts = ["" if math.isnan(p) else np.format_float_positional(p, trim="-") for p in self.parameters]
        columns = zip(META_COLUMNS, (counts, self.families, self.ineligible), strict=True)
        meta: dict[str, Sequence[str]] = {name: values for name, values in columns if any(values)}
        if layout == "wide":
            if self.unit != NATS_PER_TOKEN:
                meta[UNIT_COLUMN] = [self.unit.name] * len(self.models)
            rows: list[list[object]] = [[NAME_COLUMNS[0], *(str(size) for size in self.sizes), *meta]]
            for i, model in enumerate(self.models):
                cells = ["" if math.isnan(x) else repr(float(x)) for x in self.loss[i]]
                rows.append([model, *cells, *(values[i] for values in meta.values())])
        else:
            shares = {
                name + end: part for name, both in self.metrics.items() for end, part in zip(ENDS, both, strict=True)
            }
            rows = [[*TIDY_COLUMNS, self.unit.column, *shares, *meta]]
            for i, j in zip(*np.nonzero(self.measured), strict=True):
                numbers = [self.loss[i, j], *(part[i, j] for part in shares.values())]
                row = [self.models[i], int(self.sizes[j]), *("" if math.isnan(x) else repr(float(x)) for x in numbers)]
                rows.append([*row, *(values[i] for values in meta.values())])
        return csv_text(rows, quoted=bare)

    def write(self, path: str | Path, layout: Literal["wide", "tidy"] = "wide") -> None:
        """Write the table to `path` as CSV, whole or not at all.

        Raises:
          InputError: `path` cannot be written.
        """
        write_files({Path(path): self.to_csv(layout)})


def curve_table(
    models: Sequence[str],
    sizes: Sequence[int] | np.ndarray,
    loss: Sequence[Sequence[float]] | np.ndarray,
    *,
    parameters: Sequence[float] | np.ndarray | None = None,
    families: Sequence[str] | None = None,
    task: str = "task",
    unit: Unit = NATS_PER_TOKEN,
) -> CurveTable:
    """A `CurveTable` from arrays.

    Args:
      models: M names.
      sizes: S numbers of training examples, in any order.
      loss: M × S test losses in `unit`; NaN where not measured.
      parameters: number of parameters of each model; NaN where unknown.
      families: family of each model; "" where unknown.
      task: name of the task.
      unit: what losses are in.

    Raises:
      InputError: shapes disagree, a name or size is repeated, a name is blank, or a loss or number of
        parameters is not a positive finite number.
    """
    names = [str(m).strip() for m in models]
    kinds = [""] * len(names) if families is None else [str(f).strip() for f in families]
    try:
        columns = np.asarray(sizes)
        values = np.array(loss, dtype=np.float64) if names else np.zeros((0, columns.size))
        counts = np.full(len(names), np.nan) if parameters is None else np.array(parameters, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"sizes, losses and parameters are arrays of numbers ({shorten(error)}).") from error
    if values.shape != (len(names), columns.size):
        raise InputError(f"loss has shape {values.shape}, but there are {len(names)} models and {columns.size} sizes.")
    if counts.shape != (len(names),) or len(kinds) != len(names):
        raise InputError(f"parameters and families need one entry for each of the {len(names)} models.")
    if columns.ndim != 1 or not (
        np.issubdtype(columns.dtype, np.number)
        and np.all((columns >= 0) & (columns <= MAX_EXAMPLES))
        and np.all(columns == np.floor(columns))
    ):
        raise InputError(f"sizes must be whole numbers of examples from 0 to {MAX_EXAMPLES:.0e}.")
    columns = columns.astype(np.int64)
    if "" in names:
        raise InputError(f"model {names.index('')} has no name; give every model one.")
    for what, repeated in (("model", duplicates(names)), ("size", duplicates(columns.tolist()))):
        if repeated:
            raise InputError(f"{what} {listing(repeated)} is given more than once; give each {what} once.")
    bad = np.argwhere(~np.isnan(values) & ~((values >= MIN_LOSS) & (values <= MAX_LOSS)))
    if bad.size:
        i, j = bad[0]
        raise InputError(
            f"loss of {shorten(names[i])} at {columns[j]} examples is {values[i, j]}; "
            f"losses are positive numbers from {MIN_LOSS:.0e} to {MAX_LOSS:.0e}."
        )
    for name, count in zip(names, counts, strict=True):
        if not (math.isnan(count) or 0 < count < math.inf):
            raise InputError(f"{shorten(name)} has {count} parameters; give a positive number, or NaN.")
    order = np.argsort(columns)
    values = values[:, order]
    return CurveTable(
        task=task,
        models=tuple(names),
        sizes=columns[order],
        loss=values,
        loss_sd=np.full(values.shape, np.nan),
        seeds=np.isfinite(values).astype(np.int64),
        parameters=counts,
        families=tuple(kinds),
        unit=unit,
    )


def duplicates(items: Iterable[Hashable]) -> list[str]:
    """Items that occur more than once, as text, in order of first occurrence."""
    return [str(item) for item, count in Counter(items).items() if count > 1]
