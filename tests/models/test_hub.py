"""Finding checkpoints, and reading their configurations and tokenizers; the hub is a server of our own."""

import json
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from huggingface_hub import constants
from transformers import LlamaConfig

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.models.hub import find_folder, read_config, read_tokenizer
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import Example
from lensjax.tasks.tokens import padding_token, tokenise

MakeConfig = Callable[[str], Any]
COMMIT = "c0ffee" * 6 + "0123"


class Hub(ThreadingHTTPServer):
    """As much of the Hugging Face hub as downloads need."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, bytes]] = {}
        self.fetched: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            name, what, revision = found.groups()
            files = self.server.models.get(name)
            if name == "a/gated":
                return self._answer(403, error="GatedRepo")
            if files is None:
                return self._answer(404, error="RepoNotFound")
            if revision not in (None, "main", COMMIT):
                return self._answer(404, error="RevisionNotFound")
            if what == "tree":
                entries = [{"type": "file", "path": p, "size": len(c), "oid": p} for p, c in files.items()]
                return self._answer(200, json.dumps(entries).encode())
            siblings = [{"rfilename": file} for file in files]
            return self._answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        assert found is not None, path
        name, file = found.groups()
        if self.command == "GET":
            self.server.fetched.append(file)
        return self._answer(200, self.server.models[name][file], file)

    def _answer(self, status: int, content: bytes = b"", file: str = "", error: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if error:
            self.send_header("X-Error-Code", error)
        if file:
            self.send_header("ETag", f'"{file}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Tests are silent."""


def _set_endpoint(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    template = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that is empty, and a hub that refuses."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _set_endpoint(monkeypatch, 9)
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that answers."""
    server = Hub()
    thread = Thread(target=server.serve_forever)
    thread.start()
    _set_endpoint(monkeypatch, server.server_port)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    config = LlamaConfig(vocab_size=96, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    lensjax.models.from_config(config).save(folder)
    return folder


@pytest.fixture
def checkpoint(saved: Path, save_tokenizer: Callable[[Path, int], None], tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer, to do with as one likes."""
    folder = shutil.copytree(saved, tmp_path / "llama")
    save_tokenizer(folder, 40)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_folder(tmp_path) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_folder("~") == tmp_path


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "no/such/folder", "~nobody-at-all/model", "file"])
def test_a_path_that_is_no_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"no model folder .*; give the folder that holds its config\.json"):
        find_folder(name)


@pytest.mark.parametrize("name", ["a b", "openai/gpt 2", "gpt2/", "a--b", "gpt2.git", "é", "x" * 5000, "a:b", "-a"])
def test_a_malformed_hub_id(name: str) -> None:
    with pytest.raises(InputError, match=r"neither a folder nor a name on the hub; give one of them\.$") as caught:
        find_folder(name)
    assert len(str(caught.value)) < 200


def test_offline_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"openai-community/gpt2 .* \(HF_HUB_OFFLINE is set\); download it first"):
        find_folder("openai-community/gpt2")
    assert time.monotonic() - begin < 5


def test_a_hub_that_refuses_is_not_waited_for(own_cache: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"openai-community/gpt2 .* cannot be reached; download it where it can"):
        find_folder("openai-community/gpt2")
    assert time.monotonic() - begin < 5
    assert not own_cache.exists()


def test_a_hub_that_never_answers_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        _set_endpoint(monkeypatch, silent.getsockname()[1])
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
        begin = time.monotonic()
        with pytest.raises(InputError, match="cannot be reached"):
            find_folder("openai-community/gpt2")
        assert 0.5 <= time.monotonic() - begin < 5


