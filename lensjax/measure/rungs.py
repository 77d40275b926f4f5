"""Models fine-tuned from one on a ladder of subsets, and the terms of the PAC-Bayes bound on every rung."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lensjax.core.artefacts import Damaged, read_sealed
from lensjax.core.errors import InputError, shorten
from lensjax.core.flops import matmul_flops
from lensjax.curvature.bound import EPSILON, REMAINDER, Block, LayerTerms, bound_terms, layer_terms, layer_terms_flops
from lensjax.curvature.phases import LEVEL, Phases, find_phases, fit_decay
from lensjax.curvature.streaming import Batches, Shares
from lensjax.measure.model_losses import target_tokens
from lensjax.measure.transition import residual_transition
from lensjax.models.hub import find_folder
from lensjax.models.inputs import model_fingerprint, naming_weights
from lensjax.models.loading import load
from lensjax.models.model import Batch, Model
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import Example, fingerprint, load_task
from lensjax.train.results import Result, read_result
from lensjax.train.runs import CLAIM, MODEL, SPEC, Claim, KeptSpec, has_our_tokens

_FITTED = ("examples", "sum_of_largest", "gap", "test_loss")


@dataclass(frozen=True)
class FinetuneRun:
    """The folder of a fine-tuning run, with its result and the model that it saved."""

    folder: Path
    result: Result


def find_runs(folders: Sequence[Path], source: str | Path, seed: int = 0) -> list[FinetuneRun]:
    """Runs as `lensjax finetune` and `lensjax curve --save-models` write them, by number of training examples.

    Args:
      folders: Folders of runs, or of a model: then its runs of the seed, without the one of no training examples.
      source: Folder or hub id of the model before fine-tuning.
      seed: Of the training examples.

    Raises:
      InputError: a folder holds no run, or one that failed, was of another model or seed, or saved no model.
    """
    weights = None
    taken = []
    for folder in folders:
        single = read_result(folder) is not None
        runs = [folder] if single else sorted(folder.glob(f"examples-*-seed-{seed}"))
        known = [
            (run, result) for run in runs if (result := read_result(run)) is not None and (single or result.examples)
        ]
        if not known:
            raise InputError(
                f"{shorten(folder, 400)} holds no run of seed {seed}; give a folder as `lensjax curve --save-models` "
                "writes them, OUT/MODEL or OUT/MODEL/examples-…"
            )
        for run, result in known:
            where = shorten(run, 400)
            if result.status != "ok" or not result.examples:
                raise InputError(f"{where} holds no fine-tuned model; leave it out.")
            if result.seed != seed:
                raise InputError(
                    f"{where} is of seed {result.seed} and not {seed}; give runs of one seed, and name it."
                )
            if not (run / MODEL).is_dir():
                raise InputError(f"{where} holds no model; run `lensjax curve` again with --save-models.")
            kept = _kept(run.parent.parent / SPEC)
            if kept is not None and not has_our_tokens(kept):
                raise InputError(
                    f"{where} was fine-tuned by another version of LensJAX, which made other tokens of the same texts; "
                    "fine-tune it again in a new folder."
                )
            claim = read_sealed(run.parent / CLAIM, Claim, required=False)
            if claim is not None:
                weights = weights or model_fingerprint(find_folder(source))
                if claim.weights != weights:
                    raise InputError(
                        f"{where} was fine-tuned from {shorten(claim.source, 200)}, whose weights are not those "
                        f"of {shorten(source, 200)}; give the model that it was made from."
                    )
            taken.append(FinetuneRun(run, result))
    return sorted(taken, key=lambda run: run.result.examples)


def _kept(path: Path) -> KeptSpec | None:
    """The spec of runs, where they lie in a folder that has one; copies of runs may lie beside anything."""
    try:
        return read_sealed(path, KeptSpec, required=False)
    except Damaged:
        return None


def training_examples(spec: TaskSpec, runs: Sequence[FinetuneRun], count: int) -> list[Example]:
    """The first examples that all runs were trained on: those that every rung of the ladder holds.

    Raises:
      InputError: a run was trained on fewer, or on others than the spec's.
    """
    least, largest = runs[0].result, runs[-1].result
    if count > least.examples:
        raise InputError(
            f"{count} examples are asked for, and the smallest of the fine-tuned models was trained on "
            f"{least.examples}; ask for that many at most, so that they are training examples of all."
        )
    rows = load_task(spec).train(least.seed, largest.examples)
    for run in runs:
        if fingerprint(rows[: run.result.examples]) != run.result.data:
            raise InputError(
                f"{shorten(run.folder, 400)} was trained on other examples than those of the spec; give the spec that "
                "it was made with, and its data."
            )
    return rows[:count]


@dataclass(frozen=True)
class Rung:
    """A fine-tuned model of a ladder.

    Attributes:
      examples: Training examples.
      train_loss: In nats per target token, over the examples that the terms were measured on.
      test_loss: In nats per target token.
      terms: Of its layers.
    """

    examples: int
    train_loss: float
    test_loss: float
    terms: LayerTerms


def rung_arrays(rung: Rung) -> dict[str, Any]:
    """A rung as named arrays without objects, which `read_rung` reads."""
    values = vars(rung) | vars(rung.terms)
    return {name: np.asarray(value) for name, value in values.items() if name != "terms" and value is not None}


def read_rung(arrays: Mapping[str, Any]) -> Rung:
    """The rung of which `rung_arrays` made these arrays."""
    terms = LayerTerms(
        layers=tuple(str(name) for name in arrays["layers"]),
        block="diagonal" if str(arrays["block"]) == "diagonal" else "joint",
        over="examples" if str(arrays["over"]) == "examples" else "batches",
        forms=arrays["forms"],
        positive=arrays.get("positive"),
        distances=arrays["distances"],
        losses=arrays["losses"],
    )
    return Rung(int(arrays["examples"]), float(arrays["train_loss"]), float(arrays["test_loss"]), terms)


class RungLosses(NamedTuple):
    """The losses of a model, compiled once for all its rungs.

    Attributes:
      each: (params, batch) → [examples], in nats per target token.
      mean: (params, batch) → the mean over target tokens, compiled.
    """

    each: Callable[[Any, Any], Any]
    mean: Callable[[Any, Any], Any]


def rung_losses(model: Model) -> RungLosses:
    """The losses of a model's architecture; they hold none of its parameters."""
    shapes = model.without_params()
    return RungLosses(lambda params, batch: shapes.loss(params, batch, "example"), jax.jit(shapes.loss))


