"""Checkpoints: written while training goes on, whole or not at all, and refused where they are of something else."""

import gc
import os
import resource
import shutil
import signal
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import lensjax.models
from lensjax.core.artefacts import Damaged
from lensjax.core.errors import InputError
from lensjax.train.checkpoint import Checkpoints
from lensjax.train.step import State

# Of damaged files, Orbax leaves readers behind that were never waited for.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def forget_readers():
    yield
    gc.collect()


@pytest.fixture
def opened():
    """Opens checkpoints that are closed when the test ends."""
    made = []

    def make(folder):
        made.append(Checkpoints(folder))
        return made[-1]

    yield make
    for checkpoints in made:
        checkpoints.close()


def make_state(value, size=1000):
    kernel = jnp.full((size, 10), value, jnp.float32)
    return State({"kernel": kernel, "half": kernel[:8].astype(jnp.bfloat16)}, (jnp.int32(value), {"mu": kernel + 1}))


def save(checkpoints, step, state=None):
    state = make_state(step) if state is None else state
    checkpoints.save(step, state, {"kernel": state.params["kernel"] + 2}, {"step": step, "loss": 0.1})


def restore(checkpoints):
    """Step, record, state and best parameters of the last checkpoint."""
    step, record = checkpoints.record()
    state = make_state(0.0)
    return step, record, *checkpoints.restore(step, state, {"kernel": state.params["kernel"]})


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_the_last_checkpoint_is_kept_with_everything_in_it(opened, tmp_path):
    checkpoints = opened(tmp_path / "c")
    assert checkpoints.record() is None
    for step in (3, 7):
        save(checkpoints, step)
    checkpoints.wait()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["7"]
    step, record, state, best = restore(opened(tmp_path / "c"))
    assert (step, record) == (7, {"step": 7, "loss": 0.1})
    assert_same(state, make_state(7))
    assert_same(best, {"kernel": make_state(9).params["kernel"]})


def test_what_was_saved_may_be_overwritten_at_once(opened, tmp_path):
    checkpoints = opened(tmp_path)
    state = make_state(1, size=1_000_000)
    jax.block_until_ready(state)
    expected = jax.tree.map(lambda leaf: np.array(leaf), state)
    overwrite = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 - 1, state), donate_argnums=0)
    save(checkpoints, 1, state)
    gone = overwrite(state)
    found, _ = checkpoints.restore(1, gone, {"kernel": gone.params["kernel"]})
    assert_same(found, expected)


@pytest.mark.eight_devices
def test_a_checkpoint_is_restored_onto_other_devices(opened, tmp_path):
    def placed(state, axes, devices):
        mesh = lensjax.models.make_mesh(axes, jax.devices()[:devices])
        spread = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        return jax.tree.map(lambda leaf: jax.device_put(leaf, spread) if leaf.ndim else leaf, state)

    state = jax.tree.map(
        lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape).astype(leaf.dtype), make_state(3)
    )
    checkpoints = opened(tmp_path)
    eight, four = placed(state, "fsdp=8", 8), placed(make_state(0.0), "data=2,fsdp=2", 4)
    save(checkpoints, 5, eight)
    found, _ = checkpoints.restore(5, four, {"kernel": four.params["kernel"]})
    assert_same(found, state)
    assert found.params["kernel"].sharding == four.params["kernel"].sharding


def test_a_write_that_was_cut_short_is_passed_over_and_cleared_away(opened, tmp_path):
    folder = tmp_path / "c"
    checkpoints = opened(folder)
    save(checkpoints, 3)
    checkpoints.wait()
    left = folder / "9.orbax-checkpoint-tmp"
    shutil.copytree(folder / "3", left)
    (left / "_CHECKPOINT_METADATA").unlink(missing_ok=True)
    again = opened(folder)
    step, _, state, _ = restore(again)
    assert step == 3
    assert_same(state, make_state(3))
    deadline = time.monotonic() + 30
    while left.exists() and time.monotonic() < deadline:  # Orbax clears it away in the background
        time.sleep(0.05)
    assert not left.exists()
    save(again, 9)
    again.wait()
    assert restore(opened(folder))[0] == 9


