import hashlib
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lensjax.core.errors import InputError
from lensjax.curves import public as datasets
from lensjax.curves.public import SHA256, VARIABLE, available, rectified
from lensjax.curves.simulated import SIZES

BODY = b"config name,0,200,400,size,family\ngpt2,4.86,4.39,4.29,124439808,GPT2\n"
OTHER = BODY.replace(b"gpt2", b"gpt3")


class Server:
    """A loopback server that answers every request alike and counts them."""

    def __init__(self):
        self.status, self.body, self.announced, self.requests = 200, BODY, None, []
        self.stalled = threading.Event()
        self.stalled.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                outer.stalled.wait(10)
                length = len(outer.body) if outer.announced is None else outer.announced
                self.send_response(outer.status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *args: None  # a client that hangs up is no news
        self.url = f"http://127.0.0.1:{self.http.server_port}/benchmark"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.stalled.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(datasets, "BASE_URL", server.url)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder of a user who has no files yet and no proxy; BODY is the expected file."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(datasets, "user_cache_path", lambda app: tmp_path / "cache" / app)
    pins = {"flan": hashlib.sha256(BODY).hexdigest(), "gigaword": "0" * 64, "wmt19": "1" * 64}
    monkeypatch.setattr(datasets, "SHA256", pins)
    return tmp_path / "cache" / "lensjax" / "rectified"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder that the user names in the environment variable."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(folder))
    return folder


def refusal(name="flan"):
    """The message of a refused `rectified`: one line that says what to do by hand."""
    with pytest.raises(InputError) as caught:
        rectified(name)
    message = str(caught.value)
    assert "\n" not in message
    assert f"save {datasets.BASE_URL}/{name}.csv as FOLDER/{name}.csv and set {VARIABLE}=FOLDER" in message
    return message


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_downloads_once_then_reads_the_cache(server, cache):
    assert available() == ()
    table = rectified("flan")
    assert (table.task, table.models, table.sizes.tolist()) == ("flan", ("gpt2",), [0, 200, 400])
    assert server.requests == ["/benchmark/flan.csv"]
    assert files(cache.parent) == [cache / "flan.csv"]
    assert (cache / "flan.csv").read_bytes() == BODY
    assert available() == ("flan",)


def test_cached_file_needs_no_server(cache, monkeypatch):
    monkeypatch.setattr(datasets.urllib.request, "urlopen", lambda *args, **kwargs: pytest.fail("downloaded"))
    cache.mkdir(parents=True)
    (cache / "flan.csv").write_bytes(BODY)
    assert rectified("flan").models == ("gpt2",)


def test_corrupted_cache_is_downloaded_again(server, cache):
    cache.mkdir(parents=True)
    (cache / "flan.csv").write_bytes(OTHER)
    assert available() == ()
    assert rectified("flan").models == ("gpt2",)
    assert (cache / "flan.csv").read_bytes() == BODY


@pytest.mark.parametrize(
    ("body", "announced"),
    [(OTHER, None), (BODY[:40], None), (BODY[:40], len(BODY)), (b"", None), (b"\xff\x00", None)],
    ids=["another", "cut", "interrupted", "empty", "binary"],
)
def test_unexpected_content_is_not_kept(server, cache, body, announced):
    server.body, server.announced = body, announced
    message = refusal()
    if announced is None:
        assert f"flan.csv has SHA-256 {hashlib.sha256(body).hexdigest()[:12]}…" in message
        assert f"not {datasets.SHA256['flan'][:12]}…" in message
    assert files(cache.parent) == []


def test_an_endless_body_is_read_up_to_the_limit(server, cache, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_BYTES", 1000)
    server.body = bytes(1_000_000)
    assert hashlib.sha256(bytes(1001)).hexdigest()[:12] in refusal()
    assert files(cache.parent) == []


def test_missing_page(server):
    server.status = 404
    assert "404" in refusal()


def test_silent_server_is_given_up(server, monkeypatch):
    monkeypatch.setattr(datasets, "TIMEOUT", 0.1)
    server.stalled.clear()
    assert "timed out" in refusal()


def test_offline(monkeypatch):
    with socket.socket() as bound:  # bound but not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setattr(datasets, "BASE_URL", f"http://127.0.0.1:{bound.getsockname()[1]}")
        assert "Cannot download flan.csv" in refusal()


def test_cache_that_cannot_be_written(server, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    assert "Cannot keep flan.csv" in refusal()


@pytest.mark.parametrize("place", ["rectified/flan.csv", "flan.csv"])
def test_own_file_wins_and_is_taken_as_it_is(own, cache, place):
    cache.mkdir(parents=True)
    (cache / "flan.csv").write_bytes(BODY)
    (own / place).parent.mkdir(exist_ok=True)
    (own / place).write_bytes(OTHER)
    assert available() == ("flan",)
    assert rectified("flan").models == ("gpt3",)


def test_own_folder_without_the_file_is_passed_over(own, server):
    assert rectified("flan").models == ("gpt2",)


@pytest.mark.parametrize("name", ["", "glue", "../flan", "FLAN"])
def test_unknown_name_lists_the_known_ones(name):
    with pytest.raises(InputError, match="choose one of flan, gigaword, wmt19"):
        rectified(name)


PUBLIC = os.environ.get(VARIABLE, "")


@pytest.mark.skipif(not PUBLIC, reason=f"{VARIABLE} names no folder")
@pytest.mark.parametrize("name", ["flan", "gigaword"])
def test_public_files(name, monkeypatch):
    monkeypatch.setenv(VARIABLE, PUBLIC)
    if name not in available():
        pytest.skip(f"{VARIABLE} has no {name}.csv")
    assert hashlib.sha256(datasets._local(name).read_bytes()).hexdigest() == SHA256[name]
    table = rectified(name)
    assert table.loss.shape == (30, 15)
    assert table.sizes.tolist() == [0, *SIZES]
    assert table.measured.all()


def test_import_takes_no_accelerator_library():
    heavy = "{'jax', 'flax', 'transformers', 'tensorflow'}"
    program = f"import sys, lensjax.curves.public; sys.exit({heavy} & set(sys.modules) or 0)"
    root = Path(datasets.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")
