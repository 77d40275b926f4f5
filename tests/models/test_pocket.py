"""The models that are part of the package."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.models import pocket as models
from lensjax.models.hub import read_config
from lensjax.train.runs import check_name, model_name

READ = {  # what decoders have learned to expect
    "pocket:gpt2-0.2m": "The Congress of the United States and the people of this country",
    "pocket:llama-0.3m": "KING HENRY.\nMy lord, what is the matter with you?",
    "pocket:opt-0.5m": "KING HENRY.\nMy lord, what is the matter with you?",
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle that may be damaged."""
    shutil.copytree(models._FOLDER, tmp_path / "weights")
    monkeypatch.setattr(models, "_FOLDER", tmp_path / "weights")
    models._manifest.cache_clear()
    yield tmp_path / "weights"  # type: ignore[misc]
    models._manifest.cache_clear()


def test_four_or_five_small_models_of_as_many_families_are_bundled() -> None:
    names = models.bundled()
    assert 4 <= len(names) <= 5
    families = {read_config(models.bundled_folder(name)).model_type for name in names}
    assert len(families) == len(names)
    assert sum(path.stat().st_size for path in models._FOLDER.rglob("*")) < 15e6


@pytest.mark.parametrize("name", models.bundled())
def test_a_bundled_model_is_named_everywhere_as_one_from_the_hub_is(name: str) -> None:
    assert model_name(name) == name.removeprefix("pocket:")
    check_name(model_name(name))
    model = lensjax.models.load(name)
    text = READ.get(name, "a text")
    batch = dict(model.tokenizer([text], return_tensors="np"))
    if model.family.encoder_decoder:
        batch["labels"] = batch["input_ids"]
    loss = float(jax.jit(model.loss)(model.params, batch))
    assert np.isfinite(loss)
    if name in READ:
        assert loss < 5.5 < np.log(model.config.vocab_size)
    card = (models.bundled_folder(name) / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("license: apache-2.0", "tokens in all", "nats per token", f"# {name}"))


def test_a_weight_file_that_was_changed_is_noticed(own: Path) -> None:
    name = models.bundled()[0]
    path = own / name.removeprefix("pocket:") / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors has been changed since it was installed"):
        lensjax.models.load(name)


def test_a_file_that_is_gone_is_named(own: Path) -> None:
    name = models.bundled()[0]
    (own / name.removeprefix("pocket:") / "config.json").unlink()
    with pytest.raises(InputError, match=r"Cannot read .*config\.json.*install LensJAX again"):
        lensjax.models.load(name)


def test_a_damaged_manifest_is_said(own: Path) -> None:
    (own / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not whole"):
        models.bundled()


def test_an_unknown_name_lists_those_that_there_are() -> None:
    with pytest.raises(InputError, match=r"no bundled model .pocket:gpt5.; choose one of pocket:gpt2-0\.2m"):
        lensjax.models.load("pocket:gpt5")


def test_a_bundle_is_written_with_hashes_that_hold(own: Path, tmp_path: Path) -> None:
    shutil.copytree(models.bundled_folder(models.bundled()[0]), tmp_path / "one")
    models.write_bundle({"mine": tmp_path / "one"})
    assert models.bundled() == ("pocket:mine",)
    assert models.bundled_folder("pocket:mine") == own / "mine"
