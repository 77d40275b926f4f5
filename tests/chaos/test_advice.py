"""Every sentence by which a study is refused says what to do; here somebody does that, and the study goes on."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from chaos_study import Scene, outcome

from lensjax.core.artefacts import QUARANTINE
from lensjax.core.errors import InputError
from lensjax.study.folder import read_study_folder
from lensjax.study.state import read_state


@pytest.fixture
def ours(scene, tmp_path):
    """A copy of the finished study, with rows and a YAML file of its own."""
    copy = Scene(tmp_path / "study.yaml")
    shutil.copytree(scene.whole, copy.whole)
    for name in ("study.yaml", "numbers.jsonl"):
        shutil.copy(scene.file.with_name(name), tmp_path / name)
    return copy


def refused(ours, sentence, out=None):
    """What the sentence says by which a run of the study is refused."""
    with pytest.raises(InputError, match=sentence) as error:
        ours.run(out or ours.whole)
    return str(error.value)


def change(ours, **fields):
    content = yaml.safe_load(ours.file.read_text())
    ours.file.write_text(yaml.safe_dump(content | fields))


def damage(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_file_in_the_place_of_a_folder_is_removed(scene, ours):
    damage(ours.whole / "runs" / "small" / "examples-200-seed-0" / "result.json")
    (ours.whole / QUARANTINE).write_text("in the way")
    said = refused(ours, "is no folder, and one belongs there; remove it")
    Path(re.match(r"(\S+) is no folder", said)[1]).unlink()
    ours.run(ours.whole)
    assert outcome(ours.whole) == outcome(scene.whole)


def test_a_cell_that_failed_is_tried_again_once_its_cause_is_mended(scene, ours):
    shutil.rmtree(ours.whole)
    ours.whole.mkdir()
    (ours.whole / "evidence").write_text("in the way")
    said = ours.run(ours.whole)
    failed = re.fullmatch(
        r"small, kernel: failed, (\S+) is no folder, and one belongs there; remove it, or .*", said[0]
    )
    mend = [one.mend for one in read_state(read_study_folder(ours.whole), ours.whole).failed_cells()]
    assert mend == ["Mend the cause that the message names. Then run the study again with --retry."] * 2
    Path(failed[1]).unlink()
    ours.run(ours.whole, retry=True)
    assert outcome(ours.whole) == outcome(scene.whole)


def test_a_folder_in_the_place_of_a_file_is_removed(scene, ours):
    (ours.whole / "inputs.json").unlink()
    (ours.whole / "inputs.json").mkdir()
    said = refused(ours, "is a folder, and a file of LensJAX belongs there; remove it")
    Path(re.match(r"(\S+) is a folder", said)[1]).rmdir()
    ours.run(ours.whole)
    assert outcome(ours.whole) == outcome(scene.whole)


def test_rows_that_changed_are_given_back_or_measured_in_a_new_folder(scene, ours):
    rows = ours.file.with_name("numbers.jsonl")
    before = rows.read_text()
    rows.write_text(before.replace("0", "9"))
    refused(ours, r"give a new folder \(--out\), or the data that it was made with")
    ours.run(ours.whole.with_name("new"), limit=1)
    rows.write_text(before)
    ours.run(ours.whole)
    assert outcome(ours.whole) == outcome(scene.whole)


def test_settings_that_changed_are_given_back_or_get_a_new_folder(scene, ours):
    before = ours.file.read_text()
    change(ours, training={"learning_rate": [1e-3], "batch_size": 16, "epochs": 2})
    refused(ours, r"\(1 then, 2 now\).*; give a new folder, or the spec that it was made with")
    ours.run(ours.whole.with_name("new"), limit=1)
    ours.file.write_text(before)
    ours.run(ours.whole)
    assert outcome(ours.whole) == outcome(scene.whole)


def test_a_candidate_of_other_training_is_measured_anew_once_its_folder_is_removed(scene, ours):
    content = yaml.safe_load(ours.file.read_text())
    small, large = content["candidates"]
    change(ours, candidates=[small, large | {"training": {"epochs": 2}}])
    ours.run(ours.whole)
    change(ours, candidates=[small, large | {"training": {"epochs": 3}}])
    said = refused(ours, "other training settings than the study has now; give those back, or remove that folder")
    shutil.rmtree(re.match(r"(\S+) holds runs", said)[1])
    ours.run(ours.whole)
    assert [row["loss"] for row in outcome(ours.whole)[0]] == [row["loss"] for row in outcome(scene.whole)[0]]


def test_a_folder_of_something_else_is_left_alone_for_a_new_one(scene, ours, tmp_path):
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.tex").write_text("One.")
    refused(ours, "holds something else; give a new folder", other)
    with pytest.raises(InputError, match="holds no study; give the folder that `lensjax run` wrote"):
        read_study_folder(other)
    assert [path.name for path in other.iterdir()] == ["chapter.tex"]
    ours.run(tmp_path / "new")
    assert outcome(tmp_path / "new") == outcome(scene.whole)
    read_state(read_study_folder(tmp_path / "new"), tmp_path / "new")


def test_a_folder_that_was_moved_goes_on_elsewhere(scene, ours, tmp_path):
    elsewhere = tmp_path / "another machine"
    elsewhere.mkdir()
    for path in (ours.whole, ours.file, ours.file.with_name("numbers.jsonl")):
        shutil.move(path, elsewhere)
    moved = Scene(elsewhere / ours.file.name)
    scene.computed.clear()
    moved.run(moved.whole)
    assert scene.computed == []
    assert not read_state(read_study_folder(moved.whole), moved.whole).damage
    assert outcome(moved.whole) == outcome(scene.whole)
