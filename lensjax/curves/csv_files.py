"""Fine-tuning curves in CSV files of two layouts, which `read_curves` tells apart.

wide (the layout of the public rectified-scaling-law benchmark), one row per model::

    config name,0,200,400,size,family
    gpt2,4.86,4.39,4.29,124439808,GPT2

tidy, one row per measurement, as fine-tuning writes them::

    model,examples,loss,bits_per_byte,seed,size,family
    gpt2,200,4.39,1.52,0,124439808,GPT2

Losses are in the unit that the column `unit` names, the same in all rows, and in nats per token where there is none. A
tidy file may hold them in several units: `loss` is in nats per token, and the other columns are named after theirs
(`lensjax.curves.units`). Bits per byte are read where all losses are known in them. Columns named after task metrics
(`lensjax.curves.metrics`) are read beside them.

A text in the column "ineligible" says why a model is shown, but never chosen.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lensjax.core.csv_text import cell_text
from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.reading import read_text
from lensjax.curves.loss_columns import choose_losses
from lensjax.curves.metrics import ENDS, METRICS, Shares
from lensjax.curves.table import (
    MAX_EXAMPLES,
    MAX_LOSS,
    META_COLUMNS,
    MIN_LOSS,
    NAME_COLUMNS,
    TIDY_COLUMNS,
    UNIT_COLUMN,
    CurveTable,
    duplicates,
)
from lensjax.curves.units import NATS_PER_TOKEN, Unit, unit_named

_Row = tuple[int, list[str]]


def read_curves(path: str | Path, task: str | None = None, unit: Unit | None = None) -> CurveTable:
    """Read a wide or tidy CSV of fine-tuning curves (see the module's docstring for both layouts).

    Blank cells mean "not measured". Repeated (model, examples) rows of a tidy file must differ in `seed`; they are
    averaged and their standard deviation is kept.

    Args:
      path: the CSV file, UTF-8.
      task: name of the task; the file's stem by default.
      unit: what to read losses in: of a tidy file, the column that holds such; of a wide one without a column `unit`,
        what its losses are in. By default as the module's docstring says.

    Returns:
      M models at all S sizes in the file.

    Raises:
      InputError: naming the file, the line and the column at fault.
    """
    path, where = Path(path), shorten(path, 200)
    text = read_text(path, "give a CSV file of curves in UTF-8")
    return parse_curves(text, where, path.stem if task is None else task, unit)


def parse_curves(text: str, where: str, task: str, unit: Unit | None = None) -> CurveTable:
    """Read the text of a wide or tidy CSV; see `read_curves`.

    Args:
      text: the file's content.
      where: the file's name in messages.
      task: name of the task.
      unit: what to read losses in; see `read_curves`.

    Raises:
      InputError: naming the line and the column at fault.
    """
    if "\0" in text:
        raise InputError(f"{where} is not text (it holds NUL characters); save it as a CSV in UTF-8.")
    rows = _rows(where, text)
    line, header = next(rows, (1, []))
    if not header:
        raise InputError(f"{where} is empty; it needs a header row such as 'config name,0,200,400'.")
    columns = [name.strip().lower() for name in header]
    read = _read_tidy if set(TIDY_COLUMNS) <= set(columns) else _read_wide
    sizes = read(builder := _Builder(where, unit), f"{where} line {line}", columns, rows)
    return builder.table(task, sorted(sizes))


def _rows(where: str, text: str) -> Iterator[_Row]:
    """Rows that are not blank, each with the number of its first line; all are as wide as the first."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line, width = 1, 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                width = width or len(cells)
                if len(cells) != width:
                    raise InputError(f"{where} line {line} has {len(cells)} cells, but the header has {width}.")
                yield line, [cell_text(cell) for cell in cells]
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{where} line {line} is not CSV ({error}); mend or remove it.") from error


def _read_wide(builder: "_Builder", header: str, columns: list[str], rows: Iterator[_Row]) -> Iterable[int]:
    """Fill `builder` from the rows of a wide file; returns the sizes of its columns."""
    name_column = next((columns.index(name) for name in NAME_COLUMNS if name in columns), None)
    if name_column is None:
        raise InputError(
            f"{header} names no model column (found {shorten(listing(columns))}); begin the header with "
            "'config name', or give a tidy file with the columns model,examples,loss."
        )
    meta = {name: columns.index(name) for name in (*META_COLUMNS, UNIT_COLUMN) if name in columns}
    sizes: dict[int, int] = {}
    for position, name in enumerate(columns):
        if position in (name_column, *meta.values()):
            continue
        size = _whole(name)
        if size is None:
            raise InputError(
                f"{header} column {position + 1} is headed '{shorten(name)}', which is not a number of "
                "examples; name it 0, 200, 400, … or remove it."
            )
        if size in sizes:
            raise InputError(f"{header} has the size {size} twice; keep one column of each size.")
        sizes[size] = position
    if not sizes:
        raise InputError(f"{header} has no loss columns; head them with numbers of examples: 0, 200, 400, …")
    for line, cells in rows:
        model = cells[name_column].strip()
        if model in builder.lines:
            raise InputError(
                f"{builder.where} line {line} repeats the model '{shorten(model)}' of line "
                f"{builder.lines[model]}; keep one row per model (or give seeds in a tidy file)."
            )
        builder.describe(line, model, *(cells[meta[k]] if k in meta else "" for k in META_COLUMNS))
        if UNIT_COLUMN in meta:
            builder.name_unit(line, cells[meta[UNIT_COLUMN]])
        for size, position in sizes.items():
            builder.add(line, model, size, cells[position], column=str(size))
    return sizes


def _read_tidy(builder: "_Builder", header: str, columns: list[str], rows: Iterator[_Row]) -> Iterable[int]:
    """Fill `builder` from the rows of a tidy file; returns the sizes in it."""
    repeated = [name for name in duplicates(columns) if name]
    if repeated:
        raise InputError(f"{header} has the column '{shorten(repeated[0])}' twice; keep one.")
    at = {name: position for position, name in enumerate(columns)}
    measured = list(rows)
    if UNIT_COLUMN in at:
        for line, cells in measured:
            builder.name_unit(line, cells[at[UNIT_COLUMN]])
    chosen = choose_losses(header, at, [cells for _, cells in measured], builder.unit, builder.asked)
    column, builder.unit, builder.caution, unknown = chosen
    sizes = set()
    for line, cells in measured:
        model = cells[at["model"]].strip()
        builder.describe(line, model, *(cells[at[k]] if k in at else "" for k in META_COLUMNS))
        builder.bar(model, unknown.get(model, ""))
        size = _whole(cells[at["examples"]])
        if size is None:
            raise InputError(
                f"{builder.where} line {line} column 'examples' holds '{shorten(cells[at['examples']])}'; "
                "it needs a whole number, 0 or more."
            )
        sizes.add(size)
        seed = cells[at["seed"]] if "seed" in at else ""
        builder.add(line, model, size, cells[at[column]], seed=seed, column=column)
        if cells[at[column]].strip():
            for metric in filter(at.__contains__, METRICS):
                error = at.get(metric + ENDS[1])
                builder.add_share(line, model, size, metric, cells[at[metric]], "" if error is None else cells[error])
    return sizes


class _Builder:
    """Collects validated cells of one file into a `CurveTable`."""

    def __init__(self, where: str, unit: Unit | None):
        self.where, self.asked = where, unit
        self.unit: Unit | None = None  # as the file names it
        self.caution = ""
        self.lines: dict[str, int] = {}
        self.meta: dict[str, tuple[float, str]] = {}
        self.ineligible: dict[str, str] = {}
        self.losses: dict[tuple[str, int], dict[str, float]] = {}
        self.shares: dict[str, dict[tuple[str, int], list[tuple[float, float]]]] = {}

    def describe(self, line: int, model: str, size: str, family: str, ineligible: str) -> None:
        if not model:
            raise InputError(f"{self.where} line {line} has no model name; fill it in or remove the row.")
        parameters = math.nan
        if size.strip():
            parameters = _number(size)
            if not 0 < parameters < math.inf:
                raise InputError(
                    f"{self.where} line {line} column 'size' holds '{shorten(size)}'; it needs the number of "
                    "parameters, or nothing."
                )
        described = (parameters, family.strip())
        self.lines.setdefault(model, line)
        self.bar(model, ineligible.strip())  # in any of its rows: those of an earlier version do not know
        # Twice unknown agrees: tuples compare by identity first, and math.nan is one object.
        if self.meta.setdefault(model, described) != described:
            raise InputError(
                f"{self.where} line {line} gives '{shorten(model)}' another size or family than line "
                f"{self.lines[model]}; make them agree."
            )

    def bar(self, model: str, why: str) -> None:
        """Let a model not be chosen, for the first reason there is, if there is one."""
        if why:
            self.ineligible.setdefault(model, why)

    def name_unit(self, line: int, cell: str) -> None:
        """Take in what a row says its losses are in."""
        try:
            unit = unit_named(cell) if cell.strip() else NATS_PER_TOKEN
        except InputError as error:
            raise InputError(f"{self.where} line {line} column '{UNIT_COLUMN}': {error}") from error
        if self.unit not in (None, unit):
            raise InputError(
                f"{self.where} line {line} is in {unit}, and the rows above are in {self.unit}; losses of different "
                "units are not comparable: give all rows in one."
            )
        self.unit = unit

    def add(self, line: int, model: str, size: int, cell: str, seed: str = "", column: str = "loss") -> None:
        if not cell.strip():
            return
        loss, seed = _number(cell), seed.strip()
        if not MIN_LOSS <= loss <= MAX_LOSS:
            raise InputError(
                f"{self.where} line {line} column '{column}' holds the loss '{shorten(cell)}'; losses are "
                f"positive numbers from {MIN_LOSS:.0e} to {MAX_LOSS:.0e} (leave a cell blank where nothing was "
                "measured)."
            )
        seeds = self.losses.setdefault((model, size), {})
        if seed in seeds:
            with_seed, mend = (f" with seed {shorten(seed)}", "") if seed else ("", " or add a 'seed' column")
            raise InputError(
                f"{self.where} line {line} repeats {size} examples of '{shorten(model)}'{with_seed}; "
                f"keep one row{mend}."
            )
        seeds[seed] = loss

    def add_share(self, line: int, model: str, size: int, metric: str, cell: str, error: str) -> None:
        if not cell.strip():
            return
        value, spread = _number(cell), _number(error) if error.strip() else math.nan
        if not 0 <= value <= 1 or spread < 0:
            wrong, held = (metric, cell) if not 0 <= value <= 1 else (metric + ENDS[1], error)
            raise InputError(
                f"{self.where} line {line} column '{wrong}' holds '{shorten(held)}'; it needs a share from 0 to 1."
            )
        self.shares.setdefault(metric, {}).setdefault((model, size), []).append((value, spread))

    def table(self, task: str, sizes: list[int]) -> CurveTable:
        if not self.lines:
            raise InputError(f"{self.where} has a header but no models; add a row per model.")
        if not self.losses:
            raise InputError(f"{self.where} holds no losses; fill in at least two sizes per model.")
        if None not in (self.asked, self.unit) and self.asked != self.unit:
            raise InputError(
                f"{self.where} says that its losses are in {self.unit}, not in {self.asked}; ask for those."
            )
        models = list(self.lines)
        shape = (len(models), len(sizes))
        loss, spread, seeds = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, np.int64)
        row = {model: i for i, model in enumerate(models)}
        column = {size: j for j, size in enumerate(sizes)}
        for (model, size), values in self.losses.items():
            cell = row[model], column[size]
            runs = np.array(list(values.values()))
            loss[cell], seeds[cell] = runs.mean(), len(runs)
            if len(runs) > 1:
                spread[cell] = runs.std(ddof=1)
        metrics = {metric: Shares(np.full(shape, np.nan), np.full(shape, np.nan)) for metric in self.shares}
        for metric, cells in self.shares.items():
            for (model, size), pairs in cells.items():
                # Seeds share their test examples, so that more of them do not lower this error.
                means = np.mean(pairs, axis=0)
                for part, mean in zip(metrics[metric], means, strict=True):
                    part[row[model], column[size]] = mean
        return CurveTable(
            task=task,
            models=tuple(models),
            sizes=np.array(sizes, dtype=np.int64),
            loss=loss,
            loss_sd=spread,
            seeds=seeds,
            parameters=np.array([self.meta[model][0] for model in models]),
            families=tuple(self.meta[model][1] for model in models),
            unit=self.unit or self.asked or NATS_PER_TOKEN,
            caution=self.caution,
            metrics=metrics,
            ineligible=tuple(self.ineligible.get(model, "") for model in models),
        )


def _number(text: str) -> float:
    """Text as a number; NaN where it is none, as Python's 1_000 in a CSV."""
    try:
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def _whole(text: str) -> int | None:
    """A whole number from 0 to MAX_EXAMPLES written in digits (or as 1e5, 200.0), else None."""
    value = _number(text)
    return int(value) if 0 <= value <= MAX_EXAMPLES and value == math.floor(value) else None
