"""A package of its own adds a selection method, a law and a source of rows: one entry point each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import jax.numpy as jnp
import numpy as np

from lensjax.fit.joint.shapes import Medians, Shape, wiener_path
from lensjax.selection import register
from lensjax.selection.prediction import Prediction
from lensjax.tasks.rows import Jsonl
from lensjax.tasks.source import SOURCES, Source


@register("by_name", "the last letter of a model's name")
def by_name(table, target, evidence):
    return Prediction(np.array([-ord(model[-1]) for model in table.models]), is_loss=False)


@SOURCES.register("letters")
class Letters(Source):
    letters: str

    def open(self, split, fields=()):
        return [{"letter": letter} for letter in self.letters] if split == "train" else None


def slopes(numbers, path):
    return jnp.exp(numbers[0] + path)


falling = Shape(slopes, wiener_path, Medians((0.5, 0.2), (0.4, 0.1), (0.3, 0.1), (0.2, 0.1)), np.array([-3.0]))
"""
ENTRIES = """
[lensjax.methods]
by_name = tiny_package:by_name
[lensjax.sources]
letters = tiny_package:Letters
[lensjax.laws]
falling = tiny_package:falling
"""
LAW = """
import numpy as np
from lensjax.curves.simulated import simulated
from lensjax.fit.joint.fitting import JointSettings, fit_joint

table = simulated(models=4)
for priors in (("falling",), ("falling", "floor")):
    posterior = fit_joint(table.up_to(12_800), 102_400, settings=JointSettings(priors=priors))
    error = np.log(posterior.predict(102_400).loss[:, 0] / table.column(102_400))
    assert np.abs(error).max() < 0.3, error
"""
SOURCE = """
from lensjax.tasks.spec import TaskSpec

spec = TaskSpec.model_validate({"source": {"letters": "abc"}, "prompt": "", "target": "{letter}"})
print(type(spec.source).__name__, [row["letter"] for row in spec.source.open("train")], spec.source.open("test"))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs Python where the package is installed, and gives what it wrote to standard output."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "tiny_package-1.0.dist-info"
    info.mkdir()
    (folder / "tiny_package.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    root = Path(__file__).parent.parent

    def run(*arguments):
        paths = os.pathsep.join([str(folder), str(root)])
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": paths, "COLUMNS": "300"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_its_method_ranks(run, tmp_path):
    assert "by_name" in run("-m", "lensjax", "rank", "--help")
    ranking = tmp_path / "ranking.json"
    options = ["--target", "1638400", "--budget", "12800", "--method", "by_name", "--json", str(ranking)]
    run("-m", "lensjax", "rank", "simulated", *options)
    content = json.loads(ranking.read_text())
    assert content["method"] == "by_name"
    assert [model["model"][-1] for model in content["models"]][:2] == ["9", "8"]
    assert "joint" in content["models"][0]
    assert "Ranked by by_name: the last letter of a model's name." in content["assumptions"]


def test_its_law_is_fitted_beside_ours(run):
    run("-c", LAW)


def test_its_source_is_read(run):
    assert run("-c", SOURCE) == "Letters ['a', 'b', 'c'] None\n"
