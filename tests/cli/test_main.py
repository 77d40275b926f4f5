import csv
import html
import inspect
import json
import pkgutil
import re
import subprocess
import sys

import pytest

from lensjax.cli import study
from lensjax.cli.helping import in_paragraphs
from lensjax.cli.main import _COMMANDS, main
from lensjax.core.registry import Registry
from lensjax.curves.simulated import simulated
from lensjax.selection.ranking import OWN_TOKENS


def run(capsys, *arguments):
    """(exit status, standard output, standard error) of a command, in this process."""
    status = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code or 0
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def curves(tmp_path):
    path = tmp_path / "curves.csv"
    simulated(models=8).write(path)
    return path


def commands(members=_COMMANDS):
    """Every command, as its words."""
    for name, command in members.items():
        yield from ((name, *rest) for rest in commands(command[0])) if isinstance(command, tuple) else [(name,)]


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_help_is_not_of_python(command, capsys):
    status, out, _ = run(capsys, *command, "--help")
    assert status == 0
    assert "None" not in out
    assert "default: )" not in out
    assert "default: '')" not in out
    assert ("--set " in out) == ("(repeatable)" in out)


@pytest.mark.parametrize("written", [str, inspect.cleandoc], ids=["Python 3.12", "Python 3.13"])
def test_help_has_every_argument_in_one_paragraph(written):
    said = in_paragraphs(written(study.init.__doc__))
    assert "pocket:NAME, which are part of LensJAX." in said
    assert len(said.split("Args:\n")[1].splitlines()) == len(inspect.signature(study.init).parameters)


def test_options_that_may_be_left_out_are_read_as_others(capsys, curves):
    _, out, _ = run(capsys, "rank", curves, "--target", 1638400, "--budget", 12800)
    assert "12,800" in out
    status, _, err = run(capsys, "rank", curves, "--target", 1638400, "--budget", "None")
    assert status == 2
    assert "Error parsing --budget: give a whole number" in err


def test_rank_prints_a_table_and_writes_every_format(capsys, curves, tmp_path):
    outputs = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "html")}
    flags = [part for kind, path in outputs.items() for part in (f"--{kind}", path)]
    flags += ["--smallest-within", "0.05"]
    status, out, _ = run(capsys, "rank", curves, "--budget", 12800, "--target", 1638400, *flags)
    assert status == 0
    assert "P(best)" in out
    content = json.loads(outputs["json"].read_text())
    rows = list(csv.DictReader(outputs["csv"].read_text().splitlines()))
    assert [model["model"] for model in content["models"]] == [row["model"] for row in rows]
    assert [row["rank"] for row in rows] == [str(i) for i in range(1, 9)]
    assert content["models"][0]["lower90"] < content["models"][0]["predicted"] < content["models"][0]["upper90"]
    best, chosen = content["models"][0], next(row for row in content["models"] if row["model"] == content["choice"])
    assert chosen["parameters"] <= best["parameters"]
    assert chosen["expected_regret"] - best["expected_regret"] <= 0.05
    assert chosen["on_front"]
    assert 0 < chosen["probability_best"] <= chosen["probability_within"] <= 1
    assert content["why"] in out.replace("\n", " ")
    assert content["too_close_to_call"] == (chosen["probability_within"] < 0.5)
    assert (content["decisive"] is not None) == content["too_close_to_call"]
    if content["decisive"]:
        assert content["decisive"]["sentence"] in out
        assert content["decisive"]["sentence"] in html.unescape(outputs["html"].read_text())
    told = "Too close to call: {} leads" if content["too_close_to_call"] else "Choose {}"
    assert f"{told.format(content['choice'])}; ats would choose" in out
    regrets = [float(row["expected_regret"]) for row in rows]
    assert regrets == sorted(regrets)
    assert "sub_tuning would choose" in out
    assert "(nats per token)" in out
    assert f"\n{OWN_TOKENS}\n" in out
    assert {content["unit"], *(row["unit"] for row in rows)} == {"nats per token"}
    assert content["assumptions"][1] == OWN_TOKENS
    assert outputs["html"].read_text().lstrip().lower().startswith("<!doctype html>")


def test_the_budget_is_the_largest_measured_size_by_default(capsys, curves, tmp_path):
    path = tmp_path / "r.json"
    flags = ["--method", "sub_tuning", "--unit", "bits_per_byte", "--json", path]
    status, out, _ = run(capsys, "rank", curves, "--target", 20000, *flags)
    assert status == 0
    assert "(bits per byte)" in out
    assert OWN_TOKENS not in out
    assert json.loads(path.read_text())["budget"] == 12800


def test_evaluate_writes_tidy_cells(capsys, curves, tmp_path):
    path = tmp_path / "scores.csv"
    status, out, _ = run(capsys, "evaluate", curves, "--target", 1638400, "--ratios", "128", "--csv", path)
    assert status == 0
    assert "relative_accuracy" in out
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert list(rows[0]) == ["task", "method", "budget", "metric", "value", "unit"]
    assert {row["task"] for row in rows} == {"curves"}
    assert {row["budget"] for row in rows} == {"12800"}
    assert {"model_size", "sub_tuning", "vanilla_law", "rectified_law", "ats", "joint"} <= {r["method"] for r in rows}


def with_text(text):
    return lambda folder: (folder / "bad.csv").write_text(text)