def measure_rungs(
    model: Model,
    batches: Sequence[Batch],
    runs: Sequence[FinetuneRun],
    *,
    block: Block = "diagonal",
    positive_steps: int | None = None,
    losses: RungLosses | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Rung]:
    """The bound's ingredients for every fine-tuned model, read one at a time.

    Args:
      model: The pretrained model.
      batches: {name: [N, time]} of training examples that all runs share.
      runs: See `find_runs`.
      block, positive_steps: See `layer_terms`.
      losses: The model's, see `rung_losses`, if other calls had them compiled already.
      progress: Called with the number of finished batches, and of all.

    Raises:
      InputError: see `layer_terms`.
    """
    options, rungs = model.options, []
    each, mean = losses or rung_losses(model)
    tokens = Shares(Batches(batches, target_tokens(model)))
    for number, run in enumerate(runs):
        finetuned = load(run.folder / MODEL, dtype=options.dtype, param_dtype=options.param_dtype, mesh=options.mesh)

        def advance(done: int, total: int, before: int = number) -> None:
            if progress is not None:
                progress(before * total + done, len(runs) * total)

        how: dict[str, Any] = {"block": block, "positive_steps": positive_steps, "progress": advance}
        with naming_weights([model.folder, run.folder / MODEL]):
            terms = layer_terms(each, model.params, finetuned.params, Batches(batches), **how)
        train_loss = sum(share * float(mean(finetuned.params, one)) for _, share, one in tokens)
        assert run.result.loss is not None
        rungs.append(Rung(run.result.examples, train_loss, run.result.loss, terms))
    return rungs


