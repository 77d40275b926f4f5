"""What is known of every family."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.core_model_loading import revert_weight_conversion

from lensjax.core.errors import InputError
from lensjax.core.registry import Registry
from lensjax.models import families, family
from lensjax.models.family import Family, family_of, supported
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options


@pytest.mark.parametrize("model_type", supported())
def test_a_family_is_what_transformers_has_under_its_name(model_type: str, tiny_config: Callable[[str], Any]) -> None:
    found = family_of(model_type)
    config = tiny_config(model_type)
    assert found.model_type == model_type
    assert getattr(transformers, found.architecture).config_class is type(config)
    assert bool(config.is_encoder_decoder) == found.encoder_decoder
    assert found.examples
    assert all(name.count("/") == 1 for name in found.examples)


@pytest.mark.parametrize("model_type", supported())
def test_its_table_names_the_tensors_of_transformers(model_type: str, tiny_config: Callable[[str], Any]) -> None:
    torch = pytest.importorskip("torch")
    config = tiny_config(model_type)
    ours = abstract_model(config, make_options())
    with torch.device("meta"):
        model = getattr(transformers, ours.family.architecture)(config)
    named = revert_weight_conversion(model, model.state_dict())  # as checkpoints name them
    there = {name: tuple(value.shape) for name, value in named.items()}
    for tensor in ours.family.tensors(config, ours.params):
        for name in tensor.names.flat:
            assert there[name] == tensor.stored_shape


def test_a_family_is_a_file_of_its_name() -> None:
    files = {path.stem for path in Path(families.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(supported())


def test_an_installed_package_adds_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_family.py").write_text(
        "from dataclasses import replace\n"
        "from lensjax.models.family import family_of\n"
        "FAMILY = replace(family_of('llama'), model_type='theirs')\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lensjax.families]\ntheirs = their_family:FAMILY\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    fresh: Registry[Family] = Registry("family", "lensjax.models.families", "lensjax.families")
    fresh.register("llama")(family_of("llama"))  # whose module was imported before, and registers itself once
    monkeypatch.setattr(family, "FAMILIES", fresh)
    assert "theirs" in supported()
    assert family_of("theirs").architecture == "LlamaForCausalLM"


@pytest.mark.parametrize("model_type", ["mamba", "GPT2", "", "x" * 1000])
def test_an_unknown_family_names_the_known(model_type: str) -> None:
    with pytest.raises(InputError, match=r"^config\.json says model_type '.*', which LensJAX does not have") as caught:
        family_of(model_type)
    assert ", ".join(supported()) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_configuration_that_modules_cannot_take_is_named(tiny_config: Callable[[str], Any]) -> None:
    config = tiny_config("llama")
    config.rope_parameters = {"rope_theta": 1e4, "rope_type": ["default"]}
    with pytest.raises(InputError, match=r"config.json describes no llama model that can be built \(TypeError: unhash"):
        abstract_model(config, make_options())
