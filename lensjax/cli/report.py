"""`lensjax report`: everything that a study has measured so far, and several studies side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lensjax.cli.arguments import StudyFolders
from lensjax.cli.console import make_console, make_table, print_decision
from lensjax.cli.outputs import write_all
from lensjax.core.errors import InputError
from lensjax.core.files import make_folder, may_write
from lensjax.core.terminal import say

if TYPE_CHECKING:
    from lensjax.study.schema import StudyReport

PAGE, REPORT = "comparison.html", "comparison.json"


def report(folders: StudyFolders, out: Path | None = None) -> None:
    """Write the report of a study, or one that compares several.

    While a study runs, or after. Writes to its folder: report.html, a page with the decision, the ranking beside every
    baseline, curves and their phases, kernels, terms of the bound, what it cost and what failed; report.json, all of
    that for programs; ranking.csv and curves.csv. Of several studies, or the folder of one of several tasks,
    comparison.html and comparison.json say which candidate costs least over all of them.

    Worked examples

    $ lensjax report results/verses

    $ lensjax report results/verses results/mails --out results

    Args:
        out: Folder to write to, as where a study's own cannot be written. Of several studies, that of the comparison,
            which by default is the one that holds them, if one does; their own reports stay in their folders.
    """
    if not folders:
        raise InputError("No folder is given; name that of a study, as in: lensjax report study")
    studies = list(folders)
    if len(studies) == 1 and (inside := tasks_in(studies[0])):
        out, studies = out or studies[0], inside
    several = len(studies) > 1
    reports = [_report(folder, brief=several, place=None if several else out) for folder in studies]
    if len(reports) > 1:
        write_comparison(studies, reports, out)


def holds_study(folder: Path) -> bool:
    """Whether a folder is that of a study."""
    from lensjax.study.folder import STUDY
    from lensjax.study.journal import JOURNAL

    return any((folder / name).exists() for name in (STUDY, JOURNAL))


def tasks_in(folder: Path) -> list[Path]:
    """The folders of studies in a folder that is none itself, as of a study of several tasks; [] without two."""
    from lensjax.study.folder import STUDY

    if not folder.is_dir() or holds_study(folder):
        return []
    found = sorted(path for path in folder.iterdir() if (path / STUDY).is_file())
    return found if len(found) > 1 else []


def _report(folder: Path, *, brief: bool, place: Path | None) -> "StudyReport":
    """Write a study's report to a folder, its own by default, and print its decision.

    One of several that cannot be written is passed over, as it is read for their comparison.
    """
    from lensjax.study.folder import read_study_folder

    spec = read_study_folder(folder)
    from lensjax.report.study_files import write_findings
    from lensjax.study.report import collect

    findings = collect(spec, folder)
    if brief and not may_write(folder):
        say(f"{folder} cannot be written, so that its own report stays as it is.")
    else:
        if place is not None:
            make_folder(place)
        for path in write_findings(findings, folder, place=place):
            say(f"Wrote {path}")
    if not brief:
        print_decision(findings.report, folder)
    return findings.report


def write_comparison(folders: Sequence[Path], reports: "Sequence[StudyReport]", out: Path | None = None) -> None:
    """Print studies side by side, and write them to a folder.

    Args:
      folders: Of the studies, which tell them apart where their names do not.
      reports: Of the same.
      out: The folder; that which holds them all where it is None, and none is written where they are not in one.
    """
    from lensjax.report.pages.comparison import render_comparison
    from lensjax.study.comparing import compare, compared_sections

    if len({one.study for one in reports}) < len(reports):
        reports = [one.model_copy(update={"study": str(folder)}) for one, folder in zip(reports, folders, strict=True)]
    comparison = compare(reports)
    around = {folder.absolute().parent for folder in folders}
    if out is None and len(around) == 1:
        out = folders[0].parent
    if out is not None:
        make_folder(out)
        page, record = render_comparison(reports, comparison), comparison.model_dump_json(indent=2) + "\n"
        write_all({out / PAGE: page, out / REPORT: record})
    (table,) = compared_sections(reports, comparison)[0].tables
    rows = [(name, *cells) for name, cells in table.rows]
    make_console().print(make_table(table.title, ("model", *table.columns), rows))
    for name, sentence in zip(comparison.studies, comparison.decisions, strict=True):
        say(f"{name}: {sentence}")
    say(comparison.sentence)
