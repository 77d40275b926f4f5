"""The folder of compiled programs that commands share."""

import os
import subprocess
import sys

import pytest

from lensjax.core import compiled
from lensjax.core.compiled import compiled_folder, keep_compiled_programs


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A user's cache folder, and an environment that says nothing of JAX's."""
    for name in ("JAX_COMPILATION_CACHE_DIR", *compiled._SETTINGS):
        monkeypatch.setenv(name, "")  # to be put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_programs_of_one_command_are_there_for_the_next(cache):
    count = """
from lensjax.core.compiled import keep_compiled_programs
keep_compiled_programs()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
jax.jit(lambda x: x @ x)(jax.numpy.ones((3, 3)))
print(len(hits))
"""

    def hits():
        command = [sys.executable, "-c", count]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ}).stdout)

    assert hits() == 0
    assert hits() > 0
    assert list(compiled_folder().iterdir())
    assert compiled_folder().is_relative_to(cache)


def test_what_the_user_says_goes_first(cache, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "elsewhere"
    assert not cache.exists()


def test_without_a_folder_to_write_to_nothing_is_kept(cache):
    cache.touch()
    keep_compiled_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_each_kind_of_cpu_has_a_folder_of_its_own(cache, monkeypatch):
    here = compiled_folder()
    assert compiled_folder() == here
    monkeypatch.setattr(compiled, "_instructions", lambda: "flags : other")
    assert compiled_folder() != here