def rung_flops(
    model: Model,
    batches: Sequence[Batch],
    *,
    block: Block = "diagonal",
    positive_steps: int | None = None,
    losses: RungLosses | None = None,
) -> int:
    """FLOPs that `measure_rungs` takes for one run; see `layer_terms_flops`."""
    each, mean = losses or rung_losses(model)
    terms = layer_terms_flops(each, model.params, Batches(batches), block=block, positive_steps=positive_steps)
    return terms + sum(matmul_flops(mean, model.params, one) for one in batches)


def ladder_summary(
    rungs: Sequence[Rung],
    *,
    loss_bound: float | None = None,
    epsilon: float = EPSILON,
    remainder: float = REMAINDER,
    level: float = LEVEL,
) -> dict[str, Any]:
    """The bound's terms on every rung, and with three rungs or more their decay and the phases.

    Args:
      rungs: Of one ladder, by size.
      loss_bound: C; by default the largest loss of an example at any rung.
      epsilon, remainder: See `bound_terms`.
      level: Of intervals.

    Returns:
      Content for JSON; `decay` is None if nothing can be fitted, and `not_fitted` says why.

    Raises:
      InputError: see `bound_terms`.
    """
    terms = rungs[0].terms
    largest_loss = max(float(rung.terms.losses.max()) for rung in rungs)
    bound = largest_loss if loss_bound is None else loss_bound
    rows = []
    for rung in rungs:
        h = rung.terms.largest
        of_bound = bound_terms(rung.examples, rung.train_loss, h, bound, epsilon=epsilon, remainder=remainder)
        rows.append(
            {
                "examples": rung.examples,
                "train_loss": rung.train_loss,
                "test_loss": rung.test_loss,
                "gap": rung.test_loss - (1 + epsilon) * rung.train_loss,
                "largest_loss": float(rung.terms.losses.max()),
                "sum_of_largest": float(h.sum()),
                "sum_of_means": float(rung.terms.mean.sum()),
                "squared_distance": float(rung.terms.distances.sum()),
                "empirical_term": of_bound.empirical,
                "hessian_term": of_bound.hessian,
                "remainder_term": of_bound.remainder,
                "bound": of_bound.total,
            }
        )
    summary: dict[str, Any] = {
        "block": terms.block,
        "over": terms.over,
        "positive_part": terms.positive is not None,
        "measured_on": terms.losses.size,
        "layers": len(terms.layers),
        "loss_bound": bound,
        "loss_bound_is": "given" if loss_bound is not None else "the largest loss of an example at any rung",
        "epsilon": epsilon,
        "remainder_constant": remainder,
        "rungs": rows,
        "decay": None,
    }
    n, total, gap, test = (np.array([row[name] for row in rows]) for name in _FITTED)
    try:
        decay = fit_decay(n, total, level)
        c3 = decay.c3(bound, len(terms.layers))
        return summary | {
            "decay": asdict(decay) | {"beta3": decay.beta3, "beta3_interval": decay.beta3_interval, "c3": c3},
            "phases": {
                "as_bounded": _phases(find_phases(n, gap, decay, c3)),
                "scale_fitted": _phases(find_phases(n, gap, decay, c3, scale=None)),
            },
            "residual_transition": residual_transition(n, test),
        }
    except InputError as error:
        return summary | {"not_fitted": str(error)}


def ladder_arrays(rungs: Sequence[Rung]) -> dict[str, Any]:
    """For every rung and layer H_i, the mean in its place, and ‖v_i‖²: [rungs, l]; and every form, [rungs, l, N]."""
    arrays = {
        "rung_examples": np.array([rung.examples for rung in rungs]),
        "rung_largest": np.stack([rung.terms.largest for rung in rungs]),
        "rung_means": np.stack([rung.terms.mean for rung in rungs]),
        "rung_squared_distances": np.stack([rung.terms.distances for rung in rungs]),
        "rung_forms": np.stack([rung.terms.forms for rung in rungs]),
    }
    parts = [rung.terms.positive for rung in rungs if rung.terms.positive is not None]
    return arrays | ({"rung_positive_parts": np.stack(parts)} if parts else {})


def _phases(phases: Phases) -> dict[str, Any]:
    return {
        "scale": phases.scale,
        "remainder_constant": phases.constant,
        "hessian": phases.hessian.tolist(),
        "remainder": phases.remainder.tolist(),
        "phase": list(phases.names),
        "transition": phases.transition,
        "reason": phases.reason,
    }
