"""Printing ends where its reader goes away, the work does not, and the exit status says what happened."""

import json
import os
import subprocess
import sys

import pytest

from lensjax.cli import streams
from lensjax.cli.main import main

CURVES = "model,0,200,400,800\na,3,2.5,2.2,2.0\nb,3.1,2.4,2.0,1.7\n"


@pytest.fixture
def rank(tmp_path):
    """Ranks two models with standard output of a kind; gives the status, standard error and the file written."""
    (tmp_path / "curves.csv").write_text(CURVES)
    code = "from lensjax.cli.main import main; main()"

    def run(**how):
        command = [sys.executable, "-c", code, "rank", "curves.csv", "--target", "1600", "--method", "ats"]
        out = tmp_path / "ranking.json"
        done = subprocess.run(
            [*command, "--json", str(out)], cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False, **how
        )
        return done.returncode, done.stderr, out

    return run


def test_a_reader_that_has_gone_ends_printing_only(rank):
    reader, writer = os.pipe()
    os.close(reader)
    status, said, out = rank(stdout=writer)
    os.close(writer)
    assert (status, said) == (0, "")
    assert {row["model"] for row in json.loads(out.read_text())["models"]} == {"a", "b"}


def test_output_that_does_not_fit_the_disk_is_told_of(capsys, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            main(["models", "list"])
    assert ended.value.code == 1
    assert "the output could not be written (No space left on device); all files are." in capsys.readouterr().err


def test_output_that_was_closed_from_the_start_leads_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with streams.enduring():
        print("unheard")
    assert sys.stdout is None


def test_a_full_disk_under_standard_error_does_not_change_what_a_command_ends_with():
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    call = [sys.executable, "-m", "lensjax", "rank", "missing.csv", "--target", "800"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(call, stdout=full, stderr=full, check=False).returncode == 2
        assert subprocess.run([*call[:3], "models", "list"], stdout=full, stderr=full, check=False).returncode == 1
