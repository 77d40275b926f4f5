"""The fine-tuning task of SLDBench (arXiv 2507.21184) with every method; see README.md beside this file.

LENSJAX_BENCHMARKS=FOLDER python experiments/sldbench/run.py [--out DIR]
"""

import csv
import io
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float

from lensjax.core.errors import InputError
from lensjax.core.files import make_folder, write_files
from lensjax.curves.public import rectified
from lensjax.curves.table import CurveTable
from lensjax.selection.methods import METHODS, methods_in_order

TASKS = {"flan": "flan", "gigaword": "wikiword", "wmt19": "gigaword"}  # their names in SLDBench
MODELS = (
    "MBZUAI/LaMini-GPT-124M",
    "MBZUAI/LaMini-GPT-774M",
    "cerebras/Cerebras-GPT-256M",
    "cerebras/Cerebras-GPT-1.3B",
    "facebook/bart-base",
    "facebook/bart-large",
    "facebook/opt-350m",
    "facebook/opt-1.3b",
    "facebook/opt-6.7b",
    "google/mt5-base",
    "google/mt5-large",
    "gpt2",
    "t5-small",
    "t5-base",
)
LARGEST, TARGET = 409_600, 819_200
PUBLISHED = {"human (rectified law)": 0.957, "best other agent": 0.981, "SLDAgent, best of 30 runs": 0.9945}


def r_squared(predicted: Float[np.ndarray, " N"], true: Float[np.ndarray, " N"]) -> float:
    """1 - residual over total sum of squares, pooled over all curves, of losses in nats per token."""
    return float(1 - np.sum((predicted - true) ** 2) / np.sum((true - true.mean()) ** 2))


def task_table(name: str) -> CurveTable:
    """The 14 models of one public task."""
    table = rectified(name)
    return table.select([table.models.index(model) for model in MODELS])


def score(tables: list[CurveTable]) -> list[dict[str, str]]:
    """One row per method that predicts losses from curves alone, best first."""
    truth = np.concatenate([table.column(TARGET) for table in tables])
    rows = []
    for name in methods_in_order():
        if METHODS[name].needs:
            continue
        predictions = [METHODS[name].predict(table.up_to(LARGEST), TARGET) for table in tables]
        if not all(one.is_loss for one in predictions):
            continue
        predicted = np.concatenate([one.score for one in predictions])
        row = {"method": name, "r_squared": r_squared(predicted, truth)}
        row["log_rmse"] = float(np.sqrt(np.mean(np.log(predicted / truth) ** 2)))
        bounds = [(one.lower, one.upper) for one in predictions if one.lower is not None and one.upper is not None]
        if len(bounds) == len(tables):
            lower, upper = (np.concatenate(ends) for ends in zip(*bounds, strict=True))
            row["coverage90"] = float(np.mean((lower <= truth) & (truth <= upper)))
        rows.append(row)
    rows.sort(key=lambda row: -float(row["r_squared"]))
    return [{key: value if isinstance(value, str) else f"{value:.4f}" for key, value in row.items()} for row in rows]


def markdown(rows: list[dict[str, str]]) -> str:
    """The table, with what was published."""
    lines = [
        "# SLDBench, fine-tuning task: pooled R² over 42 curves",
        "",
        "| method | R² | log-RMSE | 90 % intervals hold |",
    ]
    lines.append("|---|---|---|---|")
    lines += [f"| {r['method']} | {r['r_squared']} | {r['log_rmse']} | {r.get('coverage90', '–')} |" for r in rows]
    lines += [f"| published: {name} | {value} | – | – |" for name, value in PUBLISHED.items()]
    return "\n".join([*lines, ""])


def main(out: Path = Path(__file__).parent / "results") -> None:
    """Write scores.csv and report.md.

    Args:
      out: Folder for the results.
    """
    rows = score([task_table(name) for name in TASKS])
    make_folder(out)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["method", "r_squared", "log_rmse", "coverage90"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    report = markdown(rows)
    write_files({out / "scores.csv": text.getvalue(), out / "report.md": report})
    print(report)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(f"{error}") from error
