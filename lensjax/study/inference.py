"""The costs of a study's candidates at inference, in a file of its folder, and the candidates that cost too much."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pydantic import RootModel

from lensjax.core.artefacts import Damaged, read_sealed, sealed
from lensjax.core.errors import InputError, listing
from lensjax.core.files import write_files
from lensjax.models.hub import find_folder, read_config
from lensjax.models.inference import InferenceCost, inference_cost
from lensjax.selection.cheaper import COSTS, CostName
from lensjax.study.constraints import Constraints
from lensjax.study.spec import StudySpec

INFERENCE = "inference.json"

Costs = Mapping[str, InferenceCost]  # by candidate


class _Kept(RootModel[dict[str, InferenceCost]]):
    """Costs on disk, by candidate."""


def candidates_costs(spec: StudySpec) -> dict[str, InferenceCost]:
    """The costs of all candidates, from their configurations; adapters are merged, so one model costs the same twice.

    Raises:
      InputError: a candidate is missing, or of a family that is not supported.
    """
    rules = spec.constraints or Constraints()
    of_source: dict[str, InferenceCost] = {}
    for source in dict.fromkeys(candidate.source for candidate in spec.candidates):
        config = read_config(find_folder(source, what="config"))
        lengths = rules.lengths(spec.task)
        of_source[source] = inference_cost(config, *lengths, batch=rules.batch, dtype=rules.dtype)
    return {candidate.name: of_source[candidate.source] for candidate in spec.candidates}


def write_costs(out: Path, costs: Costs) -> None:
    """Keep costs in a study's folder, so that a report does not need the models.

    Raises:
      InputError: the folder is missing or not writable, or the disk is full.
    """
    write_files({out / INFERENCE: sealed({name: cost.model_dump() for name, cost in costs.items()})}, follow=False)


def read_costs(spec: StudySpec, out: Path) -> dict[str, InferenceCost]:
    """The costs in a study's folder, or where they are damaged, those of its candidates now.

    Raises:
      InputError: they cannot be read, and the models are not here either.
    """
    try:
        kept = read_sealed(out / INFERENCE, _Kept, required=False)
    except Damaged as error:
        try:
            return candidates_costs(spec)
        except InputError as missing:
            raise InputError(
                f"{error.path} is damaged ({error.why}); run the study again where its models are, which makes it anew."
            ) from missing
    if kept is None:  # an earlier version began it, or it was lost
        try:
            return candidates_costs(spec) if spec.constraints is not None else {}
        except InputError:
            return {}
    return kept.root


def costs_by_name(costs: Costs) -> dict[CostName, dict[str, float]]:
    """Costs by kind, then by candidate, as `lensjax.selection.ranking.rank` takes them."""
    return {name: {model: getattr(cost, name) for model, cost in costs.items()} for name in COSTS} if costs else {}


def too_costly(spec: StudySpec, costs: Costs) -> dict[str, str]:
    """The candidates that exceed the study's constraints, and how, in a sentence without its full stop."""
    if spec.constraints is None:
        return {}
    reasons = {name: spec.constraints.exceeded(costs[name]) for name in spec.names if name in costs}
    return {name: why for name, why in reasons.items() if why}


def refused(spec: StudySpec, costs: Costs) -> dict[str, str]:
    """The candidates that are not measured because they exceed the constraints, and how."""
    return too_costly(spec, costs) if spec.constraints is not None and spec.constraints.violated == "refuse" else {}


def check_some_left(spec: StudySpec, costs: Costs, unwritable: Mapping[str, str] = MappingProxyType({})) -> None:
    """Raise InputError where constraints leave nothing to choose from, given who cannot write the targets, and why."""
    costly, least = too_costly(spec, costs), 1 if not refused(spec, costs) else 2
    measured = [name for name in spec.names if name not in costly]
    left = [name for name in measured if not unwritable.get(name)]
    if costly and (len(measured) < least or not left):
        barred = costly | {name: unwritable[name] for name in measured if name not in left}
        reasons = "; ".join(f"{name}: {why}" for name, why in list(barred.items())[:3])
        raise InputError(
            f"The constraints leave {listing(left) or 'no candidate'} to choose from ({reasons}); raise a limit, or "
            f"add smaller candidates{', or set constraints.violated to measure' if len(left) == 1 else ''}."
        )
