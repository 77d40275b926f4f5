"""The learning rate that a ladder is measured with."""

import pytest

from lensjax.core.errors import InputError
from lensjax.models import load
from lensjax.train.ladder import measure
from lensjax.train.results import Result, read_result, write_result
from lensjax.train.search import choose_rate


def test_every_learning_rate_may_fail(prepare):
    candidate, recorder = prepare([200], learning_rate=[1e30, 1e31], clip=1e30, warmup=0)
    with pytest.raises(InputError, match=r"tiny: training failed with every .* because the .*; mend that"):
        choose_rate(candidate, recorder)


def test_the_rung_takes_the_search_s_run_and_model(prepare):
    candidate, recorder = prepare([200], learning_rate=[1e-4, 3e-3], max_steps=3, validation=4, test=8)
    (result,) = measure(candidate, [200], (0,), recorder, save_models=True)
    runs = {folder.name: folder for folder in (candidate.folder / "learning_rates").iterdir()}
    assert result.learning_rate == 3e-3
    assert result == read_result(runs["0.003"])
    assert not list((candidate.folder / "learning_rates").glob("*/model"))
    saved = candidate.folder / "examples-200-seed-0" / "model"
    model = load(saved)
    assert candidate.test(model.params, {}).loss == pytest.approx(result.loss, rel=1e-6)

    before = saved.stat().st_ino
    (saved.parent / "result.json").unlink()  # as where a run was killed between taking the one and the other
    assert list(measure(candidate, [200], (0,), recorder, save_models=True)) == [result]
    assert saved.stat().st_ino == before
    assert candidate.programs.step._cache_size() <= 2


def test_what_a_killed_search_left_is_removed(prepare):
    candidate, recorder = prepare([200], test=8, validation=4, learning_rate=[1e-3, 1e-2])
    about = {"model": "tiny", "examples": 200, "seed": 0, "size": 1, "family": "gpt2", "loss": 1.0}
    left = []
    for rate in (1e-3, 1e-2):  # killed between writing the last result and removing its checkpoints
        run = candidate.folder / "learning_rates" / f"{rate:g}"
        left.append(run / "checkpoints" / "9")
        left[-1].mkdir(parents=True)
        data = candidate.examples.fingerprint(0, 200)
        write_result(run, Result(**about, learning_rate=rate, validation_loss=1 / rate, data=data))
    assert choose_rate(candidate, recorder) == 1e-2
    assert not any(folder.parent.exists() for folder in left)
