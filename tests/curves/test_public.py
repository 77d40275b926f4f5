import hashlib
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.core.errors import InputError
from lensjax.curves import public as datasets
from lensjax.curves.public import SHA256, SIZES, VARIABLE, available, rectified, simulated

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
    pins = {"flan": hashlib.sha256(BODY).hexdigest(), "gigaword": "0" * 64, "wikitext": None}
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


def test_unpinned_file_is_read_from_the_own_folder_only(server, own, cache):
    cache.mkdir(parents=True)
    (cache / "wikitext.csv").write_bytes(BODY)
    assert available() == ()
    assert "no known SHA-256" in refusal("wikitext")
    assert server.requests == []
    (own / "wikitext.csv").write_bytes(BODY)
    assert rectified("wikitext").task == "wikitext"
    assert available() == ("wikitext",)


@pytest.mark.parametrize("name", ["", "glue", "../flan", "FLAN"])
def test_unknown_name_lists_the_known_ones(name):
    with pytest.raises(InputError, match="choose one of flan, gigaword, wikitext"):
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


def test_simulated_is_labelled_and_complete():
    table = simulated()
    assert table.task == "simulated"
    assert table.models == tuple(f"simulated-{i:02d}" for i in range(12))
    assert table.sizes.tolist() == [200 * 2**k for k in range(14)]
    assert table.sizes[-1] == 1_638_400
    assert table.loss.shape == (12, 14)
    assert table.measured.all()
    assert sorted(set(table.families)) == [f"family-{k}" for k in range(4)]
    assert np.all((table.parameters >= 1e8) & (table.parameters <= 1e10))


def test_simulated_depends_on_the_seed_alone():
    first, again, other = simulated(seed=3), simulated(seed=3), simulated(seed=4)
    assert first.to_csv() == again.to_csv()
    assert not np.array_equal(first.loss, other.loss)


def test_simulated_law_does_not_depend_on_the_sizes_asked_for():
    few = simulated(seed=5, sizes=(409_600, 0, 200), noise=0)
    assert few.sizes.tolist() == [0, 200, 409_600]
    np.testing.assert_allclose(few.loss[:, 1:], simulated(seed=5, noise=0).loss[:, [0, 11]], rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**63))
def test_simulated_law_keeps_its_ranges(seed):
    loss = simulated(seed, noise=0).loss
    falls = -np.diff(np.log(loss), axis=1)
    assert np.all((loss > 1) & (loss < 6))
    assert np.all(falls > 0)
    assert np.all((falls.mean(axis=1) > 0.02) & (falls.mean(axis=1) < 0.1))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    models=st.integers(1, 120),
    families=st.integers(1, 9),
    sizes=st.lists(st.integers(0, 10**15), min_size=1, max_size=6, unique=True),
    noise=st.floats(0, 0.1),
)
def test_simulated_losses_are_positive(seed, models, families, sizes, noise):
    table = simulated(seed, models, families, sizes, noise)
    assert table.loss.shape == (models, len(sizes))
    assert len(set(table.families)) == min(models, families)
    assert np.all(table.loss > 0)
    assert table.measured.all()


def test_noise_has_the_standard_deviation_asked_for():
    steady, noisy = (simulated(models=2000, sizes=(200, 400), noise=noise).loss[:, 0] for noise in (0, 0.02))
    np.testing.assert_allclose(np.log(noisy / steady).std(), 0.02, rtol=0.1)


def test_some_curves_jump_for_good():
    steady, noisy = (simulated(models=200, noise=noise).loss for noise in (0, 0.001))
    change = np.log(noisy / steady)
    jumped = np.abs(change[:, -1]) > 0.003
    assert 0.1 < jumped.mean() < 0.3  # a quarter jump, some of them too little to tell
    assert np.all(np.abs(change[:, 0]) < 0.005)


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": -1},
        {"models": 0},
        {"families": 0},
        {"noise": -0.1},
        {"noise": 2},
        {"noise": float("nan")},
        {"sizes": (-1, 200)},
        {"sizes": (200, 200)},
        {"sizes": (0.5,)},
    ],
    ids=str,
)
def test_simulated_refuses(arguments):
    with pytest.raises(InputError):
        simulated(**arguments)
