"""What is known of every family."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import transformers
from transformers.core_model_loading import revert_weight_conversion

from lensjax.core.errors import InputError
from lensjax.models import family
from lensjax.models.family import family_of, supported
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options
from lensjax.models.weights import tensors


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
    for tensor in tensors(ours.params, ours.family.table(config)):
        for name in tensor.names.flat:
            assert there[name] == tensor.stored_shape


def test_every_family_of_a_module_is_supported() -> None:
    modules = {importlib.import_module(f"lensjax.models.families.{name}") for name in family._MODULES.values()}
    assert sorted(entry.model_type for module in modules for entry in module.FAMILIES) == supported()


@pytest.mark.parametrize("model_type", ["mamba", "GPT2", "", "x" * 1000])
def test_an_unknown_family_names_the_known(model_type: str) -> None:
    with pytest.raises(InputError, match=r"^config\.json says model_type '.*', which LensJAX does not have") as caught:
        family_of(model_type)
    assert ", ".join(supported()) in str(caught.value)
    assert len(str(caught.value)) < 500
