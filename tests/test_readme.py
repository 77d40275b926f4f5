"""The README's examples of the Python API, with a model that is part of the package."""

import re
from pathlib import Path

import jax
import numpy as np

README = Path(__file__).parents[1] / "README.md"


def example(containing):
    """The one Python example in the README that holds some text."""
    found = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [code for code in found if containing in code]
    return code


def test_models_are_loaded_applied_differentiated_and_saved(tmp_path, monkeypatch):
    code = example("logits = jax.jit(model.apply)")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code.replace("openai-community/gpt2", "pocket:gpt2-0.2m"), names)
    assert np.isfinite(names["loss"])
    assert jax.tree.structure(names["gradient"]) == jax.tree.structure(names["model"].params)
    assert (tmp_path / "my-model" / "model.safetensors").exists()


def test_curves_are_fitted_and_asked(tmp_path, monkeypatch):
    code = example("posterior.probability_best")
    rows = "\n".join(
        f"m{i},{','.join(f'{(3 + i / 4) * n**-0.1:.4f}' for n in (200, 400, 800, 1600))}" for i in range(3)
    )
    (tmp_path / "curves.csv").write_text(f"model,200,400,800,1600\n{rows}\n")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["posterior"].predict(1_638_400).loss.shape == (3, 1)
