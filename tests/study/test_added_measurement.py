"""A measurement that another package adds in one file is offered, planned, run, resumed, and reported."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from lensjax.core.errors import InputError
from lensjax.measure.measurement import MEASUREMENTS
from lensjax.study.launching import LAUNCHERS

NORM = """
import os
from pathlib import Path

import jax
import numpy as np
from pydantic import BaseModel

from lensjax.core.sections import DataTable, Line, LinePlot, Section
from lensjax.measure.measurement import MEASUREMENTS, Cell, Measured, Measurement
from lensjax.core.specs import Strict


class NormFinding(Strict):
    model: str
    examples: tuple[int, ...]
    norms: tuple[float, ...]


class NormFindings(BaseModel):
    norms: tuple[NormFinding, ...] = ()


@MEASUREMENTS.register("norm")
class Norm(Measurement):
    title, label, help = "Norm", "norm", "the norm of every model's parameters; {order: 1} sums their sizes"
    findings = NormFindings
    examples: int = 4
    order: int = 2

    @property
    def rows(self):
        return self.examples

    def seeds_on(self, rung, seeds):
        return seeds

    def flops(self, model, batch):
        return sum(leaf.size for leaf in jax.tree.leaves(model.params)) + len(batch["labels"])

    def measure(self, subject):
        if subject.cell == ("norm", "opt", 200, 0) and not Path("killed").exists():
            Path("killed").touch()
            os._exit(9)  # as a process that is killed
        model = subject.model()
        leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(model.params)]
        size = float(np.linalg.norm(np.concatenate(leaves), self.order))
        flops = self.flops(model, subject.batch(model))
        return Measured({"norm": size}, {"leaves": np.array([leaf.size for leaf in leaves])}, flops)

    @classmethod
    def collect(cls, records):
        found = []
        for name in records.models:
            cells = {size: records.read(Cell("norm", name, size, records.seeds[0])) for size in records.sizes}
            known = {size: cell.summary["norm"] for size, cell in cells.items() if cell is not None}
            assert all("leaves" in cell.arrays for cell in cells.values() if cell is not None)
            if known:
                found.append(NormFinding(model=name, examples=tuple(known), norms=tuple(known.values())))
        return NormFindings(norms=tuple(found))

    @classmethod
    def show(cls, findings):
        lines = [Line(one.model, one.examples, one.norms) for one in findings.norms]
        plot = LinePlot("norms", "Norms of parameters", "training examples", "norm", lines, ladder=True)
        rows = [(one.model, [f"{one.norms[-1]:.3f}"]) for one in findings.norms]
        return [Section("norms", "Norms", ["How far from 0."], [plot], [DataTable("Norms", ["Last rung"], rows)])]
"""

COMMANDS = "import json, sys; from lensjax.cli.main import main; [main(one) for one in json.loads(sys.argv[1])]"


def lensjax(folder, *commands):
    """Run commands one after the other in a process that finds the package."""
    paths = os.pathsep.join([str(folder / "site"), *sys.path])
    call = [sys.executable, "-W", "error", "-c", COMMANDS, json.dumps(commands)]
    return subprocess.run(
        call, cwd=folder, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def folder(tmp_path, write_study):
    """A folder with the package, installed, and a study that asks for its measurement."""
    info = tmp_path / "site" / "lensjax_norm-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "lensjax_norm.py").write_text(NORM)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lensjax-norm\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lensjax.measurements]\nnorm = lensjax_norm:Norm\n")
    write_study(tmp_path, "gpt2", "opt", evidence={"ntk": False, "norm": True})
    return tmp_path


@pytest.mark.long
def test_a_measurement_of_another_package(folder, tiny_models):
    init = ["study", "init", "new.yaml", "--data", "numbers.jsonl", "--prompt", "{n}", "--target", "{letters}"]
    init += ["--budget", "400", "--candidates", *tiny_models("gpt2", "opt")]
    run = ["run", "study.yaml"]
    killed = lensjax(folder, init, ["plan", "study.yaml", "--no-timing", "--json", "plan.json"], run)
    assert (killed.returncode, killed.stderr[-3000:].count("Traceback")) == (9, 0), killed.stderr[-3000:]
    assert "  norm: false  # the norm of every model's parameters; {order: 1}" in (folder / "new.yaml").read_text()
    assert yaml.safe_load((folder / "new.yaml").read_text())["evidence"]["norm"] is False

    planned = json.loads((folder / "plan.json").read_text())["candidates"]
    before = (folder / "study" / "journal.jsonl").read_text().splitlines()
    assert json.loads(before[-1])["cell"] == ["norm", "gpt2", 200, 0]

    done = lensjax(folder, run)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "opt, 200 examples, seed 0, norm: " in done.stdout
    lines = [json.loads(line) for line in (folder / "study" / "journal.jsonl").read_text().splitlines()]
    assert [json.dumps(line) for line in lines[: len(before)]] == [json.dumps(json.loads(line)) for line in before]
    (died,) = (line for line in lines if line.get("status") == "died")  # and was begun again
    told = [line for line in lines if "cell" in line and line is not died]
    entries = {tuple(line["cell"]): line for line in told}
    assert len(entries) == len(told) == 12  # each once
    assert tuple(died["cell"]) in entries
    assert not list((folder / "study").rglob("model.safetensors"))  # kept until all that needs them is measured
    for one in planned:
        assert entries["norm", one["model"], 0, 0]["flops"] == one["evidence"]["norm"]["flops"]
        assert entries["norm", one["model"], 400, 0]["flops"] == one["evidence_of_rung"]["norm"]["flops"]

    report = json.loads((folder / "study" / "report.json").read_text())
    assert [(one["model"], one["examples"]) for one in report["norms"]] == [
        (name, [0, 200, 400]) for name in ("gpt2", "opt")
    ]
    assert {one["kind"] for one in report["cost"]["spent"]} == {"finetune", "norm"}
    page, last = (folder / "study" / "report.html").read_text(), report["norms"][0]["norms"][-1]
    for expected in ("How far from 0.", 'id="norms-data"', "Norms of parameters", f"{last:.3f}"):
        assert expected in page


@pytest.mark.parametrize(
    ("registry", "names"),
    [(MEASUREMENTS, ("finetune", "hessian", "ntk", "transferability", "weights")), (LAUNCHERS, ("local", "ray"))],
)
def test_built_in_names(registry, names):
    assert registry.names == names
    assert all(registry[name] is not None for name in names)
    with pytest.raises(InputError, match=f"There is no {registry.kind} 'loca'"):
        registry.check("loca")
