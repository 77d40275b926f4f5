"""What methods say of every case, kept in a folder: fits take nearly all of the time."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from cases import Case
from jaxtyping import Float

import lensjax.fit
from lensjax.fit.joint.fitting import fit_joint
from lensjax.fit.stacked.learned import Record
from lensjax.fit.stacked.weights import Falls, backtest, falls
from lensjax.selection.methods import METHODS

DRAWS = 1000
RECORD = tuple(field.name for field in fields(Record))
BASELINES = ("last_three", "ats", "sub_tuning", "successive_halving", "zero_shot", "model_size")


@dataclass(frozen=True)
class Evidence:
    """A case and what was said of it.

    Attributes:
      task, part, name: of the case.
      truth: measured losses of M models at the target.
      draws: log losses by the joint fit, as `lensjax rank --method joint` has them.
      scores: of `BASELINES`; NaN where one cannot judge a model.
      ahead: falls of the components to the target.
      record: of back-tests in the table.
    """

    task: str
    part: str
    name: str
    truth: Float[np.ndarray, " M"]
    draws: Float[np.ndarray, "S M"]
    scores: Float[np.ndarray, "B M"]
    ahead: Falls
    record: Record


def gather(cases: list[Case], cache: Path) -> Iterator[Evidence]:
    """Evidence of all cases, from the cache where it holds any of the same table by the same code."""
    cache.mkdir(parents=True, exist_ok=True)
    code = _code()
    for one in cases:
        key = f"{code}{one.table.to_csv()}{one.target}{one.truth.tolist()}"
        path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
        if not path.is_file():
            _compute(one, path)
        yield _read(one, path)


def _code() -> str:
    """A hash of all code of fits, less the numbers that are learned from what they say."""
    (folder,) = lensjax.fit.__path__
    files = [path for path in sorted(Path(folder).rglob("*.py")) if path.name != "learned.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def _compute(one: Case, path: Path) -> None:
    posterior = fit_joint(one.table, one.target)
    ahead = falls(one.table, posterior, np.full(len(one.truth), float(one.target)))
    record = backtest(one.table, posterior)
    values = {
        "truth": one.truth,
        "draws": np.log(posterior.sample(one.target, DRAWS)).astype(np.float32),
        "scores": np.stack([METHODS[name].predict(one.table, one.target).score for name in BASELINES]),
        **{name: np.asarray(getattr(record, name)) for name in RECORD},
        **{field.name: getattr(ahead, field.name) for field in fields(Falls)},
    }
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **values)
    part.replace(path)


def _read(one: Case, path: Path) -> Evidence:
    with np.load(path, allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    ahead = Falls(*(values.pop(field.name) for field in fields(Falls)))
    record = Record(*(values.pop(name)[()] for name in RECORD))
    return Evidence(one.task, one.part, one.name, **values, ahead=ahead, record=record)
