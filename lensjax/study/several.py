"""One file of a study of several tasks: the same candidates and settings, and a study for each task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensjax.core.errors import InputError, listing, shorten
from lensjax.train.runs import check_name


def task_names(content: Mapping[str, Any], path: Path) -> list[str]:
    """The names under `tasks` in the fields of a study's file; [] where it has one task.

    Raises:
      InputError: the tasks are not named, a name cannot be that of a folder, or `task` is there too.
    """
    if "tasks" not in content:
        return []
    where, tasks = shorten(path, 200), content["tasks"]
    if "task" in content:
        raise InputError(f"{where} has both task and tasks; give one of them.")
    if not isinstance(tasks, dict) or not tasks or not all(isinstance(name, str) for name in tasks):
        raise InputError(
            f"{where}: tasks names no tasks; write as in tasks: {{verses: {{source: …}}, mails: mails.yaml}}."
        )
    for name in tasks:
        try:
            check_name(name)
        except InputError as error:
            raise InputError(f"{where}: tasks: {error}") from error
    return list(tasks)


def of_task(content: Mapping[str, Any], name: str | None, path: Path) -> dict[str, Any]:
    """The fields of a study's file as if it were of one of its tasks.

    Args:
      content: The fields.
      name: The task; None where the file is to have only one.
      path: The file.

    Raises:
      InputError: see `task_names`; or the file has several tasks and none is named.
    """
    names = task_names(content, path)
    if not names:
        return dict(content)
    if name is None:
        where, folder = shorten(path, 200), shorten(path.with_suffix("") / names[0], 200)
        raise InputError(
            f"{where} has several tasks ({listing(names)}), and this takes one: give the folder of its study, as in "
            f"{folder}, once `lensjax run` has made it."
        )
    rest = {field: value for field, value in content.items() if field != "tasks"}
    return {**rest, "name": f"{content.get('name', path.stem)} {name}", "task": content["tasks"][name]}
