"""`lensjax ntk` and `lensjax hessian`, from outside."""

import json
import shutil

import jax
import numpy as np
import pytest

import lensjax.models
from lensjax.cli.main import main
from lensjax.core.artefacts import sealed
from lensjax.curvature.bound import layer_terms
from lensjax.curvature.dynamics import effective_rank, kernel_drift
from lensjax.curvature.ntk.ntk import ntk
from lensjax.measure.functionals.loss import loss
from lensjax.measure.probes import probe_batch, probe_examples
from lensjax.measure.rungs import Rung, ladder_summary
from lensjax.tasks.spec import read_spec
from lensjax.train.ladder import measure_curve
from lensjax.train.spec import FinetuneSpec

SIZES = (12, 24, 48)
FEW = ("--top", 2, "--steps", 3, "--samples", 2, "--products", 4)


def run(*arguments, command="ntk"):
    main([command, *map(str, arguments)])


@pytest.mark.eight_devices
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
    assert summary["trace"] == pytest.approx(np.trace(arrays["theta"]) / 12)
    assert summary["flops"] > 12 * 4 * summary["parameters"]
    assert summary["peak_memory_bytes"] > 2**20
    assert summary["seconds"] > 0
    assert f"Verified: {summary['verified']}." in said
    assert summary["verified"].endswith("agree with plain gradients")
    assert summary["verification"]["largest"] < 1
    np.testing.assert_allclose(arrays["eigenvalues"].sum(), np.trace(arrays["theta"]) / 12, rtol=1e-4)
    assert arrays["residuals"][0] == pytest.approx(np.mean(arrays["f0"] ** 2), rel=0.1)
    assert np.all(np.diff(arrays["residuals"]) <= 0)
    page = (out / "kernel.html").read_text()
    assert "Neural tangent kernel of" in page
    assert 'id="spectrum"' in page
    assert 'id="residual"' in page

    few = "--examples", 5, "--mesh", "data=1,fsdp=8", "--memory-limit", 0.001, "--no-verify"
    run(spec, "--model", folder, *few, "--out", out)
    assert "Verified: nothing." in capsys.readouterr().out
    np.testing.assert_allclose(np.load(out / "kernel.npz")["theta"], arrays["theta"][:5, :5], rtol=1e-3, atol=1e-4)


@pytest.mark.long
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


def test_kernels_of_many_examples_are_estimated(save_sums, save_model, tmp_path, capsys, fails):
    spec, folder = save_sums(), save_model(num_hidden_layers=1, hidden_size=16)
    given = [spec, "--model", folder, "--examples", 9]
    for name, way in {
        "whole": (),
        "sketch": ("--sketch", 2048, "--explain"),
        "rank": ("--rank", 3, "--explain"),
    }.items():
        run(*given, "--out", tmp_path / name, *way)
    said = capsys.readouterr().out
    whole, sketch, rank = (np.load(tmp_path / name / "kernel.npz") for name in ("whole", "sketch", "rank"))
    assert sketch["features"].shape == (9, 2048)
    norm = np.linalg.norm(whole["theta"])
    assert np.linalg.norm(sketch["features"] @ sketch["features"].T - whole["theta"]) < 0.2 * norm
    np.testing.assert_allclose(rank["eigenvalues"], whole["eigenvalues"][:3], rtol=1e-3)
    for found in (sketch, rank):
        assert found["residuals"][0] == pytest.approx(whole["residuals"][0], rel=0.05)
    summary = json.loads((tmp_path / "sketch" / "kernel.json").read_text())
    assert abs(summary["trace"] - np.trace(whole["theta"]) / 9) < 5 * summary["trace_standard_error"]
    assert summary["largest_eigenvalue"] == pytest.approx(whole["eigenvalues"][0], rel=0.2)  # of Θ / N too
    assert said.count("9 examples at a time, at most 0.") == 2
    plans = [json.loads((tmp_path / name / "kernel.json").read_text())["plan"] for name in ("sketch", "rank")]
    assert all(plan["flops"] > 0 and plan["host_bytes"] > 0 for plan in plans)
    assert "2,048 random features of 9 rows: Θ / N has trace " in said
    assert "3 eigenvalues of 9: largest eigenvalue " in said
    assert "random features" in (tmp_path / "sketch" / "kernel.html").read_text()
    given = ["ntk", *given, "--out", tmp_path / "no"]
    assert "are two ways; give one of them" in fails(*given, "--sketch", 64, "--rank", 2)
    assert "The rank is 10; the kernel has 9 rows" in fails(*given, "--rank", 10)
    assert "The dimension is 0; give 2 or more" in fails(*given, "--sketch", 0)
    assert "sum over outputs; take --sketch" in fails(*given, "--rank", 2, "--functional", "target_logprob")
    assert "leave out --sketch and --rank" in fails(*given, "--rank", 2, "--finetuned", folder)


