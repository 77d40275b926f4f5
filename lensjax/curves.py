"""Fine-tuning curves: test loss of models against the number of training examples.

`CurveTable` is where measuring and predicting meet. It holds one task; `read_curves` accepts two CSV
layouts and recognises which one it was given:

wide (the layout of the public rectified-scaling-law benchmark), one row per model::

    config name,0,200,400,size,family
    gpt2,4.86,4.39,4.29,124439808,GPT2

tidy, one row per measurement, as a fine-tuning run appends them::

    model,examples,loss,seed,size,family
    gpt2,200,4.39,0,124439808,GPT2
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from lensjax.errors import InputError, listing, shorten
from lensjax.files import write_files

MAX_EXAMPLES = 10**15
MAX_LOSS = 1e30  # sums of squares over seeds stay finite
_NAME_COLUMNS = ("config name", "config_name", "model", "name")
_META_COLUMNS = ("size", "family")
_TIDY_COLUMNS = ("model", "examples", "loss")
_Row = tuple[int, list[str]]


@dataclass(frozen=True)
class CurveTable:
    """Test losses of M models of one task at S data-set sizes.

    Attributes:
      task: name of the task, usually the stem of the file it was read from.
      models: M distinct names.
      sizes: S numbers of training examples, strictly increasing; 0 is the pretrained model.
      loss: mean test loss over seeds, in nats per token; NaN where not measured.
      loss_sd: standard deviation over seeds (ddof 1); NaN where fewer than two seeds were measured.
      seeds: number of seeds behind each loss; 0 where not measured.
      parameters: number of parameters of each model; NaN where unknown.
      families: family of each model; "" where unknown.
    """

    task: str
    models: tuple[str, ...]
    sizes: Int[np.ndarray, " S"]
    loss: Float[np.ndarray, "M S"]
    loss_sd: Float[np.ndarray, "M S"]
    seeds: Int[np.ndarray, "M S"]
    parameters: Float[np.ndarray, " M"]
    families: tuple[str, ...]

    @property
    def measured(self) -> Bool[np.ndarray, "M S"]:
        """Where a loss was measured."""
        measured: Bool[np.ndarray, "M S"] = np.isfinite(self.loss)
        return measured

    def column(self, examples: int) -> Float[np.ndarray, " M"]:
        """Loss of every model at one size; NaN where not measured."""
        found = np.flatnonzero(self.sizes == examples)
        return self.loss[:, found[0]] if found.size else np.full(len(self.models), np.nan)

    def up_to(self, budget: int) -> "CurveTable":
        """The table as it stood when nothing above `budget` examples had been measured."""
        return self._take(columns=np.flatnonzero(self.sizes <= budget))

    def select(self, keep: Sequence[int] | np.ndarray) -> "CurveTable":
        """The table of the models at the given positions, in that order, or where a mask of M is true."""
        return self._take(rows=np.arange(len(self.models))[list(keep)])

    def points(self) -> Int[np.ndarray, " M"]:
        """Number of measured sizes D > 0 of each model, the points a curve is fitted to."""
        points: Int[np.ndarray, " M"] = self.measured[:, self.sizes > 0].sum(axis=1)
        return points

    def _take(self, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> "CurveTable":
        rows = np.arange(len(self.models)) if rows is None else rows
        columns = np.arange(len(self.sizes)) if columns is None else columns
        cells = np.ix_(rows, columns)
        return CurveTable(
            task=self.task,
            models=tuple(self.models[i] for i in rows),
            sizes=self.sizes[columns],
            loss=self.loss[cells],
            loss_sd=self.loss_sd[cells],
            seeds=self.seeds[cells],
            parameters=self.parameters[rows],
            families=tuple(self.families[i] for i in rows),
        )

    def to_csv(self, layout: Literal["wide", "tidy"] = "wide") -> str:
        """The table as CSV text, each loss the mean over seeds; tidy has a row for each measured one only."""
        text = io.StringIO()
        # Before Python 3.13 the writer leaves a lone carriage return unquoted, a new row to a reader.
        bare = "\r" in "".join(self.models + self.families)
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL)
        counts = ["" if math.isnan(p) else np.format_float_positional(p, trim="-") for p in self.parameters]
        columns = zip(_META_COLUMNS, (counts, self.families), strict=True)
        meta = {name: values for name, values in columns if any(values)}
        if layout == "wide":
            writer.writerow([_NAME_COLUMNS[0], *(str(size) for size in self.sizes), *meta])
            for i, model in enumerate(self.models):
                cells = ["" if math.isnan(x) else repr(float(x)) for x in self.loss[i]]
                writer.writerow([model, *cells, *(values[i] for values in meta.values())])
        else:
            writer.writerow([*_TIDY_COLUMNS, *meta])
            for i, j in zip(*np.nonzero(self.measured), strict=True):
                row = [self.models[i], int(self.sizes[j]), repr(float(self.loss[i, j]))]
                writer.writerow([*row, *(values[i] for values in meta.values())])
        return text.getvalue()

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
) -> CurveTable:
    """A `CurveTable` from arrays: `loss` is M × S, NaN where not measured; columns may be in any order.

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
    for what, repeated in (("model", _repeated(names)), ("size", _repeated(columns.tolist()))):
        if repeated:
            raise InputError(f"{what} {listing(repeated)} is given more than once; give each {what} once.")
    bad = np.argwhere(~np.isnan(values) & ~((values > 0) & (values <= MAX_LOSS)))
    if bad.size:
        i, j = bad[0]
        raise InputError(
            f"loss of {shorten(names[i])} at {columns[j]} examples is {values[i, j]}; "
            f"losses are positive numbers up to {MAX_LOSS:.0e}."
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
    )


