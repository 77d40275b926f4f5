import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensjax.core.errors import InputError
from lensjax.curves.public import VARIABLE
from lensjax.curves.simulated import KINDS, simulated, simulated_task
from lensjax.curves.sources import read_source


def test_simulated_is_labelled_and_complete():
    table = simulated()
    assert table.task == "simulated"
    assert table.models == tuple(f"simulated-{i:02d}" for i in range(12))
    assert table.sizes.tolist() == [200 * 2**k for k in range(14)]
    assert table.sizes[-1] == 1_638_400
    assert table.loss.shape == (12, 14)
    assert table.measured.all()
    assert sorted(set(table.families)) == [f"family-{k}" for k in range(4)]
    assert np.all((table.parameters >= 1e8) & (table.parameters <= 1e10))


def test_simulated_depends_on_the_seed_alone():
    first, again, other = simulated(seed=3), simulated(seed=3), simulated(seed=4)
    assert first.to_csv() == again.to_csv()
    assert not np.array_equal(first.loss, other.loss)


def test_simulated_law_does_not_depend_on_the_sizes_asked_for():
    few = simulated(seed=5, sizes=(409_600, 0, 200), noise=0)
    assert few.sizes.tolist() == [0, 200, 409_600]
    np.testing.assert_allclose(few.loss[:, 1:], simulated(seed=5, noise=0).loss[:, [0, 11]], rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**63))
def test_simulated_law_keeps_its_ranges(seed):
    loss = simulated(seed, noise=0).loss
    falls = -np.diff(np.log(loss), axis=1)
    assert np.all((loss > 1) & (loss < 6))
    assert np.all(falls > 0)
    assert np.all((falls.mean(axis=1) > 0.02) & (falls.mean(axis=1) < 0.1))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    models=st.integers(1, 120),
    families=st.integers(1, 9),
    sizes=st.lists(st.integers(0, 10**15), min_size=1, max_size=6, unique=True),
    noise=st.floats(0, 0.1),
)
def test_simulated_losses_are_positive(seed, models, families, sizes, noise):
    table = simulated(seed, models, families, sizes, noise)
    assert table.loss.shape == (models, len(sizes))
    assert len(set(table.families)) == min(models, families)
    assert np.all(table.loss > 0)
    assert table.measured.all()


def test_noise_has_the_standard_deviation_asked_for():
    steady, noisy = (simulated(models=2000, sizes=(200, 400), noise=noise).loss[:, 0] for noise in (0, 0.02))
    np.testing.assert_allclose(np.log(noisy / steady).std(), 0.02, rtol=0.1)


def test_some_curves_jump_for_good():
    steady, noisy = (simulated(models=200, noise=noise).loss for noise in (0, 0.001))
    change = np.log(noisy / steady)
    jumped = np.abs(change[:, -1]) > 0.003
    assert 0.1 < jumped.mean() < 0.3  # a quarter jump, some of them too little to tell
    assert np.all(np.abs(change[:, 0]) < 0.005)


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": -1},
        {"models": 0},
        {"families": 0},
        {"noise": -0.1},
        {"noise": 2},
        {"noise": float("nan")},
        {"sizes": (-1, 200)},
        {"sizes": (200, 200)},
        {"sizes": (0.5,)},
    ],
    ids=str,
)
def test_simulated_refuses(arguments):
    with pytest.raises(InputError):
        simulated(**arguments)


def test_sources_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_source("simulated").task == "simulated"
    simulated(models=2).write(tmp_path / "simulated")
    assert len(read_source("simulated").models) == 2  # a file of that name is meant
    (tmp_path / "wmt19.csv").write_text("config name,0,200\na,4,3\n")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert read_source("rectified:wmt19").task == "wmt19"
    with pytest.raises(InputError, match="no benchmark 'nope'"):
        read_source("rectified:nope")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from([*KINDS, None]))
def test_simulated_tasks_depend_on_the_seed_and_kind_alone(seed, kind):
    task, again = simulated_task(seed, kind), simulated_task(seed, kind)
    assert task.table.to_csv() == again.table.to_csv()
    assert task.kind in ({kind} if kind else KINDS)
    assert task.table.measured.all()
    sizes = task.table.sizes
    assert 2 <= len(sizes) - 1 <= 12
    assert 4 <= len(task.table.models) <= 12
    assert (task.budget, task.target) == (sizes[-2], sizes[-1])
    assert 4 * task.budget <= task.target <= 256 * task.budget


def test_kinds_of_simulated_tasks_are_what_they_say():
    def log_losses(kind):
        return [np.log(simulated_task(seed, kind, models=8, sizes=8).table.loss) for seed in range(20)]

    def falls(kind):
        return np.concatenate([-np.diff(y[:, :-1]).ravel() for y in log_losses(kind)])

    floor, law = np.array(log_losses("floor")), np.array(log_losses("law"))
    early, late = (np.median(floor[..., k] - floor[..., k + 2]) for k in (0, 5))
    assert late < early / 2  # it flattens
    early, late = (np.median(y[..., 0] - y[..., 2]) for y in (law, law[..., 5:]))
    assert late > early / 2
    assert np.std(falls("noise")) > 2 * np.std(falls("law"))
    assert np.abs(falls("divergence")).max() > 0.3 > np.abs(falls("law")).max()
    plateau = np.array(log_losses("plateau"))
    assert np.median(plateau[..., 5] - plateau[..., 7]) > np.median(plateau[..., 0] - plateau[..., 2])


@pytest.mark.parametrize("arguments", [{"kind": "nope"}, {"models": 0}, {"sizes": 1}])
def test_simulated_tasks_out_of_range_are_refused(arguments):
    with pytest.raises(InputError, match=r"Cannot simulate .* give one model and two sizes"):
        simulated_task(0, **arguments)
