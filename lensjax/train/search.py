"""The search for a model's learning rate on the first rung of its ladder."""

import math
import shutil
from typing import Any

from pydantic import BaseModel, PositiveFloat

from lensjax.core.artefacts import Damaged, read_ours, read_sealed, sealed, set_aside
from lensjax.core.errors import InputError
from lensjax.core.files import make_folder, write_files
from lensjax.core.processes import on_first
from lensjax.train.candidate import Candidate
from lensjax.train.recorder import LOG, Recorder, keep_until
from lensjax.train.results import Result, read_result, write_curves, write_result
from lensjax.train.runs import SEARCH, Run, has_model, known_result, note_model

CHOSEN = "learning_rate.json"


class ChosenRate(BaseModel):
    """A model's learning rate, and how it was chosen.

    Attributes:
      learning_rate: The one of the lowest validation loss.
      examples, seed, data: Number, seed and fingerprint of the training examples.
      validation_losses: Of each rate; None where training failed.
    """

    learning_rate: PositiveFloat
    examples: int
    seed: int
    data: str
    validation_losses: dict[str, float | None]


def choose_rate(candidate: Candidate, recorder: Recorder, *, retry: bool = False, save_model: bool = False) -> float:
    """The learning rate of the lowest validation loss on the first rung, kept in the model's folder.

    Args:
      candidate: The model.
      recorder: Observes the runs of the search.
      retry: Make failed runs again.
      save_model: Keep the model that was trained with the chosen rate, so that the rung need not train it again.

    Raises:
      InputError: training fails with every learning rate, or the folder cannot be read or written.
    """
    rates = candidate.spec.training.learning_rates
    if len(rates) == 1:
        return rates[0]
    path = candidate.folder / CHOSEN
    runs = [_search_run(candidate, rate) for rate in rates]

    def kept() -> float | None:
        try:
            found = read_sealed(path, ChosenRate, required=False)
        except Damaged as error:
            set_aside(path, error.why, candidate.out)
            return None
        same = found is not None and found.data == candidate.fingerprint(runs[0]) and found.learning_rate in rates
        return found.learning_rate if found is not None and same else None

    if (known := on_first(kept)) is not None:
        return known
    results = [
        known_result(candidate.examples, run, retry) or candidate.make(run, recorder, save_model=save_model)
        for run in runs
    ]
    losses = {
        one.learning_rate: one.validation_loss
        for one in results
        if one.status == "ok" and one.validation_loss is not None
    }
    if not losses:
        raise InputError(
            f"{candidate.name}: training failed with every learning rate tried ({', '.join(map(str, rates))}), with "
            f"{rates[-1]} because {results[-1].error}; mend that in the spec, and use --retry."
        )
    best = min(rates, key=lambda rate: losses.get(rate, math.inf))

    def keep() -> None:
        for run in runs:
            if run.rate != best:
                shutil.rmtree(run.model, ignore_errors=True)
        content = ChosenRate(
            learning_rate=best,
            examples=candidate.examples.search,
            seed=0,
            data=candidate.fingerprint(runs[0]),
            validation_losses={f"{rate:g}": losses.get(rate) for rate in rates},
        )
        write_files({path: sealed(content.model_dump())}, follow=False)

    on_first(keep)
    return best


def _search_run(candidate: Candidate, rate: float) -> Run:
    """The run that tries a learning rate."""
    return Run(candidate.examples.search, 0, rate, candidate.folder / SEARCH / f"{rate:g}")


def result_of_search(candidate: Candidate, run: Run, save_model: bool) -> Result | None:
    """The result of a run that the search for a learning rate has made already; None if it has not.

    Args:
      candidate: The model.
      run: The run of a rung.
      save_model: Take the model too; without its model the result is of no use then.
    """
    searched = _search_run(candidate, run.rate)
    if (searched.examples, searched.seed) != (run.examples, run.seed) or not run.examples:
        return None

    def take() -> dict[str, Any] | None:
        result = read_result(searched.folder)
        model, place = searched.model, run.model
        if result is None or (save_model and not (has_model(searched.folder) or has_model(run.folder))):
            return None
        make_folder(run.folder)
        if save_model and not has_model(run.folder):
            shutil.rmtree(place, ignore_errors=True)
            model.rename(place)
            note_model(run.folder)
        shutil.rmtree(model, ignore_errors=True)
        keep_until(searched.folder / LOG, math.inf)
        write_files({run.folder / LOG: read_ours(searched.folder / LOG) or b""}, follow=False)
        write_result(run.folder, result)
        write_curves(candidate.out, candidate.spec.max_unwritable)
        return result.model_dump(mode="json")

    taken = on_first(take)
    return None if taken is None else Result.model_validate(taken)
