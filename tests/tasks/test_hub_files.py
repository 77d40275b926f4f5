"""Data sets on the hub, which is a server of our own."""

import io
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from lensjax.core.artefacts import sealed
from lensjax.core.errors import InputError
from lensjax.study.folder import open_study
from lensjax.study.folder import pinned as pinned_study
from lensjax.study.spec import StudySpec
from lensjax.tasks import hub_files
from lensjax.tasks.hub_files import CONVERTED, sort_files
from lensjax.tasks.sources.hub import Hub
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import load_task
from lensjax.train.runs import SPEC, pinned
from lensjax.train.spec import FinetuneSpec

OLD, NEW, MADE = "a" * 40, "b" * 40, "c" * 40
SETS = {"train": range(40), "validation": range(40, 60), "test": [7, *range(60, 80)]}  # 7 is in train too


def parquet(numbers: Any) -> bytes:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(
        pa.table({"q": [f"{n}?" for n in numbers], "a": [str(n) for n in numbers], "x": list(numbers)}), file
    )
    return file.getvalue()


class Server(ThreadingHTTPServer):
    """As much of the hub as data sets need: repositories by name, with files by commit, and commits by revision."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refs: dict[str, dict[str, str]] = {}
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.cards: dict[str, Any] = {}
        self.asked: list[str] = []

    def add(self, name: str, commit: str, files: dict[str, bytes], *refs: str, card: Any = None) -> None:
        self.files[name, commit] = files
        self.refs.setdefault(name, {}).update({commit: commit} | dict.fromkeys(refs or ("main",), commit))
        self.cards[name] = card


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        if found := re.fullmatch(r"/api/datasets/(\w+/\w+)(?:/(revision|tree)/(.+))?", path):
            name, what, revision = found.groups()
            if name == "a/gated":
                return self._answer(403, error="GatedRepo")
            if name not in self.server.refs:
                return self._answer(404, error="RepoNotFound")
            commit = self.server.refs[name].get(revision or "main")
            if commit is None:
                return self._answer(404, error="RevisionNotFound")
            files = self.server.files[name, commit]
            if what == "tree":
                entries = [{"type": "file", "path": p, "size": len(c), "oid": p} for p, c in files.items()]
                return self._answer(200, json.dumps(entries).encode())
            content = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
            return self._answer(200, json.dumps(content | {"cardData": self.server.cards[name]}).encode())
        found = re.fullmatch(r"/datasets/(\w+/\w+)/resolve/(\w+)/(.+)", path)
        assert found is not None, path
        name, commit, file = found.groups()
        return self._answer(200, self.server.files[name, commit][file], file, commit)

    def _answer(self, status: int, content: bytes = b"", file: str = "", commit: str = "", error: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if error:
            self.send_header("X-Error-Code", error)
        if file:
            self.send_header("ETag", f'"{commit[:8]}{file.replace("/", "-")}"')
            self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Tests are silent."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A hub that answers, as HF_ENDPOINT would name it, and empty caches."""
    server = Server()
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_files, "user_cache_path", lambda name: tmp_path / name)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def verses(hub: Server) -> Server:
    """A data set of two parts of train, validation and test."""
    files = {f"data/train-{i:05}-of-00002.parquet": parquet(SETS["train"][20 * i : 20 * i + 20]) for i in range(2)}
    files |= {f"data/{name}-00000-of-00001.parquet": parquet(SETS[name]) for name in ("validation", "test")}
    hub.add("our/verses", OLD, files | {"README.md": b"", "code.py": b"raise SystemExit", "x/other.csv": b"a"})
    return hub


def task(source: dict[str, Any], **fields: Any) -> TaskSpec:
    return TaskSpec.model_validate(
        {"name": "verses", "source": source, "prompt": "{q}", "target": "{a}", "validation": 5, "test": 10} | fields
    )


def forget() -> None:
    """What a new process does not know."""
    hub_files._list_files.cache_clear()


