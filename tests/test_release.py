"""What is released: versions, the archive and the wheel, images, and the recipe for conda.

LENSJAX_TEST_RELEASE builds the archive and the wheel, installs the wheel in an environment of its own, and runs a study
from it outside the repository.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMES = {
    "huggingface-hub": "huggingface_hub",
    "importlib-resources": "importlib_resources",
}  # as conda-forge spells them


def read_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_one_version_is_told():
    """That which is coming: git's tags say which one is there."""
    coming = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert "version" in PROJECT["dynamic"]
    assert read_yaml("CITATION.cff")["version"] == coming[1]
    assert read_yaml("conda/recipe.yaml")["context"]["version"] == coming[1]


def test_the_citation_has_what_archives_ask_for():
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "type", "abstract", "keywords", "authors"} <= citation.keys()
    assert citation["license"] == PROJECT["license"]
    for paper in citation["references"]:
        assert re.fullmatch(r"10\.\d+/\S+", paper["doi"])
        assert all({"given-names", "family-names"} == one.keys() for one in paper["authors"])


def test_the_recipe_needs_what_the_project_needs():
    recipe = read_yaml("conda/recipe.yaml")
    wanted = [re.fullmatch(r"([\w.-]+)>=([\d.]+)", one).groups() for one in PROJECT["dependencies"]]
    needed = recipe["requirements"]["run"]
    assert needed[0] == "python >=${{ python_min }}"
    assert PROJECT["requires-python"] == f">={recipe['context']['python_min']}"
    assert needed[1:] == [f"{NAMES.get(name, name)} >={least}" for name, least in wanted]
    assert recipe["about"]["license"] == PROJECT["license"]
    (script,) = recipe["build"]["python"]["entry_points"]
    assert script == f"lensjax = {PROJECT['scripts']['lensjax']}"


def test_every_python_is_told_and_tested():
    told = {one.rpartition(" ")[2] for one in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", one)}
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    assert told == set(jobs["test"]["strategy"]["matrix"]["python"]) == {"3.11", "3.12", "3.13"}


def test_images_are_built_of_stages_that_exist():
    parse = pytest.importorskip("dockerfile_parse").DockerfileParser
    found = parse(fileobj=io.BytesIO((ROOT / "Dockerfile").read_bytes()))
    stages, users, extras, kept = {}, {}, {}, ""
    for one in found.structure:
        kind, value = one["instruction"], one["value"]
        if kind == "FROM":
            base, _, kept = value.partition(" AS ")
            assert base in stages or base.startswith("python:${PYTHON}")
            stages[kept] = base
        elif kind == "COPY" and value.startswith("--from="):
            assert value.removeprefix("--from=").split()[0] in stages
        elif kind == "USER":
            users[kept] = value
        elif kind == "RUN" and (extra := re.search(r"\[(.*)\]", value)):
            extras[kept] = set(extra[1].split(","))
    assert list(stages) == ["wheel", "base", "cuda", "tpu", "cpu"]  # the last is what no target asks for
    assert set(users) == set(extras) == {"cuda", "tpu", "cpu"}  # none is run as root
    assert set.union(*extras.values()) <= PROJECT["optional-dependencies"].keys()
    assert "cuda" in extras["cuda"]
    assert "tpu" in extras["tpu"]
    assert json.loads(next(one["value"] for one in found.structure if one["instruction"] == "ENTRYPOINT")) == [
        "lensjax"
    ]


def run(*command, cwd, **more):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    assert "PyTorch was not found" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folders of the archive and of the wheel that is made of it, and of a wheel of a copy without git."""
    if "LENSJAX_TEST_RELEASE" not in os.environ:
        pytest.skip("LENSJAX_TEST_RELEASE is not set")
    root = tmp_path_factory.mktemp("release")
    venv.create(root / "tools", with_pip=True)
    python = root / "tools" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "build", cwd=root)
    run(python, "-m", "build", "--outdir", root / "dist", ROOT, cwd=root)
    copy = root / "copy"
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    run(python, "-m", "build", "--wheel", "--outdir", root / "plain", copy, cwd=root)
    return root


def version_in(wheel):
    with zipfile.ZipFile(wheel) as opened:
        (place,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        return re.search(r"^Version: (.*)$", opened.read(place).decode(), re.MULTILINE)[1]


def test_versions_are_those_of_git_or_none(built):
    (archive,), (wheel,) = (built / "dist").glob("*.tar.gz"), (built / "dist").glob("*.whl")
    version = version_in(wheel)
    assert archive.name == f"lensjax-{version}.tar.gz"
    assert re.match(r"\d+\.\d+", version)
    assert version != "0.0"
    assert version_in(next((built / "plain").glob("*.whl"))) == "0.0"


def test_a_study_runs_from_the_wheel_outside_the_repository(built, tmp_path):
    """Five minutes after `pip install`: rows and names of models, a plan, a decision."""
    (wheel,) = (built / "dist").glob("*.whl")
    venv.create(tmp_path / "clean", with_pip=True)
    python, lensjax = (tmp_path / "clean" / "bin" / name for name in ("python", "lensjax"))
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    run(python, "-m", "pip", "check", cwd=tmp_path)
    names = ("PATH", "HOME", "TMPDIR", "LANG")
    clean = {name: os.environ[name] for name in names if name in os.environ}  # no PYTHONPATH leads back here
    work = tmp_path / "work"
    work.mkdir()
    rows = (
        {"n": f"{n:04}", "letters": f"{n:04}".translate(str.maketrans("0123456789", "abcdefghij"))} for n in range(2000)
    )
    (work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(*arguments):
        return run(lensjax, *arguments, cwd=work, env=clean)

    version = version_in(wheel)
    assert command("--version") == f"lensjax {version}\n"
    candidates = ("--candidates", "pocket:gpt2-0.2m", "pocket:llama-0.3m")
    templates = ("--prompt", "{n}:", "--target", " {letters}")
    command("study", "init", "study.yaml", *candidates, "--data", "rows.jsonl", *templates, "--budget", "400")
    assert "Budgets" in command("plan", "study.yaml", "--no-timing")
    small = ("--set", "training.learning_rate=1e-3", "training.epochs=1", "training.min_steps=8", "evidence.ntk=false")
    said = command("run", "study.yaml", *small)
    assert re.search("[Ff]ine-tune|Too close to call", said)
    report = json.loads((work / "study" / "report.json").read_text())
    assert report["lensjax"] == report["origin"]["lensjax"][0] == version
    assert (work / "study" / "report.html").stat().st_size > 100_000
    assert "rank" in command("rank", "study/curves.csv", "--target", "1600")


@pytest.mark.parametrize("name", ["python3.11", "python3.12", "python3.13"])
def test_every_python_finds_all_that_is_needed(built, tmp_path, name):
    python = shutil.which(name)
    works = python is not None and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0
    if not works or name == f"python3.{sys.version_info.minor}":  # which installs it above
        pytest.skip(f"{name} is not here, or runs the tests")
    (wheel,) = (built / "dist").glob("*.whl")
    run(python, "-m", "venv", tmp_path / "other", cwd=tmp_path)
    pip = (tmp_path / "other" / "bin" / "python", "-m", "pip", "install", "--quiet", "--dry-run")
    run(*pip, wheel, cwd=tmp_path)
