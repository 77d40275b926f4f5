import os
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.optimize import least_squares

from lensjax.core.errors import InputError
from lensjax.curves.csv_files import read_curves
from lensjax.curves.laws import LAWS
from lensjax.curves.table import curve_table
from lensjax.fit.per_model import MAX_ALPHA, MAX_BETA, MIN_ALPHA, MIN_BETA, fit_per_model

SIZES = 200 * 2 ** np.arange(11)
TRUE = {
    "power": {"B": [9.0, 4.0], "beta": [0.3, 0.15], "E": [1.2, 0.0]},
    "vanilla": {"B": [9.0, 3.0], "beta": [0.5, 0.3], "E": [1.2, 0.8], "alpha": [0.5, 2.0]},
    "rectified": {"B": [600.0, 30.0], "D_l": [200.0, 12.0], "beta": [0.6, 0.3], "E": [0.9, 0.0]},
    "lensllm": {"B": [600.0, 30.0], "F": [200.0, 12.0], "beta": [0.6, 0.3], "E": [0.9, 0.0]},
}
each_law = pytest.mark.parametrize("law", LAWS)
each_free_law = pytest.mark.parametrize("law", [law for law in LAWS if law != "lensllm"])


def formula(law, sizes, parameters):
    """L of M models at sizes (S,), in NumPy."""
    p = {name: np.asarray(values, dtype=float)[:, None] for name, values in parameters.items()}
    start = p.get("D_l", p.get("F", 0.0))
    return (p["B"] / (start + np.asarray(sizes, dtype=float) ** p["beta"]) + p["E"]) ** p.get("alpha", 1.0)


def table_of(loss, sizes=SIZES):
    return curve_table([f"model{i}" for i in range(len(loss))], sizes, loss)


def log_f_of(parameters):
    return {"log_f": np.log(parameters["F"])} if "F" in parameters else {}


def noisy_curves(models, seed=0, scale=0.01):
    rng = np.random.default_rng(seed)
    beta = rng.uniform(0.1, 0.8, models)
    knee = rng.uniform(3, 12, models)
    parameters = {
        "B": np.exp(beta * knee + rng.uniform(0, 1.5, models)),
        "D_l": np.exp(beta * knee),
        "beta": beta,
        "E": rng.choice([0.0, 0.5, 1.5], models),
    }
    loss = formula("rectified", SIZES, parameters)
    return loss * np.exp(scale * rng.standard_normal(loss.shape))