def test_splits_of_a_data_set_are_read_from_its_parquet_files(verses: Server) -> None:
    spec = task({"hub": "our/verses"}, test=21)
    loaded = load_task(spec)
    texts = {name: {int(example.target) for example in getattr(loaded, name)} for name in ("validation", "test")}
    assert texts["test"] == {7, *range(60, 80)}
    assert texts["validation"] < set(range(40, 60))
    assert {int(example.target) for example in loaded.shuffled(0)} == set(range(40)) - {7}  # held out of train
    assert loaded.rows.where(25) == "our/verses data/train-00001-of-00002.parquet row 6"
    assert list(loaded.rows[0]) == ["q", "a"]
    assert spec.source.origin == f"hub:our/verses@{OLD}"
    assert not any("code.py" in path or "other.csv" in path for path in verses.asked)


def test_a_split_may_be_named_and_another_be_held_out(verses: Server) -> None:
    loaded = load_task(task({"hub": "our/verses", "split": "validation", "splits": {"test": None}}))
    everything = [*loaded.test, *loaded.validation, *loaded.shuffled(0)]
    assert sorted(int(example.target) for example in everything) == list(range(40, 60))
    source = Hub(hub="our/verses", split="validation")
    assert source.open("validation") is None
    assert source.open("test") is not None
    assert Hub.model_validate(source.model_dump()) == source


def test_the_commit_of_the_first_time_is_kept(verses: Server, tmp_path: Path) -> None:
    spec = FinetuneSpec.model_validate(task({"hub": "our/verses"}).model_dump())
    first = pinned(spec, tmp_path)
    assert first.source.commit == OLD
    (tmp_path / SPEC).write_text(sealed({"digest": "0", "spec": first.model_dump(mode="json")}))
    verses.add("our/verses", NEW, {"train.parquet": parquet(range(900, 990))})
    forget()
    again = pinned(spec, tmp_path)
    assert again == first
    assert len(load_task(again).rows) == 40
    assert pinned(spec, tmp_path / "new").source.commit == NEW
    other = spec.model_copy(update={"source": Hub(hub="our/verses", revision="main")})
    assert pinned(other, tmp_path).source.commit == NEW  # which asks for something else
    assert len(load_task(task({"hub": "our/verses", "revision": OLD})).rows) == 40


def test_a_study_keeps_the_commit_of_its_first_run(verses: Server, tmp_path: Path) -> None:
    content = {"name": "mine", "candidates": ["a/b", "c/d"], "task": task({"hub": "our/verses"}), "budget": 400}
    spec = StudySpec.model_validate(content)
    first = pinned_study(spec, tmp_path / "study")
    assert first.identity == spec.identity
    open_study(first, tmp_path / "study")
    verses.add("our/verses", NEW, {"train.parquet": parquet(range(900, 990))})
    forget()
    assert pinned_study(spec, tmp_path / "study") == first
    assert first.task.source.commit == OLD
    assert pinned_study(spec, tmp_path / "new").task.source.commit == NEW


