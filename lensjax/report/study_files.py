"""The files of a study's report."""

from pathlib import Path

from lensjax.core.files import write_files
from lensjax.core.processes import is_first
from lensjax.core.text import escaped_json
from lensjax.report.pages.study import render_study
from lensjax.selection.records import ranking_csv
from lensjax.study.report import Findings
from lensjax.study.schema import Ranked
from lensjax.study.winner import winner_command
from lensjax.train.results import CURVES

REPORT, PAGE, RANKING = "report.json", "report.html", "ranking.csv"


def write_findings(findings: Findings, out: Path, *, live: bool = False, place: Path | None = None) -> list[Path]:
    """Write report.html, report.json, ranking.csv and curves.csv, all of them or none.

    Args:
      findings: The report, as `lensjax.study.report.collect` returns it.
      out: The study's folder.
      live: Whether the study is running, so that the page reloads itself.
      place: Folder that they are written to; the study's own by default.

    Returns:
      The files; of several processes, only the first writes them.

    Raises:
      InputError: one of them cannot be written.
    """
    header = ",".join([*(name for name in Ranked.model_fields if name not in ("baselines", "law")), "unit"]) + "\n"
    place = out if place is None else place
    contents: dict[Path, str | bytes] = {
        place / PAGE: render_study(findings.report, findings.ranking, winner_command(out), live=live),
        place / REPORT: escaped_json(findings.report.model_dump_json(indent=2)) + "\n",
        place / RANKING: header if findings.ranking is None else ranking_csv(findings.ranking),
        place / CURVES: findings.curves,
    }
    if is_first():
        write_files(contents, follow=False)
    return list(contents)
