"""Every file of a finished study is damaged in every way: `run` then comes to the same end, or says how it does."""

import os
import re
import shutil
from pathlib import Path

import pytest
from chaos_study import outcome

from lensjax.core.errors import InputError
from lensjax.study.folder import read_study_folder
from lensjax.study.state import read_state

ALL = "LENSJAX_TEST_CHAOS" in os.environ  # every file, not one of each kind


def files(folder):
    """The files of a folder; one of each kind unless all are asked for."""
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    kinds = {re.sub(r"tokens/\w+|(small|large)|examples-\d+-seed-\d+|/0\.\d+", "", str(path)): path for path in found}
    return found if ALL else list(kinds.values())


def truncate(path, outside):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path, outside):
    path.write_bytes(b"")


def flip(path, outside):
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete(path, outside):
    path.unlink()


def link(path, outside):
    """The file lies elsewhere now, and a link leads there."""
    shutil.move(path, outside)
    path.symlink_to(outside)


def circle(path, outside):
    path.unlink()
    path.symlink_to(path)


def pipe(path, outside):
    path.unlink()
    os.mkfifo(path)


def nest(path, outside):
    path.write_bytes(b"[" * 100_000)


def folder(path, outside):
    path.unlink()
    path.mkdir()


def exchange(path, outside):
    """Exchange the file with that of another candidate, seed, rung or set of tokens."""
    twins = {
        str(path).replace(one, other)
        for one, other in (("small", "large"), ("large", "small"), ("seed-0", "seed-1"), ("seed-1", "seed-0"))
    }
    twins |= {str(other / path.name) for other in path.parent.parent.iterdir() if other.is_dir()}
    twin = next((Path(one) for one in sorted(twins - {str(path)}) if Path(one).is_file()), None)
    if twin is not None:
        content = twin.read_bytes()
        twin.write_bytes(path.read_bytes())
        path.write_bytes(content)


LIKELY, ODD = (truncate, flip, delete, link, exchange), (empty, circle, pipe, nest, folder)
EXAMPLES = ("journal.jsonl", "study.json", ".lock", "result.json", "ntk.npz")  # of files, for odd damages


@pytest.mark.parametrize("damage", LIKELY + ODD, ids=lambda one: one.__name__)
def test_a_study_with_a_damaged_file_comes_to_the_same_end(scene, tmp_path, damage):
    whole, wrong = outcome(scene.whole), []
    taken = files(scene.whole)
    if damage in ODD and not ALL:
        taken = {file.name: file for file in taken if file.name in EXAMPLES}.values()
    for number, file in enumerate(taken):
        out, outside = tmp_path / str(number), tmp_path / f"outside-{number}"
        shutil.copytree(scene.whole, out)
        damage(out / file, outside)
        kept = outside.read_bytes() if outside.exists() else b""
        try:
            report(out)
            follow(scene, out)
            if outcome(out) != whole:
                wrong.append(f"{file}: another outcome")
            if outside.exists() and outside.read_bytes() != kept:
                wrong.append(f"{file}: written through a link")
        except Exception as error:  # all are told of together
            wrong.append(f"{file}: {type(error).__name__} {error}")
        shutil.rmtree(out)
    assert not wrong, "\n".join(wrong)


def report(out):
    """What `lensjax report` reads; it refuses only with advice."""
    try:
        read_state(read_study_folder(out), out)
    except InputError as error:
        said = str(error)
    else:
        return
    assert "run the study again" in said or "remove it" in said


def follow(scene, out):
    """Run the study, and where it refuses, do what it says."""
    for _ in range(3):
        try:
            return scene.run(out)
        except InputError as error:
            path = advised(str(error))
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    raise AssertionError("the advice did not help")


def advised(sentence):
    """The file that a sentence says to remove."""
    found = re.search(r"(\S+) is .*; remove it", sentence)
    assert found, f"no advice to follow: {sentence}"
    return Path(found[1])
