"""Fine-tuning the model that a study has chosen, as the study fine-tuned it."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from lensjax.core.errors import InputError, shorten
from lensjax.study.folder import pinned, read_results, read_study_folder
from lensjax.study.report import collect
from lensjax.study.spec import StudySpec
from lensjax.train.spec import FinetuneSpec


@dataclass(frozen=True)
class Winner:
    """The model that a study has chosen.

    Attributes:
      name, source: Of the candidate.
      spec: The study's task, and how the candidate is fine-tuned, with the learning rate that the study chose.
      mesh: Devices along each axis, as the study gives them.
      doubt: Why the choice may still change, in a sentence; "" where it will not.
    """

    name: str
    source: str
    spec: FinetuneSpec
    mesh: str | None
    doubt: str


def find_winner(out: Path, study: StudySpec | None = None) -> Winner:
    """The model that a study has chosen so far.

    Args:
      out: The study's folder.
      study: The study to fine-tune by, where it is not as the folder has it.

    Raises:
      InputError: the folder holds no study, or one that has not chosen yet.
    """
    kept = read_study_folder(out)
    decision = collect(kept, out).report.decision
    if decision.model is None:
        raise InputError(f"The study in {shorten(out, 200)} has chosen no model: {decision.sentence}")
    spec = pinned(kept if study is None else study, out)
    candidate = spec.candidate(decision.model)
    tuned = spec.finetune_spec(candidate)
    rates = [one.learning_rate for one in read_results(kept, out, {}) if one.model == candidate.name and one.examples]
    if len(tuned.training.learning_rates) > 1 and rates and rates[-1]:
        training = tuned.training.model_copy(update={"learning_rate": (rates[-1],)})
        tuned = tuned.model_copy(update={"training": training})
    doubt = "" if decision.final and not decision.close else decision.sentence
    return Winner(candidate.name, candidate.source, tuned, candidate.mesh, doubt)


def winner_command(out: Path) -> str:
    """The command that fine-tunes the model that a study has chosen on all the data, as a shell takes it."""
    return shlex.join(["lensjax", "finetune", str(out), "--winner"])