WIDE = "config name,200,400\n"
BAD = {
    "missing": lambda folder: None,
    "folder": lambda folder: (folder / "bad.csv").mkdir(),
    "empty": with_text(""),
    "header only": with_text(WIDE),
    "no losses": with_text("config name,size,family\na,1,x\n"),
    "negative": with_text(WIDE + "a,3,2\nb,-3,2\n"),
    "zero": with_text(WIDE + "a,3,2\nb,0,2\n"),
    "nan": with_text(WIDE + "a,3,nan\nb,3,2\n"),
    "infinite": with_text(WIDE + "a,inf,1\nb,3,2\n"),
    "duplicate model": with_text(WIDE + "a,3,2\na,3,2\n"),
    "size not a number": with_text("config name,200,many\na,3,2\nb,3,2\n"),
    "size twice": with_text("config name,200,200\na,3,2\nb,3,2\n"),
    "too few points": with_text(WIDE + "a,3,\nb,,2\n"),
    "one model": with_text(WIDE + "a,3,2\n"),
    "junk": lambda folder: (folder / "bad.csv").write_bytes(bytes(range(256)) * 40_000),
    "long line": with_text("x" * 10_000_000),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_curves_exit_with_2_one_sentence_and_no_file(capsys, tmp_path, kind):
    BAD[kind](tmp_path)
    before = sorted(tmp_path.iterdir())
    status, _, err = run(
        capsys, "rank", tmp_path / "bad.csv", "--target", 1600, "--budget", 400, "--html", tmp_path / "out.html"
    )
    assert status == 2
    assert re.fullmatch(r"lensjax: [^\n]{10,400}[.…]\n", err), err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("rank", "simulated", "--target", 100),
        ("rank", "simulated", "--target", 1638400, "--budget", 1638401),
        ("rank", "simulated", "--target", 10**10, "--budget", 10**9),
        ("rank", "simulated", "--target", 1638400, "--html", "no/such/folder/out.html"),
        ("rank", "rectified:nope", "--target", 1638400),
        ("rank", "simulated", "--target", -5),
        ("rank", "simulated", "--target", 2**64),
        ("evaluate", "--target", 1638400),
        ("evaluate", "simulated", "--target", 5),
        ("evaluate", "simulated", "--target", 1638400, "--ratios", "8,x"),
        ("evaluate", "simulated", "--target", 1638400, "--ratios", "1,8"),
        ("evaluate", "simulated", "simulated", "--target", 1638400),
    ],
)
def test_bad_arguments_exit_with_2_and_one_sentence(capsys, arguments):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert re.fullmatch(r"lensjax: [^\n]+\.\n", err), err


def test_one_file_cannot_hold_two_outputs(capsys, curves, tmp_path):
    path = tmp_path / "out"
    status, _, err = run(capsys, "rank", curves, "--target", 1638400, "--json", path, "--csv", path)
    assert status == 2
    assert "two outputs" in err
    assert not path.exists()


@pytest.mark.parametrize("command", ["rank", "evaluate", "next"])
def test_what_is_read_is_not_written_to(capsys, curves, tmp_path, command):
    (tmp_path / "link.csv").symlink_to(curves)
    before = curves.read_bytes()
    output = "--json" if command == "next" else "--csv"
    status, _, err = run(capsys, command, curves, "--target", 1638400, output, tmp_path / "link.csv")
    assert status == 2
    assert "is an input, and writing to it would lose its content; give another file." in err
    assert curves.read_bytes() == before


@pytest.mark.parametrize("command", ["rank", "evaluate"])
def test_help_has_worked_examples(capsys, command):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert out.count(f"$ lensjax {command}") >= 2


def test_importing_and_helping_load_no_heavy_package():
    heavy = "jax", "flax", "transformers", "tensorflow_datasets", "plotly"
    code = f"import sys, lensjax, lensjax.cli.main; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    code = (
        "import sys, lensjax.selection.ranking; "
        "print([m for m in ('flax', 'transformers', 'tensorflow_datasets') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "lensjax", "--help"], capture_output=True, text=True, check=True)
    assert "rank" in done.stdout
    failed = subprocess.run(
        [sys.executable, "-m", "lensjax", "rank", "nope.csv", "--target", "5"], capture_output=True, text=True
    )
    assert failed.returncode == 2
    assert failed.stderr.startswith("lensjax: Cannot read nope.csv")


@pytest.mark.parametrize(
    ("command", "registry"),
    [
        ("rank", "lensjax.selection.methods:METHODS"),
        ("ntk", "lensjax.measure.functionals:FUNCTIONALS"),
        ("run", "lensjax.study.launching:LAUNCHERS"),
        ("data fetch", "lensjax.tasks.ready_made:TASKS"),
    ],
)
def test_choices_are_the_names_in_a_registry(capsys, monkeypatch, command, registry):
    things = pkgutil.resolve_name(registry)
    if isinstance(things, Registry):
        monkeypatch.setitem(things._entries, "of_another_package", object())
        assert "of_another_package" in things.names
    status, out, _ = run(capsys, *command.split(), "--help")
    assert status == 0
    assert "{" + ",".join(things) + "}" in re.sub(r"[\s│]", "", out)


def test_help_on_all_commands_imports_no_registry():
    code = (
        "import sys; from lensjax.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in sys.modules if m.startswith(('lensjax.measure', 'lensjax.study', 'lensjax.tasks'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_help_fits_a_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in ([], ["data"], ["models"]):
        with pytest.raises(SystemExit):
            main([*arguments, "--help"])
        lines = capsys.readouterr().out.splitlines()
        assert sum(-(-len(line) // 80) or 1 for line in lines) <= 26  # 24 in a terminal, which draws boxes
    with pytest.raises(SystemExit):
        main(["rank", "--help"])
    assert "Worked examples" in capsys.readouterr().out
