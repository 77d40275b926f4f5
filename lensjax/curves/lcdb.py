"""Learning curves of 28 learners on 145 tabular data sets: half of LCDB 1.1 (arXiv 2505.15657, CC BY 4.0).

Error rates, not losses of language models: an independent test of extrapolation and choice. The file belongs to others
and is read from `$LENSJAX_BENCHMARKS/lcdb`.
"""

import csv
import gzip
import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from lensjax.core.errors import InputError, shorten
from lensjax.curves.public import VARIABLE
from lensjax.curves.table import CurveTable, curve_table
from lensjax.curves.units import ERRORS_PER_EXAMPLE

FILE = "curves.csv.gz"
COLUMNS = ("dataset", "learner", "anchor", "test")
LEAST = 5e-5  # half of the last digit that is given: an error rate of 0 is one that was rounded


def lcdb() -> list[CurveTable]:
    """One table per data set, named "lcdb-OPENML_ID", in order of their numbers: mean test error rates of learners.

    An error rate of 0 is below the four digits that are given; log losses need a number, so that it is read as half of
    the last digit, 0.00005.

    Raises:
      InputError: `$LENSJAX_BENCHMARKS` names no folder with lcdb/curves.csv.gz, or that is not as expected.
    """
    path = Path(os.environ.get(VARIABLE) or ".") / "lcdb" / FILE
    rates: dict[int, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    try:
        with gzip.open(path, "rt", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                dataset, learner, anchor, rate = (row[name] for name in COLUMNS)
                if not 0 <= float(rate) <= 1:
                    raise InputError(f"{path}, line {reader.line_num}: the error rate {rate} is not within 0 and 1.")
                rates[int(dataset)][learner][int(anchor)] = max(float(rate), LEAST)
    except InputError:
        raise
    except (OSError, EOFError) as error:
        raise InputError(
            f"Cannot read {path} ({shorten(error)}); set {VARIABLE} to the folder that holds lcdb/{FILE}."
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}, line {reader.line_num}: expected {', '.join(COLUMNS)} ({shorten(error)})."
        ) from error
    return [_table(f"lcdb-{dataset}", rates[dataset]) for dataset in sorted(rates)]


def _table(task: str, rates: dict[str, dict[int, float]]) -> CurveTable:
    learners = sorted(rates)
    sizes = sorted({anchor for curve in rates.values() for anchor in curve})
    loss = [[rates[learner].get(size, np.nan) for size in sizes] for learner in learners]
    return curve_table(learners, sizes, loss, task=task, unit=ERRORS_PER_EXAMPLE)
