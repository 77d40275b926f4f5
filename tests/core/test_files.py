import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from lensjax.core import files
from lensjax.core.errors import InputError
from lensjax.core.files import check_writable, locked, make_folder, new_folder, remove_leftovers, write_files

TEXT = "loss é 名\r\nin nats\n\0"
unprivileged = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser writes anywhere"
)


def snapshot(folder):
    """Every path under `folder`, with the content of the files."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def umask():
    """Sets the umask, and puts it back after the test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_writes_every_file_as_utf8_and_changes_no_line_end(tmp_path):
    write_files({tmp_path / "a": TEXT, tmp_path / "b": "", tmp_path / "名 前.csv": "x"})
    assert snapshot(tmp_path) == {
        tmp_path / "a": TEXT.encode(),
        tmp_path / "b": b"",
        tmp_path / "名 前.csv": b"x",
    }


def test_nothing_to_write(tmp_path):
    write_files({})
    assert snapshot(tmp_path) == {}


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files({Path("a.csv"): TEXT})
    assert snapshot(tmp_path) == {tmp_path / "a.csv": TEXT.encode()}


def test_overwrites_longer_content(tmp_path):
    path = tmp_path / "a"
    path.write_text("x" * 100_000)
    write_files({path: "short"})
    assert snapshot(tmp_path) == {path: b"short"}


@pytest.mark.parametrize("bad", ["missing/b", "folder", "a/b", "x" * 300], ids=["missing", "folder", "file", "long"])
@pytest.mark.parametrize("last", [True, False], ids=["last", "first"])
def test_one_bad_path_leaves_everything_as_it_was(tmp_path, bad, last):
    (tmp_path / "a").write_text("earlier")
    (tmp_path / "folder").mkdir()
    before = snapshot(tmp_path)
    contents = {tmp_path / "a": "new", tmp_path / "fresh": "new"}
    contents = contents | {tmp_path / bad: "new"} if last else {tmp_path / bad: "new"} | contents
    with pytest.raises(InputError, match=bad) as caught:
        write_files(contents)
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == before


def test_full_disk_leaves_everything_as_it_was(tmp_path):
    """A limit on the size of files stands in for a disk that fills up half-way through a write."""
    resource = pytest.importorskip("resource")
    (tmp_path / "a").write_text("earlier")
    before, limits = snapshot(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match="Cannot write"):
            write_files({tmp_path / "a": "new", tmp_path / "b": "x" * 200_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert snapshot(tmp_path) == before


@unprivileged
def test_forbidden_folder_leaves_everything_as_it_was(tmp_path):
    (tmp_path / "a").write_text("earlier")
    (tmp_path / "closed").mkdir(mode=0o500)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="Permission denied"):
        write_files({tmp_path / "a": "new", tmp_path / "closed" / "b": "new"})
    assert snapshot(tmp_path) == before


def test_interruption_leaves_everything_as_it_was(tmp_path):
    (tmp_path / "a").write_text("earlier")
    before = snapshot(tmp_path)

    class Interrupting(dict):
        def items(self):
            yield tmp_path / "a", "new"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_files(Interrupting())
    assert snapshot(tmp_path) == before


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    def interrupted():
        with new_folder(tmp_path / "made") as staging:
            (staging / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert snapshot(tmp_path) == {}
    (tmp_path / "made").mkdir()  # an empty one is taken
    with new_folder(tmp_path / "made") as staging:
        (staging / "a").write_text("whole")
        assert not any((tmp_path / "made").iterdir())
    assert snapshot(tmp_path) == {tmp_path / "made": None, tmp_path / "made" / "a": b"whole"}
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with new_folder(tmp_path / "link") as staging:
        (staging / "a").write_text("whole")
    assert (tmp_path / "empty" / "a").read_text() == "whole"
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(InputError, match="not an empty folder"), new_folder(tmp_path / "made"):
        pytest.fail("what is there would be lost")


def test_what_killed_processes_leave_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "kept.part").write_text("whole")
    with new_folder(tmp_path / "folder") as staging:
        pass
    handle, file = tempfile.mkstemp(dir=tmp_path, prefix=staging.name.removesuffix(".part"), suffix=".part")
    os.close(handle)
    (tmp_path / staging.name).mkdir()  # as if it had not come to its end
    (tmp_path / staging.name / "model.safetensors").write_text("half")
    assert Path(file).exists()
    remove_leftovers(tmp_path)
    assert snapshot(tmp_path) == {tmp_path / "kept.part": b"whole", tmp_path / "folder": None}


def test_a_reader_sees_whole_contents_only(tmp_path):
    path, contents, done, seen = tmp_path / "a", ["x" * 300_000, "y" * 400_000], threading.Event(), set()
    write_files({path: contents[0]})

    def read():
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(50):
        write_files({path: contents[turn % 2]})
    done.set()
    reader.join()
    assert seen <= set(contents)


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)], ids=oct)
def test_permission_bits_follow_the_umask(tmp_path, umask, mask, mode):
    umask(mask)
    write_files({tmp_path / "a": TEXT})
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode
    assert umask(mask) == mask


