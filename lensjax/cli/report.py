"""`lensjax report`: everything that a study has measured so far."""

from lensjax.cli.arguments import StudyFolder
from lensjax.cli.console import print_decision
from lensjax.core.terminal import say


def report(folder: StudyFolder) -> None:
    """Write the report of a study, while it runs or after.

    Writes to the study's folder: report.html, a page with the decision, the ranking beside every baseline, curves and
    their phases, kernels, terms of the bound, what it cost and what failed; report.json, all of that for programs;
    ranking.csv and curves.csv.

    Worked examples

    $ lensjax report results/verses
    """
    from lensjax.study.folder import read_study_folder

    spec = read_study_folder(folder)
    from lensjax.report.study_files import write_findings
    from lensjax.study.report import collect

    findings = collect(spec, folder)
    for path in write_findings(findings, folder):
        say(f"Wrote {path}")
    print_decision(findings.report, folder)