def test_what_was_read_once_is_read_without_the_hub(
    verses: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_task(task({"hub": "our/verses"}))
    forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(verses.asked)
    assert len(load_task(task({"hub": "our/verses"})).rows) == 40
    assert len(verses.asked) == asked
    with pytest.raises(InputError, match=r"data set our/other is not whole in the hub's cache, and the hub cannot be"):
        load_task(task({"hub": "our/other"}))
    (listing,) = (tmp_path / "lensjax" / "hub").iterdir()
    listing.write_text(listing.read_text().replace("train-00001", "train-00009"))
    forget()
    with pytest.raises(InputError, match="fetch it where it can, or name files of your own"):  # not what was kept
        load_task(task({"hub": "our/verses"}))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert len(load_task(task({"hub": "our/verses"})).rows) == 40


def test_the_hub_s_own_conversion_is_read_where_there_is_nothing_else(hub: Server) -> None:
    hub.add("our/lines", OLD, {"lines.csv": b"a"})
    hub.add("our/lines", MADE, {"en/train/0000.parquet": parquet(range(30)), "fr/train/0000.parquet": b""}, CONVERTED)
    spec = task({"hub": "our/lines", "config": "en"})
    assert len(load_task(spec).rows) == 30
    assert spec.source.pinned().commit == MADE
    message = r"our/lines has no Parquet files at main; fetch its files, and name them in source\.files\."
    with pytest.raises(InputError, match=message):
        load_task(task({"hub": "our/lines", "revision": "main"}))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"hub": "our/none"}, r"There is no public data set our/none on the hub; mend source\.hub, or log in"),
        ({"hub": "a/gated"}, r"data set a/gated asks for its terms to be accepted on the hub; do so, and log in"),
        ({"hub": "our/verses", "revision": "v9"}, r"our/verses has no revision 'v9' on the hub; give one of its"),
        (
            {"hub": "our/verses", "config": "en"},
            r"our/verses on the hub has no config 'en' but default; mend source\.c",
        ),
        ({"hub": "our/verses", "split": "dev"}, r"has no split 'dev' but test, train, validation; name the right one"),
        (
            {"hub": "our/text"},
            r"our/text has no Parquet files, and the hub has made none of it \(branch refs/convert/p",
        ),
        ({"hub": "our/two"}, r"our/two on the hub has several configs \(en, fr\); name one in source\.config\."),
        ({"hub": "our/bad"}, r"our/bad train\.parquet is not a whole Parquet file \(.*\); write it again\."),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_what_cannot_be_read_is_said_in_a_sentence(source: dict[str, Any], message: str, verses: Server) -> None:
    verses.add("our/text", NEW, {"a.txt": b""})
    verses.add("our/two", NEW, {f"{name}/train.parquet": b"" for name in ("en", "fr")})
    verses.add("our/bad", NEW, {"train.parquet": b"no"})
    with pytest.raises(InputError, match=message) as raised:
        load_task(task(source))
    assert re.fullmatch(r"[^\n]+\.", str(raised.value))


def test_a_hub_that_cannot_be_reached(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"our/verses is not whole in the hub's cache, and the hub cannot be reached"):
        load_task(task({"hub": "our/verses"}))


LAYOUTS: dict[str, tuple[list[str], Any, dict[str, dict[str, list[str]]]]] = {
    "pushed": (
        [f"data/train-{i:05}-of-00012.parquet" for i in (10, 9)] + ["data/test_sft-00000-of-00001-0a1b.parquet"],
        {},
        {
            "default": {
                "train": ["data/train-00009-of-00012.parquet", "data/train-00010-of-00012.parquet"],
                "test_sft": ["data/test_sft-00000-of-00001-0a1b.parquet"],
            }
        },
    ),
    "converted": (
        ["en/train/0000.parquet", "en/train/0001.parquet", "fr/partial-train/0000.parquet"],
        {},
        {
            "en": {"train": ["en/train/0000.parquet", "en/train/0001.parquet"]},
            "fr": {"partial-train": ["fr/partial-train/0000.parquet"]},
        },
    ),
    "plain": (
        ["my_dev.parquet", "train.parquet", "evaluation.parquet", "README.md"],
        {},
        {"default": {"validation": ["my_dev.parquet"], "train": ["train.parquet"], "test": ["evaluation.parquet"]}},
    ),
    "one": (["everything.parquet"], {}, {"default": {"train": ["everything.parquet"]}}),
    "card": (
        ["a/x1.parquet", "a/x2.parquet", "b/y.parquet", "c.csv"],
        {
            "configs": [
                {
                    "config_name": "a",
                    "data_files": [{"split": "train", "path": "a/*"}, {"split": "test", "path": ["b/**"]}],
                },
                {"config_name": "b", "data_dir": "b"},
                {"config_name": "c", "data_files": "*.csv"},
                {"config_name": "d", "data_dir": "a", "data_files": {"train": "x1.parquet"}},
                3,
            ]
        },
        {
            "a": {"train": ["a/x1.parquet", "a/x2.parquet"], "test": ["b/y.parquet"]},
            "b": {"train": ["b/y.parquet"]},
            "d": {"train": ["a/x1.parquet"]},
        },
    ),
    "no parquet": (["a.csv"], {"configs": "all"}, {}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_sorted_by_config_and_split(layout: str) -> None:
    names, card, expected = LAYOUTS[layout]
    found = sort_files(names, card)
    assert {
        config: {split: list(files) for split, files in splits.items()} for config, splits in found.items()
    } == expected