def test_check_passes_what_can_be_written_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("earlier")
    before = snapshot(tmp_path)
    check_writable([tmp_path / "a", tmp_path / "b", Path("c")])
    check_writable([])
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("paths", "message"),
    [(["a", "b", "a"], "two outputs"), (["folder"], "is a folder"), (["a", "missing/b"], "no folder")],
    ids=["twice", "folder", "missing"],
)
def test_check_refuses(tmp_path, paths, message):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message):
        check_writable([tmp_path / path for path in paths])


@unprivileged
def test_check_refuses_a_forbidden_folder(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(InputError, match="not writable"):
        check_writable([tmp_path / "closed" / "b"])


def test_a_folder_is_made_with_those_it_lies_in_or_was_there(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("file", "file is no folder, and one belongs there; remove it, or choose another place."),
        ("file/b", "file is no folder, and one belongs there; remove it, or choose another place."),
        ("x" * 300, "too long; choose another place."),
    ],
)
def test_a_folder_that_cannot_be_made_is_said_in_one_sentence(tmp_path, bad, said):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        make_folder(tmp_path / bad)
    assert str(caught.value).endswith(said)
    assert "\n" not in str(caught.value)
    (tmp_path / "file").unlink()  # as it says
    make_folder(tmp_path / "file" / "b")


def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    path = tmp_path / "lock"
    with locked(path):
        with pytest.raises(BlockingIOError), locked(path, blocking=False):
            pass
        with locked(tmp_path / "other", blocking=False):
            pass
    with locked(path, blocking=False):
        pass


@pytest.mark.parametrize("advice", [signal.SIGCONT, signal.SIGKILL])
def test_a_lock_of_a_suspended_process_is_not_waited_for_for_ever(tmp_path, monkeypatch, advice):
    monkeypatch.setattr(files, "LONGEST_WAIT", 0.05)
    path = tmp_path / "lock"
    hold = f"import fcntl, os, signal; held = open({str(path)!r}, 'a'); fcntl.flock(held, fcntl.LOCK_EX); "
    with subprocess.Popen([sys.executable, "-c", hold + "os.kill(os.getpid(), signal.SIGSTOP)"]) as holder:
        os.waitpid(holder.pid, os.WUNTRACED)
        told = pytest.raises(InputError, match=r"suspended one, holds .*lock for too long; let it go on, or end it")
        with told, locked(path):
            pass
        holder.send_signal(advice)
        monkeypatch.setattr(files, "LONGEST_WAIT", 60)
        with locked(path):
            pass


@pytest.mark.parametrize("code", ["ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK", "EIO"])
@pytest.mark.parametrize("blocking", [True, False])
def test_file_systems_without_locks_are_gone_on_with(tmp_path, monkeypatch, code, blocking):
    def refuse(file, operation):
        raise OSError(getattr(errno, code), "refused")

    monkeypatch.setattr("fcntl.flock", refuse)
    if code == "EIO":
        with pytest.raises(InputError, match=r"Cannot lock .*refused"), locked(tmp_path / "lock", blocking=blocking):
            pass
    else:
        with pytest.raises(OSError, match="of the work"), locked(tmp_path / "lock", blocking=blocking):
            raise OSError(getattr(errno, code), "of the work")


def test_a_lock_file_that_cannot_be_made_is_said_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"Cannot write .*none/lock"), locked(tmp_path / "none" / "lock"):
        pass
