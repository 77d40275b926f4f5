"""Verdicts as tables and reliability diagrams."""

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from judging import WIDTHS, Verdict

PROBABILITIES = ("joint", "stacked", "as shipped")  # methods with draws
NUMBERS = ("relative_accuracy", "regret", "best", "log_rmse", "pearson", "log_score", "crps")
HEADLINE = "sets of 5 and 8"
BINS = np.array([0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0])
FEWEST = 5  # models that a point of the diagram stands for
CLEAR = 0.8  # P(best) that counts as a claim


def group(verdict: Verdict) -> str:
    """The part of a task under which a verdict is shown."""
    if verdict.part.startswith("sets of "):
        return HEADLINE if verdict.part in ("sets of 5", "sets of 8") else "sets of 4, 6, 10 and 12"
    return verdict.part if verdict.task == "lcdb" or verdict.part == "all" else "all"


def mean(verdicts: Sequence[Verdict], number: str) -> float | None:
    """Mean of one number, over the cases that have it."""
    values = [value for one in verdicts if (value := getattr(one, number)) is not None]
    return float(np.mean(values)) if values else None


def held(verdicts: Sequence[Verdict], width: float) -> float | None:
    """Share of losses inside their intervals, over models."""
    weighed = [(len(one.claimed), one.inside[WIDTHS.index(width)]) for one in verdicts if one.inside]
    return float(np.average([i for _, i in weighed], weights=[m for m, _ in weighed])) if weighed else None


def clear_claims(verdicts: Sequence[Verdict]) -> tuple[int, float, float]:
    """How often P(best) above `CLEAR` was claimed, its mean, and how often the claim held."""
    clear = [(max(one.claimed), one.claimed[one.true] == max(one.claimed)) for one in verdicts if one.claimed]
    clear = [pair for pair in clear if pair[0] > CLEAR]
    return (len(clear), *np.mean(clear, axis=0).tolist()) if clear else (0, float("nan"), float("nan"))


def reliability(verdicts: Sequence[Verdict]) -> list[tuple[float, float, int]]:
    """Mean P(best) claimed, share that were best, and number of models, by bins of what was claimed."""
    claimed = np.concatenate([one.claimed for one in verdicts if one.claimed])
    true = np.concatenate([np.arange(len(one.claimed)) == one.true for one in verdicts if one.claimed])
    place = np.clip(np.digitize(claimed, BINS) - 1, 0, len(BINS) - 2)
    return [
        (float(claimed[place == k].mean()), float(true[place == k].mean()), int((place == k).sum()))
        for k in range(len(BINS) - 1)
        if (place == k).any()
    ]


def verdicts_csv(verdicts: Sequence[Verdict]) -> str:
    """One row per case and method."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(Verdict) if field.name not in ("claimed", "true", "inside")]
    writer.writerow(
        [*names, "models", "p_best_of_choice", "p_best_of_best", *(f"inside{round(100 * w)}" for w in WIDTHS)]
    )
    for one in verdicts:
        row = [getattr(one, name) for name in names]
        claims = [len(one.claimed), max(one.claimed), one.claimed[one.true], *one.inside] if one.claimed else []
        cells = ["" if x is None else f"{x:.5g}" if isinstance(x, float) else x for x in [*row, *claims]]
        writer.writerow([*cells, *[""] * (len(names) + 3 + len(WIDTHS) - len(cells))])
    return text.getvalue()


def markdown(verdicts: Sequence[Verdict], notes: Sequence[str]) -> str:
    """All tables."""
    by: dict[tuple[str, str], list[Verdict]] = {}
    for one in verdicts:
        by.setdefault((one.task, group(one)), []).append(one)
    methods = list(dict.fromkeys(one.method for one in verdicts))

    def of(members: Sequence[Verdict], method: str) -> list[Verdict]:
        return [one for one in members if one.method == method]

    lines = ["# How well methods decide", "", *notes, ""]
    lines += ["## Sets of 5 and 8 of the public models", ""]
    headline = [one for (_, part), members in by.items() if part == HEADLINE for one in members]
    tasks = list(dict.fromkeys(one.task for one in headline))
    if headline:
        lines += table_lines(
            ["relative accuracy", *tasks, "mean"],
            [
                [
                    method,
                    *(values := [mean(of(by[task, HEADLINE], method), "relative_accuracy") for task in tasks]),
                    _mean(values),
                ]
                for method in methods
            ],
        )
    lines += ["## All parts of all tasks", ""]
    columns = [
        "cases",
        *NUMBERS,
        *(f"in {round(100 * w)} %" for w in WIDTHS),
        f"P(best) > {CLEAR}: n",
        "claimed",
        "true",
    ]
    for (task, part), members in by.items():
        rows = []
        for method in methods:
            own = of(members, method)
            if own:
                numbers = [mean(own, number) for number in NUMBERS]
                widths = [held(own, width) for width in WIDTHS]
                claims = clear_claims(own) if method in PROBABILITIES else (None, None, None)
                rows.append([method, len(own), *numbers, *widths, *claims])
        lines += [f"### {task}: {part}", "", *table_lines([f"{task}: {part}", *columns], rows)]
    lines += ["## P(best) claimed and true, over all models of all cases", ""]
    for method in PROBABILITIES:
        own = of(verdicts, method)
        count, claimed, true = clear_claims(own)
        lines += table_lines([method, "claimed", "true", "models"], [["", *row] for row in reliability(own)])
        lines += [f"Of {count} first choices claimed above {CLEAR} (mean {claimed:.2f}), {true:.2f} were best.", ""]
    lines += ["## Regret of the choice above the best baseline's, mean of cases", ""]
    baselines = [method for method in methods if method not in PROBABILITIES]
    rows = []
    for (task, part), members in by.items():
        least = min((value, m) for m in baselines if (value := mean(of(members, m), "regret")) is not None)
        excess = [mean(of(members, method), "regret") for method in PROBABILITIES]
        rows.append([f"{task}: {part}", least[1], least[0], *(None if e is None else e - least[0] for e in excess)])
    lines += table_lines(["", "best baseline", "its regret", *PROBABILITIES], rows)
    return "\n".join(lines)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def table_lines(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    def cell(value: object) -> str:
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return "–"
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return [*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows), ""]


def draw(verdicts: Sequence[Verdict], path: Path) -> None:
    """P(best) claimed against true, and coverage against claimed width, by task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(one.task for one in verdicts))
    figure, axes = plt.subplots(2, len(PROBABILITIES), figsize=(12.6, 8.4), squeeze=False)
    for row, title in enumerate(("P(best) of a model", "width of the interval")):
        for column, method in enumerate(PROBABILITIES):
            axis = axes[row][column]
            axis.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
            for number, task in enumerate(tasks):
                own = [one for one in verdicts if one.method == method and one.task == task]
                if own:
                    axis.plot(*_series(own, row), marker="o", markersize=4, color=f"C{number}", label=task)
            axis.set(title=f"{method}: {title}", xlabel="claimed", ylabel="true", xlim=(0, 1), ylim=(0, 1))
            axis.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=len(tasks), frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _series(own: Sequence[Verdict], row: int) -> tuple[list[float], list[float | None]]:
    """Claimed and true, of P(best) in the first row and of intervals in the second."""
    if row:
        return list(WIDTHS), [held(own, width) for width in WIDTHS]
    enough = [(claimed, true) for claimed, true, count in reliability(own) if count >= FEWEST]
    return [claimed for claimed, _ in enough], [true for _, true in enough]