@pytest.mark.parametrize("kept", ["nothing", "half of each file", "no array's values", "no record", "no description"])
def test_a_damaged_checkpoint_is_named_in_one_sentence(opened, tmp_path, kept):
    folder = tmp_path / "c"
    checkpoints = opened(folder)
    save(checkpoints, 3)
    checkpoints.wait()
    files = [path for path in (folder / "3").rglob("*") if path.is_file()]
    if kept == "half of each file":
        for path in files:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kept == "nothing":
        for path in files:
            path.unlink()
    elif kept == "no array's values":
        removed = [path for path in files if path.parent.name == "d" or "ocdbt.process_0" in str(path)]
        assert removed
        for path in removed:
            path.unlink()
    elif kept == "no record":
        shutil.rmtree(folder / "3" / "record")
    else:
        removed = [path for path in files if path.name in ("_METADATA", "manifest.ocdbt")]
        assert removed
        for path in removed:
            path.unlink()
    with pytest.raises(Damaged, match="remove it, and it is made again") as caught:
        restore(opened(folder))
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(folder))
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_of_any_file_is_noticed_or_changes_nothing(opened, tmp_path):
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((400, 10)), jnp.float32)  # which hardly compresses
    state = State(
        {"kernel": noise, "half": noise[:8].astype(jnp.bfloat16)}, (jnp.int32(5), {"mu": noise > 0, "nu": noise[:, 0]})
    )
    checkpoints, outcomes = opened(tmp_path / "c"), []
    save(checkpoints, 3, state)
    checkpoints.wait()
    for number, path in enumerate(path for path in sorted((tmp_path / "c").rglob("*")) if path.is_file()):
        folder = shutil.copytree(tmp_path / "c", tmp_path / str(number))
        damaged = folder / path.relative_to(tmp_path / "c")
        content = bytearray(damaged.read_bytes())
        if content:
            content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        again = opened(folder)
        try:
            step, record = again.record()
            found, best = again.restore(step, state, {"kernel": noise})
        except Damaged:
            outcomes.append("noticed")
            continue
        assert (step, record) == (3, {"step": 3, "loss": 0.1}), path
        assert_same(found, state)
        assert_same(best, {"kernel": noise + 2})
        outcomes.append("same")
    assert outcomes.count("noticed") > len(outcomes) / 3


def test_a_pipe_in_a_checkpoint_is_not_waited_for(opened, tmp_path):
    checkpoints = opened(tmp_path / "c")
    save(checkpoints, 3)
    checkpoints.wait()
    largest = max(
        (path for path in (tmp_path / "c").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    largest.unlink()
    os.mkfifo(largest)
    with pytest.raises(Damaged, match="in it is a link that leads nowhere, a pipe or a device"):
        restore(opened(tmp_path / "c"))


@pytest.fixture
def full_disk():
    """Within it no file may grow beyond 64 kB, as if the disk were full."""
    from contextlib import contextmanager

    @contextmanager
    def limit():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    return limit


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # writers whose event loop has gone
def test_a_full_disk_is_said_in_one_sentence_and_the_checkpoint_before_is_kept(full_disk, opened, tmp_path, caplog):
    folder = tmp_path / "c"
    checkpoints = Checkpoints(folder)
    save(checkpoints, 3)
    checkpoints.wait()
    noise = np.random.default_rng(0).standard_normal((40_000, 10)).astype(np.float32)  # else it is compressed away
    state = State(
        {"kernel": jnp.asarray(noise), "half": jnp.zeros(8, jnp.bfloat16)}, (jnp.int32(5), {"mu": jnp.ones(9)})
    )
    with full_disk():
        save(checkpoints, 5, state)
        with pytest.raises(InputError, match="make room or remove the folder") as caught:
            checkpoints.wait()
        checkpoints.close()
    assert "(File too large)" in str(caught.value)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(folder))
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    step, _, found, _ = restore(opened(folder))
    assert step == 3
    assert_same(found, make_state(3))


@pytest.fixture(scope="module")
def trial(make_trial):
    return make_trial("llama", max_steps=4, evaluate_every=2)


def test_a_checkpoint_of_something_else_is_refused_by_what_differs(trial, with_identity, tmp_path):
    trial.fine_tune(tmp_path, checkpoint_every=2)
    for changes, said in (
        ({"learning rate": 1e-3}, "another learning rate;"),
        ({"model": "b", "training examples": "c"}, "another model and training examples;"),
        ({"spec": "b"}, "another spec;"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            trial.fine_tune(tmp_path, run=with_identity(trial.run, **changes))
        assert str(tmp_path) in str(caught.value)
    assert trial.fine_tune(tmp_path)[1].step == 4


def test_a_finished_run_is_not_trained_again(trial, observer, tmp_path):
    best, progress = trial.fine_tune(tmp_path, checkpoint_every=2)
    seen = observer()
    again, same = trial.fine_tune(tmp_path, seen, checkpoint_every=2)
    assert seen.steps == []
    assert replace(same, seconds=0, waiting=0) == replace(progress, seconds=0, waiting=0)
    assert_same(again, best)


def test_validations_are_followed_by_a_checkpoint_once_a_minute_has_passed(trial, tmp_path, monkeypatch):
    trial.fine_tune(tmp_path / "at once")
    assert list((tmp_path / "at once").iterdir()) == []
    monkeypatch.setattr("lensjax.train.loop._MINUTE", 0.0)
    trial.fine_tune(tmp_path / "later")
    assert [path.name for path in (tmp_path / "later").iterdir()] == ["4"]


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(InputError, match="checkpoints cannot be written or read"):
        Checkpoints(tmp_path / "checkpoints")
