"""Hashes of files that are kept, and never of what a file held before."""

import os

import pytest

from lensjax.core import hashes


@pytest.mark.parametrize("size", [100, 2**24])  # that of larger files is kept on disk, too
def test_a_change_is_noticed_though_size_time_and_inode_are_as_before(tmp_path, monkeypatch, size):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_SETTLED", -1.0)  # else it would not be kept so soon
    path, read = tmp_path / "weights", []
    path.write_bytes(bytes(size))
    monkeypatch.setattr(hashes, "_hash", lambda one, made=hashes._hash: read.append(one) or made(one))
    before, first = path.stat(), hashes.file_hash(path)
    assert hashes.file_hash(path) == first
    hashes._known.clear()
    assert hashes.file_hash(path) == first
    assert len(read) == (1 if size >= 2**24 else 2)
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert hashes.file_hash(path) != first
