"""What commands take under load: a journal of 100,000 lines, two million rows, prompts of 10,000 tokens.

    python benchmarks/load.py [--parts journal rows prompts] [--quick] [--out FILE]

Each command is a process of its own, on the CPU, of which wall time, time of its CPU, and memory are measured.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
import yaml
from parts import Json, Promise, command, run_parts

from lensjax.core.artefacts import sealed_line
from lensjax.study.folder import open_study, pinned
from lensjax.study.journal import JOURNAL, VERSION, Entry
from lensjax.study.spec import StudySpec, read_study

Part = Literal["journal", "rows", "prompts"]
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "transformers", "pydantic", "lensjax")
COLUMNS = {"seconds": "median_s", "of the CPU": "cpu_s", "GB": "peak_gb"}
LETTERS = str.maketrans("0123456789", "abcdefghij")
CANDIDATES = ("pocket:gpt2-0.2m", "pocket:llama-0.3m")

NOTES = {
    "journal": "nine lines in ten tell of failed cells, over and over, the others of decisions; no result is on disk",
    "rows": "of 39 bytes each; `plan` times nothing; programs are compiled anew",
    "prompts": "`data show` with the lengths in tokens of a bundled model, of rows whose prompts are that long",
    "seconds": "wall time of the whole process, beside which others may run: `load_at_start` says how many do",
    "cpu_s": "seconds that its cores computed, user and system",
    "peak_gb": "largest resident memory",
}


@dataclass(frozen=True)
class Plan:
    """Numbers of lines of the journal, of rows, and of prompts and the tokens of each."""

    lines: int
    rows: int
    prompts: int
    tokens: int


FULL = Plan(lines=100_000, rows=2_000_000, prompts=400, tokens=10_000)
QUICK = Plan(lines=200, rows=2_000, prompts=110, tokens=50)


def benchmark(
    parts: tuple[Part, ...] = ("journal", "rows", "prompts"),
    quick: bool = False,
    out: Path = Path("benchmarks/results/load.json"),
) -> None:
    """Measure, print a table, and write JSON.

    Args:
        parts: What is measured.
        quick: Only try the script on little; the numbers mean nothing.
        out: File to write.
    """
    run_parts(
        "load",
        MEASURES,
        QUICK if quick else FULL,
        parts,
        out,
        quick=quick,
        notes=NOTES,
        packages=PACKAGES,
        targets=targets,
        columns=COLUMNS,
    )


def journal(plan: Plan) -> Json:
    """Listing what is left of a study, and reporting it."""
    with tempfile.TemporaryDirectory() as made:
        file = write_study(Path(made), numbers(2_000), budget=1600)
        spec, folder = read_study(file), file.with_suffix("")
        spec = pinned(spec, folder)
        open_study(spec, folder)
        lines = (sealed_line(entry.model_dump_json(exclude_defaults=True)) for entry in entries(spec, plan.lines))
        (folder / JOURNAL).write_bytes(b"".join(line + b"\n" for line in lines))
        return {
            "lines": plan.lines,
            "dry run": command("run", str(file), "--dry-run"),
            "report": command("report", str(folder)),
        }


def rows(plan: Plan) -> Json:
    """Showing a task, and planning a study on it."""
    with tempfile.TemporaryDirectory() as made:
        file = write_study(Path(made), numbers(plan.rows), budget=800)
        task = file.with_name("task.yaml")
        task.write_text(yaml.safe_dump(yaml.safe_load(file.read_text())["task"]), encoding="utf-8")
        return {
            "rows": plan.rows,
            "data show": command("data", "show", str(task)),
            "plan": command("plan", str(file), "--no-timing"),
        }


def prompts(plan: Plan) -> Json:
    """Showing a task of long prompts with their tokens."""
    with tempfile.TemporaryDirectory() as made:
        long = ({"n": f"{i:06} " * (plan.tokens // 2), "letters": "abc"} for i in range(plan.prompts))
        file = write_study(Path(made), long, budget=200)
        content = yaml.safe_load(file.read_text())["task"] | {"max_prompt_tokens": 4 * plan.tokens}
        task = file.with_name("task.yaml")
        task.write_text(yaml.safe_dump(content), encoding="utf-8")
        shown = command("data", "show", str(task), "--model", CANDIDATES[1])
        return {"prompts": plan.prompts, "tokens": plan.tokens, "data show": shown}


def numbers(count: int) -> Iterator[Json]:
    """Rows of numbers and their digits as letters."""
    return ({"n": f"{i:07}", "letters": f"{i:07}".translate(LETTERS)} for i in range(count))


def write_study(folder: Path, rows: Iterator[Json], budget: int) -> Path:
    """A study of two bundled models on some rows."""
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    task = {"source": {"files": "rows.jsonl"}, "prompt": "{n}:", "target": "{letters}", "validation": 20, "test": 20}
    content = {"candidates": list(CANDIDATES), "task": task, "budget": budget, "evidence": {"ntk": False}}
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def entries(spec: StudySpec, count: int) -> Iterator[Entry]:
    """Lines of a study's journal."""
    cells = [cell for name in spec.names for size in (0, 200, 400) for cell in spec.cells(name, size)]
    same: Json = {"version": VERSION, "study": spec.identity, "time": "2026-01-01T00:00:00+00:00"}
    for i in range(count):
        if i % 10 == 9:
            chances = dict.fromkeys(spec.names, 0.5)
            told: Json = {"decision": f"Decision {i}.", "basis": f"{i:016x}", "probability_best": chances}
        else:
            told = {"cell": cells[i % len(cells)], "status": "failed", "error": "none", "seconds": 1.5, "flops": 10**10}
        yield Entry(**same, **told)


LIMITS: Mapping[Part, Mapping[str, Mapping[str, float]]] = {
    "journal": {"dry run": {"cpu_s": 2}, "report": {"cpu_s": 10}},
    "rows": {"data show": {"cpu_s": 10, "peak_gb": 1}, "plan": {"cpu_s": 40, "peak_gb": 1}},
    "prompts": {"data show": {"peak_gb": 1}},
}


def targets(parts: Mapping[str, Json]) -> list[Promise]:
    """What we promised ourselves, beside what was measured; of seconds those of the CPU, as others may take turns."""
    return [
        (f"{part}, {name}: {key}", limit, parts[part][name][key])
        for part, names in LIMITS.items()
        if part in parts
        for name, limits in names.items()
        for key, limit in limits.items()
    ]


MEASURES: Mapping[Part, Callable[[Plan], Any]] = {
    "journal": journal,
    "rows": rows,
    "prompts": prompts,
}


if __name__ == "__main__":
    tyro.cli(benchmark)