def test_fetches_what_is_needed_and_never_a_pickle(hub: Hub, checkpoint: Path) -> None:
    hub.models["a/llama"] = contents(checkpoint) | {
        "pytorch_model.bin": b"pickle",
        "onnx/model.safetensors": b"another format",
        "consolidated.safetensors": b"the same again",
        "README.md": b"",
    }
    folder = find_folder("a/llama", what="config")
    assert hub.fetched == ["config.json"]
    assert read_config(folder).model_type == "llama"

    assert find_folder("a/llama", what="tokenizer") == folder
    assert sorted(hub.fetched) == sorted(file for file in contents(checkpoint) if not file.startswith("model"))

    assert find_folder("a/llama") == folder  # what the cache lacks is fetched
    assert sorted(hub.fetched) == sorted(contents(checkpoint))
    assert contents(folder) == contents(checkpoint)

    hub.models.clear()
    assert find_folder("a/llama") == folder  # and nothing asked for that is there
    loaded = lensjax.models.load("a/llama")
    original = lensjax.models.load(checkpoint)
    np.testing.assert_array_equal(loaded.params["embed"]["embedding"], original.params["embed"]["embedding"])


def test_what_the_hub_refuses(hub: Hub, checkpoint: Path, own_cache: Path) -> None:
    files = contents(checkpoint)
    hub.models["a/llama"] = files
    hub.models["a/pickle"] = {"config.json": files["config.json"], "pytorch_model.bin": b"pickle"}
    hub.models["a/dataset"] = {"README.md": b""}
    for name, revision, message in (
        ("a/nothing", None, "no public model on the hub named a/nothing; mend the name"),
        ("a/gated", None, "a/gated asks for its terms to be accepted on the hub; do so"),
        ("a/llama", "v9", "a/llama has no revision 'v9' on the hub; give one of its branches"),
        ("a/pickle", None, r"a/pickle has no \*\.safetensors on the hub; give a model or a revision that has"),
        ("a/dataset", None, r"a/dataset has no config\.json on the hub"),
    ):
        with pytest.raises(InputError, match=message):
            find_folder(name, revision)
    assert hub.fetched == []
    assert not own_cache.exists()


def test_a_page_that_asks_to_log_in_is_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Handler, "do_GET", lambda self: self._answer(200, b"<html>Welcome to our network</html>"))
    with pytest.raises(InputError, match="cannot be reached"):
        find_folder("a/llama")


def test_a_cache_that_cannot_be_written(hub: Hub, checkpoint: Path, own_cache: Path) -> None:
    hub.models["a/llama"] = contents(checkpoint)
    own_cache.write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"a/llama cannot be written to the hub's cache \(.+\); make room, or set HF_"):
        find_folder("a/llama")


BAD_CONFIGS: dict[str, tuple[str, str]] = {
    "empty": ("", r"is not JSON \(.*\); fetch it again"),
    "not JSON": ("{'model_type': 'gpt2'}", "is not JSON"),
    "cut short": ('{"model_type": "gp', "is not JSON"),
    "too deep": ("[" * 100_000, "is not JSON"),
    "NaN": ('{"model_type": "gpt2", "layer_norm_epsilon": NaN}', r"is not JSON \(it holds NaN\)"),
    "list": ('["gpt2"]', "does not say its model_type; take the config.json that came"),
    "no type": ('{"hidden_size": 8}', "does not say its model_type"),
    "type of another type": ('{"model_type": ["gpt2"]}', "does not say its model_type"),
    "unknown type": ('{"model_type": "mamba"}', "model_type 'mamba', which LensJAX does not have; it has bart, .*gpt2"),
    "own code": (
        '{"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}',
        r"\(model_type 'mine'\) needs code of its own \(trust_remote_code\), which LensJAX never runs; it has .*gpt2",
    ),
    "quantised": (
        '{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}',
        "has a quantization_config; only floating-point weights can be loaded, so take the model as it was before",
    ),
    "refused by its class": ('{"model_type": "llama", "hidden_size": "wide"}', "does not describe a llama model .*int"),
    "heads that do not divide": (
        '{"model_type": "llama", "hidden_size": 32, "num_attention_heads": 5}',
        "does not describe a llama model .*32.*multiple",
    ),
    "no layers": ('{"model_type": "llama", "num_hidden_layers": 0}', "says num_hidden_layers is 0, which is no whole"),
    "negative width": ('{"model_type": "gpt2", "n_embd": -8}', "says hidden_size is -8"),
    "key heads": (
        '{"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 3}',
        "num_key_value_heads is 3, which does not divide num_attention_heads 4",
    ),
    "unknown rotary": (
        '{"model_type": "llama", "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}',
        "does not describe a llama model .*factor",
    ),
}


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_bad_config_is_one_sentence(kind: str, tmp_path: Path) -> None:
    text, message = BAD_CONFIGS[kind]
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_config(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "config.json"))
    assert re.fullmatch(r"[^\n]+\.", str(caught.value))


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json; give the folder of a model as transformers saves it"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"model_type": "gpt2", "name": "\xff"}')
    with pytest.raises(InputError, match=r"config\.json is not UTF-8 text; fetch it again"):
        read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(InputError, match=r"Cannot read .*config\.json: it is a folder; fetch it again"):
        read_config(tmp_path)


