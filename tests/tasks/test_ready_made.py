"""Tasks made from packages."""

import json
from pathlib import Path

import pytest

from lensjax.cli.main import main
from lensjax.core.errors import InputError
from lensjax.tasks.corpora import pronunciations
from lensjax.tasks.ready_made import KEPT_BACK, TASKS, is_kept_back, write_rows
from lensjax.tasks.spec import TaskSpec, template_fields
from lensjax.tasks.task import load_task


@pytest.mark.usefixtures("dictionary")
def test_rows_are_a_task_without_what_is_kept_back(tmp_path: Path) -> None:
    path = write_rows("spelling", tmp_path / "data")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    words = {row["letters"].replace(" ", "") for row in rows}
    kept = {word for word in pronunciations() if is_kept_back("spelling", word)}
    assert not words & kept
    assert words | kept == set(pronunciations())
    assert abs(len(kept) / 1000 - KEPT_BACK["spelling"]) < 0.05

    task = TASKS["spelling"]
    spec = TaskSpec(source={"files": str(path)}, prompt=task.prompt, target=task.target, validation=10, test=10)  # type: ignore[arg-type]
    (example,) = load_task(spec).train(0, 1)
    assert example.prompt.endswith(" :")
    assert example.target.strip() == example.prompt.removesuffix(" :").upper()


@pytest.mark.usefixtures("sword", "wordnet", "dictionary")
@pytest.mark.parametrize("name", TASKS)
def test_templates_name_fields_that_rows_have(name: str) -> None:
    task = TASKS[name]
    fields = set(template_fields(task.prompt) + template_fields(task.target))
    rows = list(task.rows())
    assert all(fields <= row.keys() for row in rows)


@pytest.mark.usefixtures("sword")
def test_verses_are_kept_back_by_whole_books() -> None:
    assert len(list(TASKS["verses"].rows())) == (0 if is_kept_back("verses", "Genesis") else 2)


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no ready-made task 'poems'; choose one of spelling, verses, topics"):
        write_rows("poems", tmp_path)


@pytest.mark.usefixtures("dictionary")
def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "fetch", "spelling", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert f"Wrote {tmp_path / 'spelling.jsonl'}: " in said
    assert "BSD 2-clause" in said
    assert "{letters} :" in said
