"""README and the pages of docs/: what they show is what LensJAX takes, and what they link to is there."""

import ast
import contextlib
import importlib
import io
import re
import shlex
import tomllib
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml
from rich.text import Text

from lensjax.cli.main import main
from lensjax.core.roofline.chips import find_chip
from lensjax.curves.simulated import simulated
from lensjax.measure.measurement import MEASUREMENTS, Cell, Records, Subject
from lensjax.selection import METHODS
from lensjax.study.launching import LAUNCHERS
from lensjax.study.spec import StudySpec, read_study
from lensjax.tasks.source import SOURCES
from lensjax.tasks.spec import TaskSpec, read_spec
from lensjax.train.spec import FinetuneSpec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKED = [*PAGES, *sorted((ROOT / "experiments").glob("*/README.md")), ROOT / "benchmarks" / "README.md"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def example(page: str, containing: str) -> str:
    """The one Python example of a page that holds some text."""
    (code,) = [code for code in blocks(ROOT / page, "python") if containing in code]
    return code


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target, anchor in re.findall(r"\]\(([^()\s#:]*)(#[^()\s]*)?\)", text):
        path = page if not target else page.parent / target
        assert path.is_file(), f"{target} is not a file; link to the README.md of a folder"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor[1:] in [re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads]


def test_pages_are_in_the_navigation_of_the_site():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    for page in (ROOT / "docs").rglob("*.md"):
        assert f" {page.relative_to(ROOT / 'docs')}\n" in navigation


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_is_named_exists(page):
    text = page.read_text(encoding="utf-8")
    named = {*re.findall(r"`(lensjax(?:\.\w+)+)`", text), *re.findall(r"^::: (lensjax\S*)", text, re.MULTILINE)}
    if "lensjax.tuning.optuna" in named:
        pytest.importorskip("optuna")
    for dotted in sorted(named - ENTRY_POINTS):
        thing = importlib.import_module("lensjax")
        for part, so_far in zip(dotted.split(".")[1:], prefixes(dotted), strict=True):
            try:
                thing = getattr(thing, part)
            except AttributeError:
                thing = importlib.import_module(so_far)
    for path in re.findall(r"`((?:lensjax|tests|benchmarks|experiments)/[\w/.]+)`", text):
        assert path.isupper() or "NAME" in path or "MODEL_TYPE" in path or (ROOT / path).exists(), path


ENTRY_POINTS = {
    f"lensjax.{group}"
    for group in ("methods", "laws", "families", "functionals", "sources", "measurements", "launchers")
}


def prefixes(dotted: str) -> list[str]:
    parts = dotted.split(".")
    return [".".join(parts[:end]) for end in range(2, len(parts) + 1)]


def commands(page: Path) -> list[list[str]]:
    """Commands of LensJAX in indented blocks and within sentences, as the words of a shell."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^    (?:LENSJAX\S+ |srun .*? )*(lensjax .*)$", text, re.MULTILINE)
    lines += [" ".join(line.split()) for line in re.findall(r"`(lensjax [^`]*)`", text)]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture(scope="module")
def help_of():
    known: dict[tuple[str, ...], str] = {}

    def help_of(*words: str) -> str:
        if words not in known:
            out = io.StringIO()
            with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
                main([*words, "--help"])
            known[words] = Text.from_ansi(out.getvalue()).plain
        return known[words]

    return help_of


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_and_their_options_exist(page, help_of):
    for words in commands(page):
        group = 2 if words[1] in ("study", "models", "data") else 1
        text = help_of(*words[1 : 1 + group])
        assert f"usage: lensjax {' '.join(words[1 : 1 + group])}" in text, words
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", " ".join(words)):
            assert re.search(rf"{option}\b(?!-)", text), f"{option} in {words}"


def test_every_command_is_on_a_page():
    shown = {tuple(words[1:3]) for page in PAGES for words in commands(page)}
    first = {words[0] for words in shown}
    assert first >= {"study", "plan", "run", "report", "rank", "evaluate", "next", "curve", "ntk", "hessian"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_settings_are_what_lensjax_takes(page, tmp_path):
    for text in blocks(page, "yaml"):
        content = yaml.safe_load(text)
        if "apiVersion" in content:  # of Kubernetes; see test_run_book.py
            continue
        if "source" in content:
            (tmp_path / "task.yaml").write_text(text, encoding="utf-8")
            assert read_spec(tmp_path / "task.yaml", FinetuneSpec).name == "task"
            continue
        if "link_gbps" in content:
            (tmp_path / "chip.yaml").write_text(text, encoding="utf-8")
            assert find_chip(content["name"], tmp_path / "chip.yaml").peak == content["tera"] * 1e12
            continue
        rest = {
            "candidates": ["a/b", "c/d"],
            "task": {"source": {"files": "rows.jsonl"}, "prompt": "{a}", "target": " {b}"},
            "budget": 800,
        }
        if "tasks" in content:
            del rest["task"]
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(rest | content), encoding="utf-8")
        for task in content.get("tasks", [None]):
            assert isinstance(read_study(tmp_path / "study.yaml", (), task), StudySpec)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_parses_and_imports_what_there_is(page):
    for code in blocks(page, "python"):
        if "import optuna" in code:
            pytest.importorskip("optuna")
        imports = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), page.name, "exec"), {})


def test_models_are_loaded_applied_differentiated_and_saved(tmp_path, monkeypatch):
    code = example("docs/models.md", "logits = jax.jit(model.apply)")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code.replace("openai-community/gpt2", "pocket:gpt2-0.2m"), names)
    assert np.isfinite(names["loss"])
    assert jax.tree.structure(names["gradient"]) == jax.tree.structure(names["model"].params)
    assert (tmp_path / "my-model" / "model.safetensors").exists()


@pytest.mark.parametrize("page", ["README.md", "docs/your_own_curves.md"])
def test_curves_are_fitted_and_asked(page, tmp_path, monkeypatch):
    rows = "\n".join(
        f"m{i},{','.join(f'{(3 + i / 4) * n**-0.1:.4f}' for n in (200, 400, 800, 1600))}" for i in range(3)
    )
    (tmp_path / "curves.csv").write_text(f"model,200,400,800,1600\n{rows}\n")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    pytest.importorskip("pandas")
    exec(example(page, "posterior.probability_best"), names)
    assert names["posterior"].predict(1_638_400).loss.shape == (3, 1)


def test_what_extends_lensjax_works(tmp_path, monkeypatch):
    for registry in (METHODS, MEASUREMENTS, SOURCES, LAUNCHERS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    for code in blocks(ROOT / "docs" / "extending.md", "python"):
        exec(compile(code, "extending.md", "exec"), {"__name__": "extending"})
    table = simulated(models=3)
    prediction = METHODS["last_loss"].predict(table.up_to(1600), 12_800)
    assert prediction.order[0] == np.argmin(table.up_to(1600).loss.min(axis=1))
    task = TaskSpec.model_validate({"source": {"letters": "abc"}, "prompt": "", "target": "{letter}"})
    assert [row["letter"] for row in task.source.open("train")] == ["a", "b", "c"]
    cell = Cell("size", "gpt2")
    subject = Subject(cell, "pocket:gpt2-0.2m", task, None, (), tmp_path, lambda: None, {})
    found = MEASUREMENTS["size"]().measure(subject)
    records = Records(["gpt2"], [0], [0], None, {cell: found}.get)
    (section,) = MEASUREMENTS["size"].show(MEASUREMENTS["size"].collect(records))
    assert section.tables[0].rows == [("gpt2", [f"{found.summary['parameters']:,}"])]
    with LAUNCHERS["backwards"](SimpleNamespace(compute=str.upper)) as launch:
        assert list(launch(iter("ab"))) == [("b", "B"), ("a", "A")]


def test_extras_that_are_named_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for page in PAGES:
        assert set(re.findall(r"(?:lensjax|\.)\[(\w+)\]'", page.read_text(encoding="utf-8"))) <= extras.keys()


def test_ten_questions_are_answered():
    assert len(re.findall(r"^## .*\?$", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)) >= 10
