"""One sentence for every bad input: what it is, in which file or field, and status 2; nothing is written."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lensjax.cli.main import main
from lensjax.models.hub import find_folder

CURVES = "config name,200,400,800,1600\na,4,3,2.5,2.2\nb,3.5,3,2.8,2.7\n"
ROWS = "".join(json.dumps({"en": f"word {i}", "es": f"palabra {i}"}) + "\n" for i in range(300))
TASK = {"source": {"files": "rows.jsonl"}, "prompt": "{en}:", "target": " {es}", "validation": 20, "test": 20}
STUDY = {"candidates": ["pocket:gpt2-0.2m", "pocket:t5-0.4m"], "task": TASK, "budget": 400}
LONG, NUL = "x" * 5000, "a\0b"

Case = tuple[str, tuple[str, ...], Callable[[], object] | None, str]
# What lies at the path instead of a file, and what the sentence says of it.
PLACES = {
    "missing": "No such file",
    "a folder": "folder|directory",
    "a pipe": "pipe or a device",
    "a device": "pipe or a device",
    "a circle of links": "[Ll]ink|Too many levels",
    "a broken link": "No such file",
    LONG: "too long",
    NUL: "null (byte|character)",
    "latin-1": "UTF-8",
}
READERS = {
    "rank": ("rank", "{}", "--target", "3200"),
    "rank.unit": ("rank", "{}", "--target", "3200", "--unit", "nats_per_token"),
    "next": ("next", "{}", "--target", "3200"),
    "evaluate": ("evaluate", "{}", "--target", "1600"),
    "plan": ("plan", "{}", "--no-timing"),
    "run": ("run", "{}"),
    "dry run": ("run", "{}", "--dry-run"),
    "data": ("data", "show", "{}"),
    "finetune": ("finetune", "{}", "--model", "pocket:gpt2-0.2m", "--examples", "200", "--out", "out"),
    "curve": ("curve", "{}", "--model", "pocket:gpt2-0.2m", "--max-examples", "200", "--out", "out"),
}
WRITERS = {
    "json": ("rank", "curves.csv", "--target", "3200", "--method", "sub_tuning", "--json", "{}"),
    "csv": ("rank", "curves.csv", "--target", "3200", "--method", "sub_tuning", "--csv", "{}"),
    "html": ("rank", "curves.csv", "--target", "3200", "--method", "sub_tuning", "--html", "{}"),
    "next": ("next", "curves.csv", "--target", "3200", "--json", "{}"),
}
TARGETS = {
    "no/such/folder/x.json": "no folder",
    "a folder": "folder",
    "a circle of links": "[Ll]ink|Too many levels",
    f"{LONG}.json": "too long",
    NUL: "null (byte|character)",
    "curves.csv": "is an input",
    "/proc/x.json": "not writable|No such file|denied",
}
NUMBERS = {
    "--target": ["0", "-1", "1e400", "nan", "abc", "1.5", "9" * 30, "", "True", "inf"],
    "--budget": ["nan", "x", "1e400"],
    "--smallest-within": ["-1", "nan", "inf", "x", "0"],
    "--max-parameters": ["-1", "nan", "inf", "x", "0", "1e999", "1.2.3B"],
}
WRONG = [True, float("inf"), float("nan"), -1, "x", [1, "y"], {"a": 1}]
TRAINING = (
    *("learning_rate", "warmup", "batch_size", "accumulation", "epochs", "min_steps", "max_steps", "patience"),
    *("weight_decay", "beta1", "epsilon", "clip", "lora_rank", "lora_alpha", "dtype", "remat"),
)
IN_STUDY = {
    "budget": [*WRONG, 0],
    "target": [*WRONG, 0],
    "seeds": [*WRONG, [], [0, 0], [0.5]],
    "eliminate_below": [*WRONG, 0, 1],
    "price_per_hour": [*WRONG, 0],
    "name": [3, [1], {"a": 1}],
    "evidence": [3, "x", {"ntk": 3}, {"none": True}, {"ntk": {"examples": -1}}, {"ntk": {"functional": "x"}}],
    "candidates": [*WRONG, [], ["pocket:gpt2-0.2m"]],
    "method": ["stackd", True, 1],
    "strategy": ["laddr", True],
    "candidate": ["pocket:gpt2-0.2m"],
    "task": [True, 3, "none.yaml", {}],
}
SIZES = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"]
CURVE_CELLS = ["-1", "nan", "inf", "1e400", "x", "1_000", "True", "0", "0x10", "=1+1"]
HEADERS = ["", "a,b", "config name,200,200", "model,examples", "config name,-5", "config name,1e400,200"]
TASKS = {
    "prompt": ["{none}", "{", "{en!x}", 3, True, "{en.__class__}", "{en[0]}"],
    "target": ["{none}", "", 3, "{es:{en}}"],
    "validation": [0, -1, True, 1e9, "x", float("inf")],
    "test": [0, -1, True, 1e9, "x"],
    "max_prompt_tokens": [0, -1, True, "x", float("inf")],
    "source": [3, {}, {"files": "none.jsonl"}, {"files": "rows.txt"}, {"hub": "x"}, {"saved": "none"}, {"fils": "a"}],
}

PIPE = "|"
ODD = (PIPE, "/dev/zero", "itself")
ROW_FILES = {
    "twice.jsonl": b'{"en": "a", "en": "b", "es": "c"}\n' * 3,
    "deep.jsonl": b'{"en": ' + b"[" * 100_000 + b"\n",
    "digits.jsonl": b'{"en": ' + b"9" * 5000 + b', "es": "x"}\n' * 3,
    "utf16.jsonl": '{"en": "a", "es": "b"}\n'.encode("utf-16") * 3,
    "mixed.jsonl": b'{"en": "a", "es": "b"}\n{"en": "\xe9", "es": "b"}\n{"en": "c", "es": "d"}\n' * 9,
    "surrogate.jsonl": b'{"en": "\\ud800", "es": "b"}\n' * 3,
    "list.jsonl": b'["en", "es"]\n' * 3,
    "cut.json": b'[{"en": "a", "es": "b"}, {"en": ',
    "empty.csv": b"",
    "quote.csv": b'en,es\n"a,b\n' * 3,
    "wide.csv": b"en,es\n" + b"a,b,c\n" * 3,
    "twice.csv": b"en,en,es\na,b,c\n",
    "empty.parquet": b"",
    "zeros.parquet": b"PAR1" + bytes(100) + b"PAR1",
    "cut.jsonl.gz": b"\x1f\x8b\x08\x00",
    "not.csv.zst": b"en,es\na,b\n",
}
_T5 = {"model_type": "t5", "d_model": 8, "d_kv": 4, "num_heads": 2, "num_layers": 1, "vocab_size": 32}
CONFIGS = {
    "d_ff": _T5 | {"d_ff": 10**18},
    "num_decoder_layers": _T5 | {"num_decoder_layers": 10**8},
    "decoder_layers": {"model_type": "bart", "decoder_layers": 10**8},
    "encoder_layers": {"model_type": "bart", "encoder_layers": 10**8},
    "n_layer": {"model_type": "gpt2", "n_layer": 10**8},
    "n_inner": {"model_type": "gpt2", "n_inner": 10**18},
    "layer_types": {"model_type": "qwen3", "layer_types": ["full_attention"] * 10_000},
    "num_experts": {"model_type": "qwen3_moe", "num_experts": 10**12},
}


def cases() -> Iterator[Case]:
    """Name, command, what to write before, and key words of the sentence."""
    for name, command in READERS.items():
        for place, words in PLACES.items():
            yield f"{name}: {place[:20]}", tuple(part.format(place) for part in command), None, words
    for name, command in WRITERS.items():
        for place, words in TARGETS.items():
            yield f"{name} to {place[:20]}", tuple(part.format(place) for part in command), None, words
    for flag, values in NUMBERS.items():
        for value in values:
            others = ("--target", "3200") if flag != "--target" else ()
            yield f"{flag} {value[:9]}", ("rank", "curves.csv", *others, flag, value), None, flag.strip("-")[:5]
    for field in TRAINING:
        for value in WRONG:
            if (field, value) in (("min_steps", 0), ("lora_alpha", "x")) or (field == "learning_rate" and value == []):
                continue
            yield _study(f"training.{field}", value, {**STUDY, "training": {field: value}}, field)
        yield _study(f"training.{field}", 10**400, {**STUDY, "training": {field: 10**400}}, field)
    for field, values in IN_STUDY.items():
        for value in values:
            if field == "target" and value is None:
                continue
            yield _study(field, value, {**STUDY, field: value}, field)
    for field, words in {"budget": "budget", "target": "target"}.items():
        huge = json.dumps(STUDY | {field: "HUGE"}).replace('"HUGE"', "0x" + "f" * 5000)
        yield _written(f"{field} of thousands of digits", "bad.yaml", huge, ("run", "bad.yaml", "--dry-run"), words)
    for field, values in TASKS.items():
        for value in values:
            task = {**TASK, field: value}
            words = f"{field}|{value}" if isinstance(value, str) and "{" not in value else ""
            yield _written(f"task {field} {value!r}", "task.yaml", task, ("data", "show", "task.yaml"), words)
    for field in SIZES:
        for value in (0, -1, 10**18, 10**400, "x", 1.5, [1], True):
            config = {"model_type": "llama", field: value}
            name = f"config {field} {str(value)[:9]}"
            yield _written(name, "model/config.json", config, ("models", "show", "model"), "config.json")
    for cell in CURVE_CELLS:
        text = f"config name,200,400\na,3,{cell}\nb,3,2\n"
        yield _written(f"loss {cell}", "bad.csv", text, ("rank", "bad.csv", "--target", "800"), "bad.csv line 2")
    for header in HEADERS:
        text = f"{header}\na,3,2\n" if header else ""
        yield _written(f"header {header}", "bad.csv", text, ("rank", "bad.csv", "--target", "800"), "bad.csv")
    for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        for place in ("/dev/zero", file, PIPE):
            yield _damaged(file, place, f"{file}.*(device|[Ll]ink)|has no tokenizer|no.*safetensors")
        for content in (b"", b"[" * 200_000, b"\xff" * 100, (2**62).to_bytes(8, "little") + b"{}"):
            yield _damaged(file, content, "safetensors|tokenizer in damaged model|tokenizer_config.json")
    settings = b'{"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": "x"}'
    yield _damaged("tokenizer_config.json", settings, "tokenizer in damaged model cannot be read")
    fields = "".join(f"{{f{n}}}" for n in range(100_000))
    for name, prompt in {"100,000 fields": fields, "one field 100,000 times": "{en}" * 100_000}.items():
        yield _written(name, "task.yaml", TASK | {"prompt": prompt}, ("data", "show", "task.yaml"), "prompt.*at most")
    for name, place in itertools.product(("x.jsonl", "x.json", "x.csv", "x.parquet", "x.jsonl.gz", "x.csv.zst"), ODD):
        yield _at_rows(name, place)
    for name, content in ROW_FILES.items():
        yield _rows(name, content)
    yield _parquet()
    for name, value in CONFIGS.items():
        yield _written(f"config {name}", "model/config.json", value, ("models", "show", "model"), "config.json says")
    for name, text in {
        "deep": "[" * 100_000,
        "deep flow": "a: " + "{a: " * 50_000,
        "tag": "a: !!python/object:os.x",
        "twice": '{"model_type": "gpt2", "n_embd": 8, "n_embd": 16}',
        "bomb": "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20)),
        "merge bomb": "a0: &a0 {x: 1}\n"
        + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 20)),
        "itself": "a: &a {b: *a}",
        "list of itself": "candidates: &a [*a]",
        "two documents": "a: 1\n---\nb: 2\n",
        "tab": "a:\n\tb: 1\n",
        "NUL": "a: \0",
        "control": "a: \x07",
    }.items():
        yield _written(f"yaml {name}", "bad.yaml", text, ("plan", "bad.yaml"), "bad.yaml")
        yield _written(f"json {name}", "model/config.json", text, ("models", "show", "model"), "config.json")


def _damaged(file: str, content: bytes | str, words: str) -> Case:
    """A bundled model, one of whose files is other bytes, or a link that leads somewhere."""
    weights = ("models", "check", "damaged model")
    tokens = ("data", "show", "damaged.yaml", "--model", "damaged model")

    def write() -> None:
        shutil.rmtree("damaged model", ignore_errors=True)
        shutil.copytree(find_folder("pocket:gpt2-0.2m"), "damaged model")
        Path("damaged.yaml").write_text(json.dumps(TASK))
        path = Path("damaged model", file)
        path.unlink()
        if content == PIPE:
            os.mkfifo(path)
        else:
            path.symlink_to(content) if isinstance(content, str) else path.write_bytes(content)

    return f"{file} {str(content)[:12]}", weights if "safetensors" in file else tokens, write, words


def _at_rows(name: str, place: str) -> Case:
    """A task whose rows are to come from a pipe, a device or a link in a circle."""

    def write() -> None:
        path = Path("odd rows", name)
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path) if place == PIPE else path.symlink_to(place if place.startswith("/") else path.name)
        Path("task.yaml").write_text(json.dumps(TASK | {"source": {"files": str(path)}}))

    return f"rows {name} {place}", ("data", "show", "task.yaml"), write, f"{name}.*(device|[Ll]ink|levels)|holds no"


def _rows(name: str, content: bytes) -> Case:
    def write() -> None:
        Path("odd rows").mkdir(exist_ok=True)
        Path("odd rows", name).write_bytes(content)
        Path("task.yaml").write_text(json.dumps(TASK | {"source": {"files": f"odd rows/{name}"}, "test": 1}))

    return f"rows {name}", ("data", "show", "task.yaml"), write, name


def _parquet() -> Case:
    """A column of times that Python does not have."""

    def write() -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        Path("odd rows").mkdir(exist_ok=True)
        years = pa.array([10**15] * 300, pa.timestamp("s"))
        pq.write_table(pa.table({"en": years, "es": ["x"] * 300}), "odd rows/years.parquet")
        Path("task.yaml").write_text(json.dumps(TASK | {"source": {"files": "odd rows/years.parquet"}}))

    return "parquet years", ("data", "show", "task.yaml"), write, r"years.parquet row \d+ .*'en'"


def _study(field: str, value: object, study: dict[str, object], words: str) -> Case:
    return _written(f"{field} {value!r}", "bad.yaml", study, ("run", "bad.yaml", "--dry-run"), words)


def _written(name: str, file: str, content: object, command: tuple[str, ...], words: str) -> Case:
    def write() -> None:
        path = Path(file)
        path.parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        if path.suffix == ".yaml":  # whose infinity and NaN are others than JSON's
            text = re.sub(r"\bInfinity\b", ".inf", re.sub(r"\bNaN\b", ".nan", text))
        path.write_text(text)

    return name, command, write, words


CASES = list(cases())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good files, and with whatever may lie where a file is asked for."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "curves.csv").write_text(CURVES)
    (folder / "rows.jsonl").write_text(ROWS)
    (folder / "a folder").mkdir()
    os.mkfifo(folder / "a pipe")
    (folder / "a device").symlink_to("/dev/zero")
    (folder / "a circle of links").symlink_to("a circle of links")
    (folder / "a broken link").symlink_to("nowhere")
    (folder / "latin-1").write_bytes("a: é\n".encode("latin-1"))
    return folder


def test_there_are_many() -> None:
    names = [name for name, *_ in CASES]
    assert len(names) >= 250


@pytest.mark.parametrize(("command", "write", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_is_refused_by_a_sentence(
    folder: Path,
    command: tuple[str, ...],
    write: Callable[[], object] | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    if write is not None:
        write()
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(SystemExit) as stop:
        main(list(command))
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert "Traceback" not in said
    assert len(said) < 2000
    assert re.search(words, said), said
    if said.startswith("lensjax:"):  # and else the parser of arguments says it in a box
        assert re.fullmatch(r"lensjax: [^\n]*[.?…]\n", said), said
    assert {path.name for path in folder.iterdir()} == before
