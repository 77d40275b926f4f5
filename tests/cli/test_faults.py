"""What a command says where its reader leaves, its terminal lacks characters, or it meets a fault of its own."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lensjax.cli import rank as command
from lensjax.cli.main import main
from lensjax.core.reading import MOST

EVIL = "\x1b]0;title\x07\x1b[2J", "b\u202etxt", "=1+1"
ARGUMENTS = ("--target", "3200", "--method", "sub_tuning")


@pytest.fixture
def curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "curves.csv"
    path.write_text("config name,200,400,800\n" + "".join(f"{name},{3 - i / 9},2.5,2\n" for i, name in enumerate(EVIL)))
    return path


def test_names_cannot_steer(curves: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["rank", str(curves), *ARGUMENTS, "--json", "r.json", "--csv", "r.csv", "--html", "r.html"])
    written = {name: Path(name).read_text(encoding="utf-8") for name in ("r.json", "r.csv", "r.html")}
    for text in (capsys.readouterr().out, *written.values()):
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert {row["model"] for row in json.loads(written["r.json"])["models"]} == set(EVIL)  # whole, but escaped
    names = [row["model"] for row in csv.DictReader(written["r.csv"].splitlines())]
    assert "'=1+1" in names


def test_whoever_reads_may_leave(curves: Path) -> None:
    """All work is done, and its files are whole."""
    reader, writer = os.pipe()
    os.close(reader)
    call = [sys.executable, "-m", "lensjax", "rank", str(curves), *ARGUMENTS, "--json", "r.json"]
    ended = subprocess.run(call, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(Path("r.json").read_text())["target"] == 3200


def test_any_encoding_will_do(curves: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    call = [sys.executable, "-m", "lensjax", "rank", str(curves), *ARGUMENTS]
    ended = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.isascii()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyError("lost"), 1, "internal error (KeyError: 'lost'), a fault of LensJAX; please report it and attach "),
        (RecursionError("deep"), 1, "internal error (RecursionError: deep)"),
        (MemoryError(), 2, "It takes more than this machine's memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 2, "It takes more than a device's memory"),
        (OSError(28, "No space left on device"), 2, "The disk is full; make room"),
        (PermissionError(13, "Permission denied", "secret.csv"), 2, "Cannot use secret.csv: Permission denied"),
    ],
    ids=repr,
)
def test_no_error_reaches_users_but_in_a_sentence(
    curves: Path,
    error: Exception,
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(command, "print_ranking", fail)
    with pytest.raises(SystemExit) as stop:
        main(["rank", str(curves), *ARGUMENTS])
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (status, 1)
    assert said.startswith(f"lensjax: {words}")
    details = list(curves.parent.glob("lensjax-fault-*.txt"))
    assert len(details) == (status == 1)
    for path in details:
        assert str(path) in said
        assert "Traceback" in path.read_text()


def test_limit_of_files_that_are_read_whole(curves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice of the sentence is followed."""
    curves.write_text("config name,200,400,family\n" + " \n" * 600_000 + "a,3,2,x\nb,3,2,y\n")
    monkeypatch.setenv(MOST, "1")
    with pytest.raises(SystemExit) as stop:
        main(["rank", str(curves), *ARGUMENTS])
    assert stop.value.code == 2
    monkeypatch.setenv(MOST, "2")
    main(["rank", str(curves), *ARGUMENTS])
