"""LogME and the H-score beside dense references, states of layers, and methods that rank by them."""

import itertools
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from lensjax.core.errors import InputError
from lensjax.curves.table import curve_table
from lensjax.measure.kinds.transferability import HiddenStates
from lensjax.measure.measurement import Cell, Measured, Records
from lensjax.measure.transferability import (
    first_targets,
    h_score,
    log_me,
    measure_transferability,
)
from lensjax.selection.evidence import Evidence
from lensjax.selection.methods import METHODS


def features(count, width, noise, seed=0):
    """Features that tell three classes apart, more or less, with a common offset."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, count)
    return rng.standard_normal((3, width))[classes] + noise * rng.standard_normal((count, width)) + 0.5, classes


def dense_log_me(f, classes):
    """Of each class the log density of its indicator, by its covariance over examples, at the best α and β."""
    found = []
    for one in np.unique(classes):
        y = 1.0 * (classes == one)

        def minus_log_p(logs, y=y):
            covariance = np.exp(-logs[0]) * f @ f.T + np.exp(-logs[1]) * np.eye(len(f))
            return -multivariate_normal.logpdf(y, cov=covariance)

        starts = [(a, b) for a in (-4.0, 2.0, 8.0) for b in (-1.0, 3.0)]
        fits = (minimize(minus_log_p, start, method="Nelder-Mead", options={"xatol": 1e-6}) for start in starts)
        found.append(-min(fit.fun for fit in fits) / len(f))
    return np.mean(found)


def dense_h_score(f, classes):
    """By matrices as large as features are wide."""
    count, width = f.shape
    centred = f - f.mean(axis=0)
    covariance = centred.T @ centred / count
    means = np.array([centred[classes == one].mean(axis=0) for one in classes])
    target = np.trace(covariance) / width * np.eye(width)
    away = np.sum((covariance - target) ** 2)
    each = [np.sum((np.outer(row, row) - covariance) ** 2) for row in centred]
    share = min(np.sum(each) / count**2, away) / away
    shrunk = (1 - share) * covariance + share * target
    return np.trace(np.linalg.solve(shrunk, (1 - share) * means.T @ means / count))


@pytest.mark.parametrize(("count", "width", "noise"), [(30, 7, 1.0), (23, 40, 2.0), (20, 5, 50.0)])
def test_scores_are_those_of_dense_references(count, width, noise):
    f, classes = features(count, width, noise)
    assert log_me(f, classes) == pytest.approx(dense_log_me(f, classes), abs=1e-5)
    assert h_score(f, classes) == pytest.approx(dense_h_score(f, classes), rel=1e-9)


def test_features_that_tell_more_have_higher_scores_whatever_classes_are_called():
    scores = [(log_me(f, c), h_score(f, c)) for f, c in (features(60, 12, noise) for noise in (0.3, 2.0, 20.0))]
    assert np.all(np.diff(scores, axis=0) < 0)
    f, classes = features(60, 12, 2.0)
    names = np.array([900, 7, 12])[classes]
    assert (log_me(f, names), h_score(f, names)) == pytest.approx(scores[1], rel=1e-9)
    assert np.isfinite([log_me(0 * f, classes), h_score(0 * f, classes)]).all()


def batch_of(count=11, time=8):
    ids = np.random.default_rng(0).integers(3, 96, (count, time)).astype(np.int32)
    starts = np.arange(count)[:, None] % 3 + 2
    return {"input_ids": ids, "labels": np.where(np.arange(time) >= starts, ids % 5 + 3, -100).astype(np.int32)}


@pytest.mark.parametrize("model_type", ["gpt2", "t5", "switch_transformers", "lfm2"])
def test_states_are_those_of_every_layer_in_order(tiny_config, random_model, model_type):
    model, batch = random_model(tiny_config(model_type), dtype="float32"), batch_of(5)
    tokens, at = first_targets(model, batch)
    rows = np.arange(5)
    assert (batch["labels"][rows, at + (not model.family.encoder_decoder)] == tokens).all()
    states = model.layer_states(model.params, batch, at)
    depth = getattr(model.config, "num_decoder_layers", None) or model.config.num_hidden_layers
    assert len(states) == depth
    # The head reads the last one, after a norm.
    module = nnx.merge(model.graphdef, model.params)
    read = getattr(module, "decoder", module).norm(states[-1]) * getattr(module, "head_scale", 1.0)
    np.testing.assert_allclose(read, model.hidden(model.params, batch)[rows, at], atol=1e-4)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.pairwise(states))
    # What comes later changes nothing, and what is asked for is of its own row.
    assert np.allclose(jax.jit(model.layer_states)(model.params, batch, at), states, atol=1e-4)
    one = {name: array[3:4] for name, array in batch.items()}
    assert np.allclose(model.layer_states(model.params, one, at[3:4])[:, 0], states[:, 3], atol=1e-4)


def test_a_model_is_measured_in_equal_parts(tiny_config, random_model):
    model, batch = random_model(tiny_config("gpt2"), dtype="float32"), batch_of()
    found = measure_transferability(model, batch)
    tokens, at = first_targets(model, batch)
    states = np.asarray(model.layer_states(model.params, batch, at))
    assert found.logme == pytest.approx([log_me(layer, tokens) for layer in states], rel=1e-4)
    assert found.h_score == pytest.approx([h_score(layer, tokens) for layer in states], rel=1e-3)
    assert found.classes == len(set(tokens.tolist()))
    kind = HiddenStates()
    measured = kind.measure(SimpleNamespace(model=lambda: model, batch=lambda model: batch))
    assert measured.summary["logme"] == pytest.approx(found.logme.mean())
    assert {name: measured.summary[name] for name in ("layers", "classes", "size")} == {
        "layers": len(states),
        "classes": found.classes,
        "size": 11,
    }
    assert measured.flops == kind.flops(model.without_params(), batch) > 0
    same = batch | {"labels": np.where(batch["labels"] >= 0, 5, -100).astype(np.int32)}
    with pytest.raises(InputError, match="All 11 targets begin with the same token"):
        measure_transferability(model, same)
    broken = model.with_params(jax.tree.map(lambda leaf: leaf * np.nan, model.params))
    with pytest.raises(InputError, match="hidden states are not finite"):
        measure_transferability(broken, batch)


def test_methods_rank_by_the_scores_of_a_study():
    names = ("a", "b", "c")
    summaries = {"a": (0.1, 3.0), "b": (0.3, 2.0)}
    cells = {
        Cell("transferability", name, 0, 7): Measured(
            {"logme": logme, "h_score": score, "layers": 2, "classes": 5, "size": 9, "asked": {}}
        )
        for name, (logme, score) in summaries.items()
    }
    records = Records(names, (0, 200), (7,), None, cells.get)
    table = curve_table(names, [200, 400], np.full((3, 2), 2.0))
    evidence = Evidence({"transferability": HiddenStates.for_methods(records)})
    for method, expected in (("logme", [1, 0, 2]), ("h_score", [0, 1, 2])):
        assert METHODS[method].predict(table, 800, evidence).order.tolist() == expected
        with pytest.raises(InputError, match=r"No model has scores of hidden states; .*evidence\.transferability"):
            METHODS[method].predict(table, 800)
    (section,) = HiddenStates.show(HiddenStates.collect(records))
    assert "Of the hidden states" in section.paragraphs[0]
    assert [name for name, _ in section.tables[0].rows] == ["a", "b"]
    assert not HiddenStates.show(HiddenStates.collect(Records(names, (0,), (7,), None, lambda cell: None)))
