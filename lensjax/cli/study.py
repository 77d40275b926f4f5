"""`lensjax study init` and `lensjax run`: from candidates and data to a decision."""

import shlex
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensjax.cli.arguments import Examples, LauncherName, Settings, StudyFile, XlaPreset
from lensjax.cli.console import print_decision, resumable
from lensjax.cli.report import write_comparison
from lensjax.cli.specs import read_studies
from lensjax.core.errors import InputError
from lensjax.core.terminal import say

if TYPE_CHECKING:
    from lensjax.study.schema import StudyReport
    from lensjax.study.spec import StudySpec


def init(
    out: StudyFile = Path("study.yaml"),
    candidates: tuple[str, ...] = (),
    data: str = "",
    prompt: str | None = None,
    target: str = "",
    budget: Examples | None = None,
    full: Examples | None = None,
) -> None:
    """Write a study's file, with a comment for every setting.

    Asks on the terminal for everything that is not given.

    Worked examples

    $ lensjax study init

    $ lensjax study init verses.yaml --candidates openai-community/gpt2 facebook/bart-base --data verses.jsonl
    --prompt "English: {en} Spanish:" --target " {es}" --budget 12800

    Args:
        out: File to write, which ends in .yaml.
        candidates: Folders of models, relative to that of the file, names on the Hugging Face hub, or pocket:NAME,
            which are part of LensJAX.
        data: File of the rows (JSONL, JSON, CSV or TSV, also .gz or .zst, or Parquet), a folder of such, or a pattern
            as in data/*.jsonl, relative to the folder of the file.
        prompt: Template of the prompt, with fields of a row in braces; rows that hold conversations need none.
        target: Template of the text that the model should answer; rows that hold conversations need none.
        budget: Largest number of training examples of a run; by default about an eighth of all, with runs that cost
            at most half of fine-tuning every candidate on everything.
        full: Number of examples that the winner will be trained on; by default all of the data.
    """
    from lensjax.core.files import check_writable, write_files
    from lensjax.study.init import holds_conversations, new_study, typed

    if out.suffix.lower() not in (".yaml", ".yml"):
        raise InputError(f"The study's file would be {out}; give a name that ends in .yaml.")
    if out.exists():
        raise InputError(f"{out} is there already; give another name, or remove it.")
    check_writable([out])
    candidates = candidates or tuple(_ask("Models, separated by spaces", "--candidates").split())
    data = data or _ask("File of the rows", "--data").strip()
    if prompt is not None or target or not holds_conversations(out, data):
        prompt = _ask("Prompt, with fields of a row in braces", "--prompt") if prompt is None else prompt
        target = target or _ask("Target, with fields of a row in braces", "--target")
    for name, template in (("prompt", prompt or ""), ("target", target)):
        if typed(template) != template:
            say(f"The {name} has \\n, which is taken for a new line; write \\\\n for a backslash and an n.")
    new = new_study(out, candidates, data, typed(prompt or ""), typed(target), budget, full)
    write_files({out: new.text})
    for sentence in new.notes:
        say(sentence)
    say(f"Wrote {out}; see what it will cost with: {shlex.join(['lensjax', 'plan', str(out)])}")


def _ask(question: str, flag: str) -> str:
    """The user's answer."""
    if not sys.stdin.isatty():
        raise InputError(f"{flag} is missing; give it, or answer on a terminal.")
    try:
        return input(f"{question}: ")  # as it is: a target may begin with a space
    except EOFError as error:
        raise InputError(f"{flag} is missing; give it, or answer.") from error