def read_curves(path: str | Path, task: str | None = None) -> CurveTable:
    """Read a wide or tidy CSV of fine-tuning curves (see the module's docstring for both layouts).

    Blank cells mean "not measured". Repeated (model, examples) rows of a tidy file must differ in `seed`;
    they are averaged and their standard deviation kept.

    Args:
      path: the CSV file, UTF-8.
      task: name of the task; the file's stem by default.

    Raises:
      InputError: naming the file, the line and the column at fault.
    """
    path, where = Path(path), shorten(path, 200)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text; save it as a CSV in UTF-8.") from error
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        raise InputError(f"Cannot read {where}: {getattr(error, 'strerror', error)}.") from error
    return parse_curves(text, where, path.stem if task is None else task)


def parse_curves(text: str, where: str, task: str) -> CurveTable:
    """The curves in the text of a wide or tidy CSV, as `read_curves` reads it; `where` is what messages call it.

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
    read = _read_tidy if set(_TIDY_COLUMNS) <= set(columns) else _read_wide
    sizes = read(builder := _Builder(where), f"{where} line {line}", columns, rows)
    return builder.table(task, sorted(sizes))


def _rows(where: str, text: str) -> Iterator[_Row]:
    """Every row that is not blank, with the number of its first line; all as wide as the first."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line, width = 1, 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                width = width or len(cells)
                if len(cells) != width:
                    raise InputError(f"{where} line {line} has {len(cells)} cells, but the header has {width}.")
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{where} line {line} is not CSV ({error}); mend or remove it.") from error


def _read_wide(builder: "_Builder", header: str, columns: list[str], rows: Iterator[_Row]) -> Iterable[int]:
    """Fill `builder` from the rows of a wide file; the sizes of its columns."""
    name_column = next((columns.index(name) for name in _NAME_COLUMNS if name in columns), None)
    if name_column is None:
        raise InputError(
            f"{header} names no model column (found {shorten(listing(columns))}); begin the header with "
            "'config name', or give a tidy file with the columns model,examples,loss."
        )
    meta = {name: columns.index(name) for name in _META_COLUMNS if name in columns}
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
        builder.describe(line, model, *(cells[meta[k]] if k in meta else "" for k in _META_COLUMNS))
        for size, position in sizes.items():
            builder.add(line, model, size, cells[position], column=str(size))
    return sizes


