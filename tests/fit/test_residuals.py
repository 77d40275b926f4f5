"""The covariate log F(t): a time shared by all models, learned from their curves."""

import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curvature.dynamics import residual_loss, residual_modes
from lensjax.fit.joint.fitting import fit_joint
from lensjax.fit.residuals import candidate_times, stack_residuals

HORIZON = 102_400
FAST, SLOW = 1.0, 1e-3


@pytest.fixture(scope="module")
def hidden(simulate):
    """Curves whose slopes depend on a covariate, and residuals in which it is what is slow to learn.

    What is fast to learn is more, and has nothing to do with the curves.
    """
    task = simulate(0, own=0.02, noise=0.002, jump=0.002, hidden=0.5)
    fast = np.random.default_rng(1).permutation(np.linspace(3, 6, 8))
    weights = np.stack([np.exp(fast), np.exp(0.3 * task.covariate)], axis=1)
    return task, stack_residuals([(np.array([FAST, SLOW]), row) for row in weights])


def test_log_f_is_the_log_of_the_residual_loss():
    random = np.random.default_rng(0)
    jacobians = [random.normal(size=(n, 30)) for n in (4, 6)]
    kernels = [jacobian @ jacobian.T for jacobian in jacobians]
    f0 = [random.normal(size=len(theta)) for theta in kernels]
    modes = [residual_modes(theta, f, np.zeros_like(f)) for theta, f in zip(kernels, f0, strict=True)]
    found = stack_residuals([modes[0], None, modes[1]], eta=0.5).log_f(0.7)
    assert np.isnan(found[1])
    for i, theta, f in zip((0, 2), kernels, f0, strict=True):
        expected = np.log(residual_loss(theta, f, np.zeros_like(f), 0.7, 0.5))
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-5)


def test_the_time_is_the_one_that_explains_the_curves(hidden):
    task, residuals = hidden
    posterior = fit_joint(task.table, HORIZON, residuals=residuals)
    assert posterior.time is not None
    slow = np.corrcoef(residuals.log_f(posterior.time), task.covariate)[0, 1]
    assert slow > 0.95  # the fast part is over
    given = fit_joint(task.table, HORIZON, {"log F": np.asarray(residuals.log_f(posterior.time))})
    np.testing.assert_allclose(posterior.predict(HORIZON).loss, given.predict(HORIZON).loss, rtol=1e-6)
    early = fit_joint(task.table, HORIZON, {"log F": np.asarray(residuals.log_f(candidate_times(residuals, 9)[0]))})
    right, wrong = (np.mean(np.asarray(fit.fitted.given.evidence)) for fit in (given, early))
    assert right > wrong + 2


def test_bad_residuals_are_named(hidden):
    task, _ = hidden
    with pytest.raises(InputError, match="No model has a kernel"):
        stack_residuals([None, None])
    with pytest.raises(InputError, match="residual of model 1 "):
        stack_residuals([(np.ones(2), np.ones(2)), (np.ones(2), np.array([1, np.nan]))])
    with pytest.raises(InputError, match="of 7 models, the table has 8"):
        fit_joint(task.table, HORIZON, residuals=stack_residuals([(np.ones(2), np.ones(2))] * 7))
    with pytest.raises(InputError, match="All kernels are 0"):
        candidate_times(stack_residuals([(np.zeros(2), np.ones(2))]), 3)