def run(
    spec: StudyFile,
    out: Path | None = None,
    launcher: LauncherName = "local",
    dry_run: bool = False,
    limit: int | None = None,
    retry: bool = False,
    tries: int = 3,
    over_memory: bool = False,
    xla_preset: XlaPreset = None,
    settings: Settings = (),
) -> None:
    """Measure a study's candidates, and decide which to fine-tune.

    Runs on growing subsets tell which candidate will be the best on everything.

    Writes to a folder: curves.csv, which `lensjax rank` reads, and, at the end, the report that `lensjax report`
    makes at any time: report.html, report.json and ranking.csv. After a stop or a kill, the same command resumes. Of a
    file with several tasks, each has a folder in it, and comparison.html shows them side by side.

    Worked examples

    $ lensjax run study.yaml

    $ lensjax run study.yaml --dry-run

    $ lensjax run study.yaml --set budget=400 training.epochs=3

    $ lensjax run study.yaml --out results/verses --launcher ray

    Args:
        out: Folder of the study; by default one beside the file, with its name without the ending.
        launcher: Where cells are computed: local, in this process one after another, or ray, on a Ray cluster.
        dry_run: Only list the cells that are left if no candidate drops out and the budget lasts.
        limit: Stop after this many cells.
        retry: Repeat cells that failed before.
        tries: Times that the process may die while it computes one cell, as when the system kills it for lack of
            memory, before that cell counts as failed and the study goes on without it.
        over_memory: Train candidates whose batches need more memory than the machine has, too.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}; give 1 or more.")
    if tries < 1:
        raise InputError(f"--tries is {tries}; give 1 or more.")
    from lensjax.core.presets import use_preset
    from lensjax.core.processes import is_first, start_processes

    studies = read_studies(spec, settings)
    folder = spec.with_suffix("") if out is None else out
    use_preset(xla_preset)
    start_processes()
    how = _How(launcher, dry_run, limit, retry, tries, over_memory)
    found = {folder / name: _run(study, folder / name, how) for name, study in studies.items()}
    reports = [report for report in found.values() if report is not None]
    if len(reports) > 1 and is_first():
        write_comparison(list(found), reports, folder)
    if any(report.decision.model is None and _usable(report) < 2 for report in reports):  # and so there will be none
        sys.exit(1)


@dataclass(frozen=True)
class _How:
    """How studies are run; see `run`."""

    launcher: str
    dry_run: bool
    limit: int | None
    retry: bool
    tries: int
    over_memory: bool


def _usable(report: "StudyReport") -> int:
    """Number of candidates that can be measured."""
    return sum(candidate.state not in ("failed", "refused") for candidate in report.candidates)


def _run(study: "StudySpec", folder: Path, how: _How) -> "StudyReport | None":
    """Run a study, and write and print its report; None where cells are only listed."""
    from lensjax.core.processes import is_first
    from lensjax.study.cells import cells_left

    def say_once(sentence: str) -> None:
        if is_first():
            say(sentence)

    if how.dry_run:
        for cell in cells_left(study, folder, retry=how.retry):
            say_once(str(cell))
        return None
    import jax
    from rich.console import Console

    from lensjax.cli.live import LiveStudy, spared
    from lensjax.report.study_files import write_findings
    from lensjax.study.folder import pinned
    from lensjax.study.report import collect
    from lensjax.study.runner import run_study
    from lensjax.study.standing import Standing

    terminal = Console(stderr=True)
    rewrite = spared(lambda: write_findings(collect(pinned(study, folder), folder), folder, live=True))

    def watch(standing: Standing) -> None:
        if live is not None:
            live.update(standing)
        if standing.done and jax.process_count() == 1:
            rewrite()

    with resumable(), ExitStack() as stack:
        limits: dict[str, Any] = {"retry": how.retry, "limit": how.limit, "tries": how.tries}
        live = stack.enter_context(LiveStudy(terminal)) if is_first() and terminal.is_terminal else None
        shown: dict[str, Any] = {"show": live or True, "say": say_once, "watch": watch}
        run_study(study, folder, launcher=how.launcher, over_memory=how.over_memory, **limits, **shown)
    findings = collect(pinned(study, folder), folder)
    for path in write_findings(findings, folder):
        say_once(f"Wrote {path}")
    if is_first():
        print_decision(findings.report, folder)
    return findings.report
