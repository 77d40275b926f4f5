"""Settings for all tests."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from hypothesis import settings

# Eight devices, on which sharding is tested; everything else uses the first.
jax.config.update("jax_num_cpu_devices", 8)

# The first example of a jitted function pays for its compilation, and shared machines stall.
settings.register_profile("lensjax", deadline=None, derandomize=True)
settings.load_profile("lensjax")


@pytest.fixture
def save_tokenizer() -> Callable[[Path, int], None]:
    """Writes a tokenizer of the words w0, w1, … to a folder, of which w0 stands for every other."""

    def save(folder: Path, words: int) -> None:
        model = {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(words)}, "unk_token": "w0"}
        tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))

    return save