def test_bad_input_is_named(save_sums, save_model, fails, tmp_path):
    spec, folder, out = save_sums(), save_model(n_positions=16), tmp_path / "out"
    given = ["ntk", spec, "--model", folder, "--out", out]
    assert "0 examples are asked for" in fails(*given, "--examples", 0)
    assert "at most 360 examples to train on" in fails(*given, "--examples", 1000)
    assert "--seed is -1; give 0 or more" in fails(*given, "--seed", -1)
    assert "--memory-limit is nan; give a number of GB above 0" in fails(*given, "--memory-limit", "nan")
    assert not out.exists()
    assert "these examples need" in fails(*given, "--examples", 4, "--memory-limit", 1e-6)
    rows = [{"a": i, "b": j, "c": chr(97 + i)} for i in range(20) for j in range(20)]
    assert "label_logits is for 16 classes" in fails("ntk", save_sums(rows), *given[2:], "--functional", "label_logits")
    rows = [{"a": i, "b": 10**20, "c": i} for i in range(100)]
    assert "takes 16; lower max_prompt_tokens" in fails("ntk", save_sums(rows), *given[2:], "--examples", 4)
    assert not any(out.iterdir())


@pytest.mark.eight_devices
def test_the_kernel_is_that_of_the_api_and_is_explained(save_sums, save_model, tmp_path, capsys):
    spec, folder = save_sums(), save_model()
    given = "--examples", 4, "--mesh", "data=1,fsdp=8", "--explain"
    run(spec, "--model", folder, *given, "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert "How the kernel of each parameter is computed, 8 examples at a time" in said
    assert "add takes it" in said or "broadcast_in_dim" in said
    plan = json.loads((tmp_path / "out" / "kernel.json").read_text())["plan"]
    assert {one["way"] for one in plan["parameters"]} > {"plain"}
    assert all(one["predicted"].keys() == one["measured"].keys() for one in plan["parameters"])
    model, task = lensjax.models.load(folder), read_spec(spec, FinetuneSpec)
    batch = probe_batch(model, task, probe_examples(task, 4))
    theta = ntk(loss(model), model.params, batch)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "kernel.npz")["theta"], theta, rtol=1e-4, atol=1e-5)


@pytest.fixture
def ladder(save_sums, save_model, tmp_path):
    """A spec, a model, and the folder of what was fine-tuned from it."""
    training = {"learning_rate": 1e-2, "batch_size": 8, "max_steps": 6}
    spec, folder = save_sums(training=training), save_model(num_hidden_layers=1, hidden_size=16)
    task = read_spec(spec, FinetuneSpec)
    results = measure_curve(task, folder, tmp_path / "results", SIZES, save_models=True)
    assert [result.status for result in results] == ["ok"] * len(SIZES)
    return spec, folder, tmp_path / "results" / "model"


def test_drift_of_kernels_is_written(ladder, tmp_path, capsys, fails):
    spec, folder, runs = ladder
    out = tmp_path / "out"
    given = [spec, "--model", folder, "--out", out, "--examples", 6]
    run(*given, "--finetuned", runs)
    rungs = json.loads((out / "kernel.json").read_text())["ladder"]
    arrays = np.load(out / "kernel.npz", allow_pickle=False)
    assert [rung["examples"] for rung in rungs] == list(SIZES)
    for rung, theta in zip(rungs, arrays["rung_theta"], strict=True):
        assert rung["drift"] == pytest.approx(kernel_drift(arrays["theta"], theta))
        assert 0 < rung["drift"] < 1
        assert rung["growth"] == pytest.approx(np.trace(theta) / np.trace(arrays["theta"]))
        assert rung["effective_rank"] == pytest.approx(effective_rank(theta))
    assert f"Drift: {rungs[0]['drift']:.3f} after 12 examples, " in capsys.readouterr().out
    assert 'id="drift"' in (out / "kernel.html").read_text()
    model, task = lensjax.models.load(runs / "examples-24-seed-0" / "model"), read_spec(spec, FinetuneSpec)
    theta = ntk(loss(model), model.params, probe_batch(model, task, probe_examples(task, 6)))
    np.testing.assert_allclose(arrays["rung_theta"][1], theta, rtol=1e-4, atol=1e-5)
    given = ["ntk", *given, "--finetuned"]
    assert "smallest of the fine-tuned models was trained on 12" in fails(*given, runs, "--examples", 20)
    assert "holds no run of seed 1" in fails(*given, runs, "--seed", 1)


