"""`lensjax study init`, `lensjax plan`, `lensjax run` and `lensjax report`: from candidates and data to a decision."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from lensjax.cli_finetune import going_on_later
from lensjax.errors import InputError

StudyFile = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY.yaml")]
StudyFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
LauncherName = Literal["local", "ray"]


def run(
    spec: StudyFile,
    out: Path | None = None,
    launcher: LauncherName = "local",
    dry_run: bool = False,
    limit: int | None = None,
    retry: bool = False,
) -> None:
    """Run a study: measure the candidates on growing subsets, and decide which one to fine-tune on everything.

    Writes to a folder: curves.csv, which `lensjax rank` reads, and, at the end, the report that `lensjax report`
    makes at any time: report.html, report.json and ranking.csv. Stopped or killed, the same command goes on.

    Worked examples

    $ lensjax run study.yaml

    $ lensjax run study.yaml --dry-run

    $ lensjax run study.yaml --out results/verses --launcher ray

    Args:
        spec: YAML file of the study; `lensjax study init` writes one.
        out: Folder of the study; by default one beside the file, called as it is without its ending.
        launcher: Where cells are computed: local, in this process one after another, or ray, on a Ray cluster.
        dry_run: Only say what is left to do.
        limit: Stop after so many cells.
        retry: Try again what failed before.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}; give 1 or more.")
    from lensjax.study.spec import read_study
    from lensjax.train.distributed import is_first, start_processes

    study = read_study(spec)
    folder = spec.with_suffix("") if out is None else out
    start_processes()
    from lensjax.study.run import cells_left, run_study

    def say(sentence: str) -> None:
        if is_first():
            print(sentence, flush=True)

    if dry_run:
        for cell in cells_left(study, folder, retry=retry):
            say(str(cell))
        return
    with going_on_later():
        run_study(study, folder, launcher=launcher, retry=retry, limit=limit, show=True, say=say)
