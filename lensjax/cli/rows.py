"""What rows look like, before anything says what is to be learned of them."""

import glob
import itertools
import shlex
from collections.abc import Mapping
from pathlib import Path

from lensjax.cli.outputs import output_writer
from lensjax.core.terminal import say
from lensjax.core.text import clean, json_text

_SHOWN = 3
_LETTERS = 200  # of a value


def is_data(path: Path) -> bool:
    """Whether a file is one of rows, and not the YAML of a task; or a folder or pattern of such, and no study's."""
    from lensjax.tasks.formats import is_rows

    if path.is_dir():
        from lensjax.cli.report import holds_study, tasks_in

        return not holds_study(path) and not tasks_in(path) and any(map(is_data, filter(Path.is_file, path.iterdir())))
    if not path.exists() and glob.has_magic(str(path)):
        return any(is_rows(Path(one)) for one in glob.iglob(str(path), recursive=True))
    if not path.is_file() or not is_rows(path):
        return False
    if path.suffix.lower() != ".json":
        return True
    with path.open("rb") as file:  # of a task's spec, which is an object, or an array of rows
        return file.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def show_rows(path: Path, json: Path | None) -> None:
    """Print how many rows a file, folder or pattern holds, the first ones, and the command that makes a study of them.

    Raises:
      InputError: it cannot be read.
    """
    write = output_writer(json, reads=[path] if path.is_file() else [])
    from lensjax.tasks.conversations import FIELDS
    from lensjax.tasks.source import SPLIT_WORDS, as_source

    source = as_source({"files": str(path.absolute())})
    rows = source.open("train")
    assert rows is not None  # the file is there
    first = [dict(rows[i]) for i in range(min(_SHOWN, len(rows)))]
    fields = list(dict.fromkeys(itertools.chain.from_iterable(first)))
    content = {"rows": len(rows), "fields": fields, "first": [{k: str(v) for k, v in row.items()} for row in first]}
    write(lambda: json_text(content))
    places = {split: source.called(split) for split in SPLIT_WORDS}
    told = [f"{len(source.open(split) or ()):,} for {split} in {place}" for split, place in places.items() if place]
    if told:
        say(f"{path} holds rows: {'; '.join(told)}. The first {len(first)}:")
    else:
        say(f"{path} holds {len(rows):,} rows; the first {len(first)}:")
    for row in first:
        say("")
        for name, value in row.items():
            say(f"  {clean(name, 40)}: {clean(value, _LETTERS)}")
    talks = any(isinstance(row.get(field), (list, Mapping)) for row in first for field in FIELDS)
    words = ["lensjax", "study", "init", "study.yaml", "--candidates", "MODEL", "MODEL", "--data", str(path)]
    if not talks:
        prompt, target = (fields * 2)[:2] if fields else ("FIELD", "FIELD")
        words += ["--prompt", f"{{{prompt}}}", "--target", f" {{{target}}}"]
    say("")
    say("A study says what is asked and what is answered. Make its file like this, with your fields and your models:")
    say(shlex.join(words))