@pytest.mark.long
def test_hessian_and_bound_are_written(ladder, tmp_path, capsys, fails):
    spec, folder, runs = ladder
    out = tmp_path / "out"
    given = [spec, "--model", folder, "--out", out, "--examples", 10, "--batch-size", 5, "--block", "joint", *FEW]
    run(*given, "--finetuned", runs, command="hessian")
    said = capsys.readouterr().out
    assert "Largest eigenvalue" in said
    assert "with β₂ =" in said
    assert {path.name for path in out.iterdir()} == {"hessian.npz", "hessian.html", "hessian.json"}
    summary = json.loads((out / "hessian.json").read_text())
    arrays = np.load(out / "hessian.npz", allow_pickle=False)
    assert arrays["density_nodes"].shape == arrays["density_weights"].shape == (2, 3)
    assert len(summary["layer_traces"]) == len(arrays["layers"]) == len(arrays["layer_traces"])
    assert summary["products"] <= 30 + 6 + 4 + 4
    assert summary["eigenvalues"][0] >= summary["eigenvalues"][1]
    ladder = summary["ladder"]
    assert [rung["examples"] for rung in ladder["rungs"]] == list(SIZES)
    assert (ladder["block"], ladder["over"], ladder["positive_part"]) == ("joint", "examples", False)
    np.testing.assert_allclose(arrays["rung_largest"].sum(axis=1), [r["sum_of_largest"] for r in ladder["rungs"]])
    assert arrays["rung_forms"].shape == (len(SIZES), len(arrays["layers"]), 10)
    assert ladder["decay"]["beta3"] == pytest.approx((ladder["decay"]["beta2"] + 1) / 2)
    assert len(ladder["phases"]["as_bounded"]["phase"]) == len(SIZES)
    page = (out / "hessian.html").read_text()
    assert "Hessian of" in page
    for name in ("density", "layers", "terms", "rows"):
        assert f'id="{name}"' in page

    # What is written is that of the API, here without batches, and of one run.
    model, other = lensjax.models.load(folder), lensjax.models.load(runs / "examples-24-seed-0" / "model")
    batch = probe_batch(model, task := read_spec(spec, FinetuneSpec), probe_examples(task, 10))

    def losses(params, batch):
        return model.loss(params, batch, "example")

    terms = layer_terms(losses, model.params, other.params, batch, block="joint")
    assert terms.layers == tuple(arrays["layers"])
    np.testing.assert_allclose(arrays["rung_forms"][1], terms.forms, rtol=1e-3, atol=1e-5)
    loss = jax.jit(model.loss)(other.params, batch)
    assert ladder["rungs"][1]["train_loss"] == pytest.approx(float(loss), rel=1e-4)
    ladder = ladder_summary([Rung(24, float(loss), 3.0, terms)], loss_bound=9)
    assert (ladder["loss_bound"], ladder["loss_bound_is"], ladder["decay"]) == (9, "given", None)
    assert "fine-tune on 3 or more" in ladder["not_fitted"]

    # Bad input is named.
    given = ["hessian", *given, "--finetuned"]
    assert "smallest of the fine-tuned models was trained on 12" in fails(*given, runs, "--examples", 20)
    assert "holds no run of seed 1" in fails(*given, runs, "--seed", 1)
    assert "is of seed 0 and not 1" in fails(*given, runs / "examples-24-seed-0", "--seed", 1)
    assert "--batch-size is 0" in fails(*given, runs, "--batch-size", 0)
    assert "epsilon (ε) is 0.0; give a finite number above 0." in fails(*given, runs, "--epsilon", 0)
    assert "give block='diagonal' with positive_steps" in fails(*given, runs, "--positive-steps", 2)
    (runs / "model.json").write_text(sealed({"source": "elsewhere", "weights": "others"}))
    assert "whose weights are not those of" in fails(*given, runs)
    (runs / "model.json").unlink()
    wider = tmp_path / "wider"
    shutil.copytree(runs / "examples-24-seed-0", wider)
    shutil.rmtree(wider / "model")
    assert "holds no model; run `lensjax curve` again" in fails(*given, wider)
    result = json.loads((wider / "result.json").read_text()) | {"data": "others"}
    del result["checksum"]
    shutil.copytree(folder, wider / "model")
    (wider / "result.json").write_text(sealed(result))
    assert "was trained on other examples than those of the spec" in fails(*given, wider)


def test_a_hessian_without_fine_tuned_models(save_sums, save_model, tmp_path, fails):
    spec, folder, out = save_sums(), save_model(num_hidden_layers=1, hidden_size=16), tmp_path / "out"
    given = [spec, "--model", folder, "--out", out, "--examples", 4, *FEW]
    run(*given, command="hessian")
    assert "ladder" not in json.loads((out / "hessian.json").read_text())
    assert "Rungs" not in (out / "hessian.html").read_text()
    assert "samples is 1; give 2 or more" in fails("hessian", *given, "--samples", 1)
    assert "products is 5; give an even number" in fails("hessian", *given, "--products", 5)
    assert "0 examples are asked for" in fails("hessian", *given, "--examples", 0)
