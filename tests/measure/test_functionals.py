"""The registry of functionals, and one that another package adds to it."""

import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.measure.functionals import FUNCTIONALS
from lensjax.measure.kernel import kernel_flops, measure_kernel

MODULE = """
from lensjax.measure.functionals import Functional


def first_logit(model):
    return lambda params, example: model.apply(params, example)[-1, :1]


FIRST_LOGIT = Functional("Of the last logit of the first token", lambda model, classes, samples: first_logit(model))
"""
NAMES = ("fisher_sketch", "label_logits", "loss", "target_logprob")


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package with a functional that is called first_logit."""
    (tmp_path / "tiny_functionals.py").write_text(MODULE)
    folder = tmp_path / "tiny_functionals-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-functionals\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[lensjax.functionals]\nfirst_logit = tiny_functionals:FIRST_LOGIT\n")
    monkeypatch.syspath_prepend(tmp_path)
    FUNCTIONALS.__dict__.pop("_plugins", None)
    yield "first_logit"
    FUNCTIONALS.__dict__.pop("_plugins", None)
    FUNCTIONALS._entries.pop("first_logit", None)


def test_each_functional_is_registered_by_its_file():
    assert FUNCTIONALS.names == NAMES
    assert all(functional.description for _, functional in FUNCTIONALS.items())


def test_a_package_adds_a_functional(plugin, tiny_config, random_model):
    assert FUNCTIONALS.names == tuple(sorted((*NAMES, plugin)))
    model = random_model(tiny_config("gpt2"))
    ids = np.random.default_rng(0).integers(3, 96, (3, 6)).astype(np.int32)
    batch = {"input_ids": ids, "labels": ids}
    kernel = measure_kernel(model, batch, plugin)
    assert kernel.theta.shape == (3, 3)
    assert kernel.residuals is None
    assert kernel.flops == kernel_flops(model, batch, plugin)


def test_a_name_that_is_not_there_gets_a_suggestion():
    with pytest.raises(InputError, match="There is no functional 'label_logit'; did you mean label_logits"):
        FUNCTIONALS["label_logit"]
