"""The study that tests damage, and what it came to."""

import csv
import json
from pathlib import Path
from typing import Any


class Scene:
    """A study, the folder of an unbroken run of it, and which cells were computed since `computed` was last cleared.

    Attributes:
      file: Its YAML file.
      whole: The folder of the unbroken run.
      computed: What stands for training and measuring writes its cells here.
      steps: Number of steps of a run, once they are counted.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.whole, self.computed = file, file.with_suffix(""), list[str]()
        self.steps = 0

    def run(self, out: Path, **how: Any) -> list[str]:
        """Run the study in a folder, and return what was said."""
        from lensjax.study.runner import run_study
        from lensjax.study.spec import read_study

        said: list[str] = []
        run_study(read_study(self.file), out, say=said.append, **how)
        return said


def outcome(out: Path) -> tuple[list[dict[str, str]], list[str], str]:
    """What a study came to: the curves but for their times, the decisions, and how every cell ended last."""
    with (out / "curves.csv").open(newline="") as file:
        rows = [row | {"seconds": ""} for row in csv.DictReader(file)]
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    ends = {str(line["cell"]): line.get("status", "ok") for line in lines if line.get("cell")}
    decisions = {line["basis"]: line["decision"] for line in lines if line.get("decision")}
    return rows, list(decisions.values()), json.dumps(ends, sort_keys=True)