def _read_tidy(builder: "_Builder", header: str, columns: list[str], rows: Iterator[_Row]) -> Iterable[int]:
    """Fill `builder` from the rows of a tidy file; the sizes it names."""
    repeated = [name for name in _repeated(columns) if name]
    if repeated:
        raise InputError(f"{header} has the column '{shorten(repeated[0])}' twice; keep one.")
    at = {name: position for position, name in enumerate(columns)}
    sizes = set()
    for line, cells in rows:
        model = cells[at["model"]].strip()
        builder.describe(line, model, *(cells[at[k]] if k in at else "" for k in _META_COLUMNS))
        size = _whole(cells[at["examples"]])
        if size is None:
            raise InputError(
                f"{builder.where} line {line} column 'examples' holds '{shorten(cells[at['examples']])}'; "
                "it needs a whole number, 0 or more."
            )
        sizes.add(size)
        builder.add(line, model, size, cells[at["loss"]], seed=cells[at["seed"]] if "seed" in at else "")
    return sizes


class _Builder:
    """Collects validated cells of one file into a `CurveTable`."""

    def __init__(self, where: str):
        self.where = where
        self.lines: dict[str, int] = {}
        self.meta: dict[str, tuple[float, str]] = {}
        self.losses: dict[tuple[str, int], dict[str, float]] = {}

    def describe(self, line: int, model: str, size: str, family: str) -> None:
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
        # Twice unknown agrees: tuples compare by identity first, and math.nan is one object.
        if self.meta.setdefault(model, described) != described:
            raise InputError(
                f"{self.where} line {line} gives '{shorten(model)}' another size or family than line "
                f"{self.lines[model]}; make them agree."
            )

    def add(self, line: int, model: str, size: int, cell: str, seed: str = "", column: str = "loss") -> None:
        if not cell.strip():
            return
        loss, seed = _number(cell), seed.strip()
        if not 0 < loss <= MAX_LOSS:
            raise InputError(
                f"{self.where} line {line} column '{column}' holds the loss '{shorten(cell)}'; losses are "
                f"positive numbers up to {MAX_LOSS:.0e} (leave a cell blank where nothing was measured)."
            )
        seeds = self.losses.setdefault((model, size), {})
        if seed in seeds:
            with_seed, mend = (f" with seed {shorten(seed)}", "") if seed else ("", " or add a 'seed' column")
            raise InputError(
                f"{self.where} line {line} repeats {size} examples of '{shorten(model)}'{with_seed}; "
                f"keep one row{mend}."
            )
        seeds[seed] = loss

    def table(self, task: str, sizes: list[int]) -> CurveTable:
        if not self.lines:
            raise InputError(f"{self.where} has a header but no models; add a row per model.")
        if not self.losses:
            raise InputError(f"{self.where} holds no losses; fill in at least two sizes per model.")
        models = list(self.lines)
        shape = (len(models), len(sizes))
        loss, spread, seeds = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, np.int64)
        row = {model: i for i, model in enumerate(models)}
        column = {size: j for j, size in enumerate(sizes)}
        for (model, size), values in self.losses.items():
            cell = row[model], column[size]
            found = np.array(list(values.values()))
            loss[cell], seeds[cell] = found.mean(), len(found)
            if len(found) > 1:
                spread[cell] = found.std(ddof=1)
        return CurveTable(
            task=task,
            models=tuple(models),
            sizes=np.array(sizes, dtype=np.int64),
            loss=loss,
            loss_sd=spread,
            seeds=seeds,
            parameters=np.array([self.meta[model][0] for model in models]),
            families=tuple(self.meta[model][1] for model in models),
        )


def _number(text: str) -> float:
    """The number that `text` is, NaN where it is none; Python's 1_000 is not one in a CSV."""
    try:
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def _whole(text: str) -> int | None:
    """A whole number from 0 to MAX_EXAMPLES written in digits (or as 1e5, 200.0), else None."""
    value = _number(text)
    return int(value) if 0 <= value <= MAX_EXAMPLES and value == math.floor(value) else None


def _repeated(items: Iterable[Hashable]) -> list[str]:
    """What occurs more than once, as text, in order of first occurrence."""
    return [str(item) for item, count in Counter(items).items() if count > 1]