@each_law
def test_recovers_the_parameters_of_exact_curves(law):
    true = TRUE[law]
    fit = fit_per_model(table_of(formula(law, SIZES, true)), law, **log_f_of(true))
    assert fit.law == law
    assert tuple(fit.parameters) == LAWS[law].parameters
    assert np.all(fit.rmse < 1e-8)
    for name, values in true.items():
        np.testing.assert_allclose(fit.parameters[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(fit.predict(1_638_400), formula(law, [1_638_400], true)[:, 0], rtol=1e-6)


@each_law
def test_rmse_is_that_of_the_predictions(law):
    loss = noisy_curves(5)
    loss[1, 3:6] = np.nan
    fit = fit_per_model(table_of(loss), law, **({"log_f": np.full(5, 4.0)} if law == "lensllm" else {}))
    errors = np.log(fit.predict(SIZES) / loss)
    np.testing.assert_allclose(fit.rmse, np.sqrt(np.nanmean(errors**2, axis=1)), rtol=1e-6)


def reference_rmse(law, loss, log_f, starts=20):
    """Best of many SciPy fits of the formula itself, from random starts within the same bounds."""
    bounds = {
        "B": (-20, 60),
        "D_l": (-10, 2 * np.log(10 * SIZES[-1])),
        "F": (log_f - 1e-9, log_f + 1e-9),
        "beta": (MIN_BETA, MAX_BETA),
        "E": (0, loss.max()),
        "alpha": (MIN_ALPHA, MAX_ALPHA),
    }
    names = LAWS[law].parameters
    low, high = np.array([bounds[name] for name in names]).T

    def residuals(x):
        values = {n: [np.exp(v) if n in ("B", "D_l", "F") else v] for n, v in zip(names, x, strict=True)}
        with np.errstate(over="ignore", divide="ignore"):
            return np.clip(np.log(formula(law, SIZES, values)[0] / loss), -50, 50)

    rng = np.random.default_rng(1)
    fits = [least_squares(residuals, rng.uniform(low, high), bounds=(low, high), x_scale="jac") for _ in range(starts)]
    return np.sqrt(min(2 * fit.cost for fit in fits) / len(loss))


@each_law
def test_no_random_restart_finds_a_better_fit(law):
    loss, log_f = noisy_curves(4, seed=3), np.array([1.0, 3.0, 5.0, 0.0])
    fit = fit_per_model(table_of(loss), law, **({"log_f": log_f} if law == "lensllm" else {}))
    reference = [reference_rmse(law, *model) for model in zip(loss, log_f, strict=True)]
    assert np.all(fit.rmse <= np.array(reference) * (1 + 1e-3))


@each_free_law
@pytest.mark.parametrize("points", [2, 3, 4, 5])
def test_few_points_give_finite_positive_falling_curves(law, points):
    loss = noisy_curves(40, seed=points, scale=0.1)[:, :points]
    fit = fit_per_model(table_of(loss, SIZES[:points]), law)
    losses = fit.predict(np.append(1, 10 ** np.arange(1, 16)))
    assert np.isfinite(losses).all()
    assert np.all(losses > 0)
    assert np.all(losses[:, 1:] <= losses[:, :-1] * (1 + 1e-12))


@each_free_law
def test_two_points_are_joined_by_a_power_law(law):
    fit = fit_per_model(table_of([[4.0, 2.0], [2.0, 2.0], [2.0, 4.0]], sizes=[100, 400]), law)
    np.testing.assert_allclose(fit.parameters["beta"][0], 0.5, rtol=1e-6)
    np.testing.assert_allclose(fit.parameters["E"], 0, atol=1e-12)
    np.testing.assert_allclose(fit.predict(1600), [1.0, 2.0, np.sqrt(8)], rtol=1e-2)  # a rise is fitted as level


def test_steeper_than_the_bound_is_fitted_at_the_bound():
    fit = fit_per_model(table_of([[1000.0, 1.0]], sizes=[100, 200]))
    np.testing.assert_allclose(fit.parameters["beta"], MAX_BETA)


def test_level_curves_stay_level():
    fit = fit_per_model(table_of(np.full((1, 11), 3.0)))
    np.testing.assert_allclose(fit.predict([1, 10**15]), 3.0, rtol=1e-6)
    assert fit.rmse[0] < 1e-12


def test_pretrained_loss_is_left_out():
    loss = noisy_curves(3)
    with_zero = table_of(np.column_stack([[99.0, 5.0, 0.1], loss]), sizes=[0, *SIZES])
    np.testing.assert_array_equal(fit_per_model(with_zero).predict(10**6), fit_per_model(table_of(loss)).predict(10**6))


def test_models_with_fewer_than_two_points_are_not_fitted():
    loss = np.array([[9.0, 4.0, 3.0], [9.0, np.nan, 3.0], [9.0, np.nan, np.nan]])
    fit = fit_per_model(table_of(loss, sizes=[0, 100, 200]))
    np.testing.assert_array_equal(np.isfinite(fit.rmse), [True, False, False])
    for values in (*fit.parameters.values(), fit.predict(400)):
        np.testing.assert_array_equal(np.isfinite(values), [True, False, False])


@pytest.mark.parametrize("sizes", [[0], [0, 100], [100, 200]])
def test_tables_without_a_curve(sizes):
    loss = np.full((2, len(sizes)), np.nan)
    loss[:, 0] = 3.0
    fit = fit_per_model(table_of(loss, sizes))
    assert np.isnan(fit.predict([1, 2])).all()
    assert fit.predict([1, 2]).shape == (2, 2)


@each_free_law
def test_a_model_is_fitted_by_itself(law):
    """Neither the other models, nor their sizes, nor the block it is in, change a fit."""
    loss = noisy_curves(70, seed=5)
    loss[::2, :4] = np.nan
    loss[::3, 7] = np.nan
    together = fit_per_model(table_of(loss), law)
    for model in (0, 33, 69):
        known = np.isfinite(loss[model])
        alone = fit_per_model(table_of(loss[model : model + 1, known], SIZES[known]), law)
        np.testing.assert_allclose(alone.predict(10**7)[0], together.predict(10**7)[model], rtol=1e-6)


@each_law
def test_a_constant_on_a_model_s_losses_scales_b_and_e_alone(law):
    """As between nats per token and bits per byte, whose ratio is the model's own."""
    loss, log_f = noisy_curves(3, seed=8), {"log_f": np.full(3, 4.0)} if law == "lensllm" else {}
    constants = np.array([1 / np.log(2) / 4.3, 0.37, 40.0])
    fit = fit_per_model(table_of(loss), law, **log_f)
    scaled = fit_per_model(table_of(constants[:, None] * loss), law, **log_f)
    np.testing.assert_allclose(scaled.rmse, fit.rmse, rtol=1e-6)
    outer = fit.parameters.get("alpha", 1.0)
    for name, values in fit.parameters.items():
        expected = values * constants ** (1 / outer) if name in ("B", "E") else values
        np.testing.assert_allclose(scaled.parameters[name], expected, rtol=1e-4, atol=1e-9, err_msg=name)


@each_free_law
def test_units_do_not_matter(law):
    loss = noisy_curves(4, seed=8)
    fit = fit_per_model(table_of(loss), law)
    tokens = fit_per_model(table_of(7 * loss, SIZES * 10**6), law)
    np.testing.assert_allclose(tokens.rmse, fit.rmse, rtol=1e-6)
    np.testing.assert_allclose(tokens.predict(10**13), 7 * fit.predict(10**7), rtol=1e-4)


def test_same_bits_every_time_and_float32_stays_the_default():
    table = table_of(noisy_curves(6))
    first, second = fit_per_model(table), fit_per_model(table)
    for name, values in first.parameters.items():
        np.testing.assert_array_equal(values, second.parameters[name])
        assert values.dtype == np.float64
    assert not jax.config.jax_enable_x64


def test_predictions_have_the_shape_of_the_question():
    fit = fit_per_model(table_of(noisy_curves(3)))
    assert fit.predict(1000).shape == (3,)
    assert fit.predict([1000]).shape == (3, 1)
    np.testing.assert_array_equal(fit.predict([500, 1000])[:, 1], fit.predict(1000))
    at_zero = fit.parameters["B"] / fit.parameters["D_l"] + fit.parameters["E"]
    np.testing.assert_allclose(fit.predict(0), at_zero, rtol=1e-12)


def test_lensllm_leaves_out_models_without_f():
    fit = fit_per_model(table_of(noisy_curves(3)), "lensllm", log_f=[2.0, np.nan, -np.inf])
    np.testing.assert_array_equal(np.isfinite(fit.rmse), [True, False, True])
    np.testing.assert_allclose(fit.parameters["F"], [np.exp(2), np.nan, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"law": "linear"}, "no law 'linear'"),
        ({"law": "lensllm"}, "needs log_f"),
        ({"law": "power", "log_f": [1.0, 2.0]}, "no other, needs log_f"),
        ({"law": "lensllm", "log_f": [1.0]}, "2 models"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        fit_per_model(table_of([[2.0, 1.0]] * 2, sizes=[1, 2]), **arguments)


@pytest.mark.parametrize("examples", [-1, [5, float("nan")]])
def test_only_numbers_of_examples_can_be_predicted_for(examples):
    with pytest.raises(InputError, match="0 or more"):
        fit_per_model(table_of([[2.0, 1.0]], sizes=[1, 2])).predict(examples)


@pytest.mark.parametrize("task", ["flan", "gigaword"])
def test_public_curves(task):
    folder = os.environ.get("LENSJAX_BENCHMARKS")
    if folder is None:
        pytest.skip("LENSJAX_BENCHMARKS names no folder of public curves")
    table = read_curves(Path(folder) / "rectified" / f"{task}.csv").up_to(204_800)
    rmse = {law: fit_per_model(table, law).rmse.mean() for law in ("power", "vanilla", "rectified")}
    assert rmse["rectified"] < 0.0055
    assert rmse["rectified"] < rmse["vanilla"] <= rmse["power"]