def test_code_that_a_known_model_brings_is_not_needed(checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}))
    assert lensjax.models.load(checkpoint).family.model_type == "llama"


def test_a_tokenizer_is_read_and_saved_to_the_byte(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "generation_config.json").write_text('{"temperature": 0.5}')
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    model = lensjax.models.load(checkpoint)
    assert model.tokenizer("w3 w1 unheard").input_ids == [3, 1, 0]
    model.save(tmp_path / "again")
    before, after = contents(checkpoint), contents(tmp_path / "again")
    assert before.keys() == after.keys()
    assert all(after[name] == before[name] for name in before if name not in ("config.json", "model.safetensors"))


def test_a_tokenizer_of_another_model(checkpoint: Path, save_tokenizer: Callable[[Path, int], None]) -> None:
    save_tokenizer(checkpoint, 97)
    with pytest.raises(InputError, match="has 97 tokens and the model 96 embeddings; take tokenizer and weights from"):
        _ = lensjax.models.load(checkpoint).tokenizer


def test_a_tokenizer_may_have_added_tokens_beyond_the_embedding(checkpoint: Path) -> None:
    model = lensjax.models.load(checkpoint)
    tokenizer = model.tokenizer
    assert len(tokenizer) == 40
    tokenizer.add_tokens([f"<w{n}>" for n in range(40, 96)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<pad>"})
    tokenizer.eos_token = "w5"
    tokenizer.save_pretrained(checkpoint)
    again = lensjax.models.load(checkpoint).tokenizer
    assert len(again) == 98
    assert again.pad_token_id >= 96 > padding_token(again, 96)
    task = TaskSpec(name="t", source={"files": {"train": ["none.jsonl"]}}, target="{a}")
    rows = [Example("w3 w1", " w2", "a.jsonl line 1"), Example("w3", " <image>", "a.jsonl line 2")]
    tokens = tokenise(rows[:1], again, task, encoder_decoder=False, embeddings=96)
    assert tokens.ids.max() < 96
    with pytest.raises(
        InputError, match=r"a\.jsonl line 2 has the token '<image>' \(number 9\d\), and the model has 96 "
    ):
        tokenise(rows, again, task, encoder_decoder=False, embeddings=96)


def test_a_tokenizer_that_cannot_be_read(checkpoint: Path, tmp_path: Path, tiny_config: MakeConfig) -> None:
    config = tiny_config("llama")
    (checkpoint / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(InputError, match=rf"The tokenizer in {checkpoint} cannot be read \(.+\); fetch it again"):
        read_tokenizer(checkpoint, config)
    shutil.rmtree(checkpoint)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="bare has no tokenizer; take the folder with the tokenizer files"):
        read_tokenizer(tmp_path / "bare", config)
    with pytest.raises(InputError, match="made from a configuration has no tokenizer"):
        _ = lensjax.models.from_config(config).tokenizer


def test_a_tokenizer_with_code_of_its_own_is_not_asked_about(checkpoint: Path, tiny_config: MakeConfig) -> None:
    (checkpoint / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    (checkpoint / "evil.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(InputError, match=r"The tokenizer in .* cannot be read"):
        read_tokenizer(checkpoint, tiny_config("llama"))
