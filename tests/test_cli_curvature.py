"""`lensjax ntk`, from outside."""

import json

import numpy as np
import pytest

import lensjax.models
from lensjax.cli import main
from lensjax.curvature import functionals
from lensjax.curvature.ntk import ntk


def run(*arguments):
    main(["ntk", *map(str, arguments)])


def test_kernel_spectrum_and_residual_are_written(save_sums, save_model, tmp_path, capsys):
    spec, folder, out = save_sums(), save_model(), tmp_path / "out"
    run(spec, "--model", folder, "--examples", 12, "--out", out)
    said = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"kernel.npz", "kernel.html", "kernel.json"}
    assert f"Wrote {out / 'kernel.npz'}" in said
    summary = json.loads((out / "kernel.json").read_text())
    arrays = np.load(out / "kernel.npz", allow_pickle=False)
    assert arrays["theta"].shape == (12, 12)
    assert (summary["size"], summary["examples"], summary["functional"]) == (12, 12, "loss")
    assert 1 <= summary["effective_rank"] <= 12
    assert summary["trace"] == pytest.approx(np.trace(arrays["theta"]))
    assert summary["flops"] > 12 * 4 * summary["parameters"]
    assert summary["peak_memory_bytes"] > 2**20
    assert summary["seconds"] > 0
    np.testing.assert_allclose(arrays["eigenvalues"].sum(), np.trace(arrays["theta"]) / 12, rtol=1e-4)
    assert arrays["residuals"][0] == pytest.approx(np.mean(arrays["f0"] ** 2), rel=0.1)
    assert np.all(np.diff(arrays["residuals"]) <= 0)
    page = (out / "kernel.html").read_text()
    assert "Neural tangent kernel of" in page
    assert 'id="spectrum"' in page
    assert 'id="residual"' in page

    run(spec, "--model", folder, "--examples", 5, "--out", out, "--mesh", "data=1,fsdp=8", "--memory-limit", 0.001)
    np.testing.assert_allclose(np.load(out / "kernel.npz")["theta"], arrays["theta"][:5, :5], rtol=1e-3, atol=1e-4)


def test_other_functionals(save_sums, save_model, tmp_path):
    rows = [{"a": i, "b": j, "c": "ab"[(i + j) % 2]} for i in range(20) for j in range(20)]
    spec, folder = save_sums(rows), save_model()
    for functional in ("label_logits", "target_logprob", "fisher_sketch"):
        run(spec, "--model", folder, "--examples", 6, "--out", tmp_path / functional, "--functional", functional)
    labels = np.load(tmp_path / "label_logits" / "kernel.npz")
    assert labels["theta"].shape == (12, 12)
    np.testing.assert_array_equal(labels["y"].reshape(6, 2).sum(axis=1), np.ones(6))
    assert len(json.loads((tmp_path / "label_logits" / "kernel.json").read_text())["labels"]) == 2
    fisher = np.load(tmp_path / "fisher_sketch" / "kernel.npz")
    assert fisher["standard_error"].shape == (6, 6)
    assert "residuals" not in fisher
    assert json.loads((tmp_path / "target_logprob" / "kernel.json").read_text())["target_alignment"] is None


def test_bad_input_is_named(save_sums, save_model, fails, tmp_path):
    spec, folder, out = save_sums(), save_model(n_positions=16), tmp_path / "out"
    given = ["ntk", spec, "--model", folder, "--out", out]
    assert "0 examples are asked for" in fails(*given, "--examples", 0)
    assert "at most 360 examples to train on" in fails(*given, "--examples", 1000)
    assert "these examples need" in fails(*given, "--examples", 4, "--memory-limit", 1e-6)
    rows = [{"a": i, "b": j, "c": chr(97 + i)} for i in range(20) for j in range(20)]
    assert "label_logits is for 16 classes" in fails("ntk", save_sums(rows), *given[2:], "--functional", "label_logits")
    rows = [{"a": i, "b": 10**20, "c": i} for i in range(100)]
    assert "takes 16; lower max_prompt_tokens" in fails("ntk", save_sums(rows), *given[2:], "--examples", 4)
    assert not any(out.iterdir())


def test_the_kernel_is_that_of_the_api(save_sums, save_model, tmp_path):
    from lensjax.curvature.probes import probe_batch, probe_examples
    from lensjax.data.spec import read_spec
    from lensjax.train.spec import FinetuneSpec

    spec, folder = save_sums(), save_model()
    run(spec, "--model", folder, "--examples", 4, "--out", tmp_path / "out", "--mesh", "data=1,fsdp=8")
    model, task = lensjax.models.load(folder), read_spec(spec, FinetuneSpec)
    batch = probe_batch(model, task, probe_examples(task, 4))
    theta = ntk(functionals.loss(model), model.params, batch)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "kernel.npz")["theta"], theta, rtol=1e-4, atol=1e-5)
