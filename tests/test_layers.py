"""The layers that pyproject.toml declares are checked by `make lint`; here, that the check would notice a breach."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copy(tmp_path):
    """The package and its contracts, to be broken."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ignored = shutil.ignore_patterns("__pycache__", "weights")
    shutil.copytree(ROOT / "lensjax", tmp_path / "lensjax", ignore=ignored)
    return tmp_path


def check(folder):
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    arguments = [sys.executable, "-c", command, "--no-cache"]
    return subprocess.run(arguments, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("importer", "imported", "broken"),
    [
        ("core/errors.py", "lensjax.cli.main", "Imports point downwards only"),
        ("curvature/hvp.py", "lensjax.models.model", "Imports point downwards only"),
        ("fit/per_model.py", "lensjax.tasks.spec", "Predicting needs nothing of measuring"),
        ("models/options.py", "lensjax.models.model", "No import circles"),
    ],
)
def test_an_import_against_the_layers_is_refused(copy, importer, imported, broken):
    path = copy / "lensjax" / importer
    path.write_text(path.read_text() + f"\nimport {imported}  # noqa\n")
    done = check(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{broken} BROKEN" in done.stdout


def test_the_package_keeps_to_its_layers(copy):
    done = check(copy)
    assert done.returncode == 0, done.stdout + done.stderr
