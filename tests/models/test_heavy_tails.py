"""Tails of spectra are fitted as WeightWatcher fits them, and a model's weights are all found."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.core.errors import InputError
from lensjax.models import Model, supported
from lensjax.models.heavy_tails import MIN_EVALS, fit_power_law, fit_truncated_power_law, weight_metrics
from lensjax.models.lora import add_lora

MakeConfig = Callable[..., Any]
MakeModel = Callable[..., Model]


def pareto(alpha: float, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=count) ** (-1 / (alpha - 1))


def truncated(alpha: float, decay: float, count: int) -> np.ndarray:
    """Values from 1 up with density ∝ x^(−alpha) e^(−decay x), by rejection."""
    rng = np.random.default_rng(0)
    x = 1 + rng.exponential(1 / decay, 40 * count)
    return x[rng.uniform(size=x.size) < x**-alpha][:count]


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
def test_a_power_law_is_recovered(alpha: float) -> None:
    found = fit_power_law(pareto(alpha, 1000))
    assert found.alpha == pytest.approx(alpha, rel=0.1)
    assert found.decay == 0
    assert found.distance < 0.04


@pytest.mark.parametrize(("alpha", "decay"), [(1.5, 0.05), (2.5, 0.2), (1.2, 1.0)])
def test_a_truncated_power_law_is_recovered(alpha: float, decay: float) -> None:
    values = truncated(alpha, decay, 1500)
    assert len(values) == 1500
    found = fit_truncated_power_law(values)
    assert found.alpha == pytest.approx(alpha, abs=0.35)
    assert found.decay == pytest.approx(decay, rel=0.35)
    assert found.distance < 0.03


def test_a_tail_that_is_not_truncated_has_no_decay() -> None:
    found = fit_truncated_power_law(pareto(2.5, 1000))
    assert found.alpha == pytest.approx(2.5, rel=0.1)
    assert found.decay < 0.01


# α, λ_min and distance of PL, then α, Λ, λ_min and distance of E_TPL, by WeightWatcher 0.7.7 with powerlaw 1.5 (see the
# module): powerlaw stops its search for α and Λ a little before the likeliest.
WEIGHTWATCHER = {
    "student": (3.6379149607, 614.01611759, 0.0853017137, 1.0000247, 0.00121216, 192.670223511, 0.102811898),
    "spread": (2.4125629778, 0.1111022289, 0.1567217338, 1.0000000, 2.62032768, 0.026001155158, 0.132358786),
    "heavy": (2.8321645884, 4.0935419498, 0.0919415429, 1.0066052, 0.13360087, 0.376516276698, 0.045438085),
}


def spectra() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    student = rng.standard_t(3, size=(120, 100))
    rng.normal(size=(300, 90))
    spread = 0.02 * rng.normal(size=(96, 48)) @ np.diag(np.linspace(0.1, 3, 48))
    heavy = 0.05 * rng.standard_t(2, size=(80, 80))
    matrices = {"student": student, "spread": spread, "heavy": heavy}
    return {name: np.linalg.svd(matrix, compute_uv=False) ** 2 for name, matrix in matrices.items()}


@pytest.mark.parametrize("name", WEIGHTWATCHER)
def test_equals_weightwatcher(name: str) -> None:
    evals = spectra()[name]
    expected = WEIGHTWATCHER[name]
    pl, e_tpl = fit_power_law(evals), fit_truncated_power_law(evals)
    np.testing.assert_allclose([pl.alpha, pl.xmin, pl.distance], expected[:3], rtol=1e-8)
    assert e_tpl.xmin == pytest.approx(expected[5], rel=1e-8)
    np.testing.assert_allclose([e_tpl.alpha, e_tpl.decay, e_tpl.distance], np.take(expected, [3, 4, 6]), rtol=2e-3)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.25, 8.0, 64.0]))
def test_only_the_decay_has_a_unit(seed: int, scale: float) -> None:
    values = np.random.default_rng(seed).lognormal(sigma=1.5, size=60)
    for fit in (fit_power_law, fit_truncated_power_law):
        one, other = fit(values), fit(np.flip(values) * scale)
        np.testing.assert_allclose(
            [other.alpha, other.decay * scale, other.xmin / scale, other.distance],
            [one.alpha, one.decay, one.xmin, one.distance],
            rtol=1e-5,
        )
        assert one.alpha >= 1
        assert 0 < one.distance < 1


@pytest.mark.parametrize("values", [[], [1.0] * 30, [0.0, 1, 2], [1.0, np.nan, 2], [1.0, np.inf]])
def test_values_without_a_tail_are_refused(values: list[float]) -> None:
    for fit in (fit_power_law, fit_truncated_power_law):
        with pytest.raises(InputError, match=r"finite values above 0 that differ"):
            fit(np.array(values))


@pytest.mark.parametrize("model_type", supported())
def test_all_matrices_of_every_family_are_found(
    model_type: str, tiny_config: MakeConfig, random_model: MakeModel
) -> None:
    model = random_model(tiny_config(model_type))
    calls: list[tuple[int, int]] = []
    found = weight_metrics(model, progress=lambda *call: calls.append(call))
    total = len(found.layers) + len(found.left_out)
    assert calls == [(i + 1, total) for i in range(total)]
    assert all(min(layer.shape) >= MIN_EVALS for layer in found.layers)
    tensors = model.family.tensors(model.config, model.params)
    stored = {name: t.stored_shape for t in tensors if not t.path.endswith("bias") for name in t.names.flat}
    sizes = [np.prod(shape) for shape in stored.values() if min(shape[-2:]) >= 20 and len(shape) >= 2]
    assert sum(np.prod(layer.shape) for layer in found.layers) == sum(sizes)
    assert np.isfinite(found.score)
    assert found.score == pytest.approx(found.pl_alpha + found.e_tpl_lambda)


def test_layers_and_experts_are_matrices_of_their_own(tiny_config: MakeConfig, random_model: MakeModel) -> None:
    names = {layer.name for layer in weight_metrics(random_model(tiny_config("switch_transformers"))).layers}
    assert {f"encoder.block.1.layer.1.mlp.experts.expert_{i}.wi" for i in range(2)} <= names
    fused = weight_metrics(random_model(tiny_config("gpt2")))
    assert {layer.name: layer.shape for layer in fused.layers}["transformer.h.1.attn.c_attn"] == (32, 96)
    assert not any("lm_head" in layer.name for layer in fused.layers)  # tied


def test_the_order_of_layers_does_not_matter(tiny_config: MakeConfig, random_model: MakeModel) -> None:
    model = random_model(tiny_config("llama"))
    flipped = dict(model.params) | {"layers": jax.tree.map(lambda leaf: leaf[::-1], model.params["layers"])}
    one, other = weight_metrics(model), weight_metrics(model.with_params(flipped))
    assert one.score == other.score
    assert {layer.pl for layer in one.layers} == {layer.pl for layer in other.layers}
    assert one.layers != other.layers


def test_adapters_are_merged(tiny_config: MakeConfig, random_model: MakeModel) -> None:
    model = random_model(tiny_config("llama"))
    assert weight_metrics(add_lora(model, rank=2)).score == weight_metrics(model).score


def test_models_that_are_too_small_or_damaged_are_refused(tiny_config: MakeConfig, random_model: MakeModel) -> None:
    with pytest.raises(InputError, match=r"No weight matrix has 20 eigenvalues above 1e-05"):
        weight_metrics(random_model(tiny_config("gpt2", hidden_size=16)))
    model = random_model(tiny_config("gpt2"))
    damaged = dict(model.params) | {"embed": {"embedding": model.params["embed"]["embedding"].at[3, 3].set(np.nan)}}
    with pytest.raises(InputError, match=r"transformer.wte holds values that are not finite"):
        weight_metrics(model.with_params(damaged))
