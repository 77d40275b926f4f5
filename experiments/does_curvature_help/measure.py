"""Measure the models of the pocket zoo on three real tasks: their curves, kernels, Hessians and weights.

    python experiments/does_curvature_help/measure.py [--tasks NAME …] [--models NAME …] [--largest 12800] …

Stopped or killed, the same command goes on, and it may be given more tasks, models, seeds or examples later. What other
machines have measured stays in the results. See README.md beside this file.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro
from pydantic import ValidationError

from lensjax.core.artefacts import read_sealed
from lensjax.core.errors import InputError
from lensjax.core.files import LOCK, locked, make_folder, write_files
from lensjax.measure.kinds.hessian import bound_terms
from lensjax.measure.kinds.ntk import kernel_drifts, kernels, residuals
from lensjax.measure.kinds.weights import weight_scores
from lensjax.measure.measurement import Cell
from lensjax.models.pocket import SCHEME, bundled
from lensjax.study.evidence import read_evidence
from lensjax.study.folder import read_results, read_searches, running, runs_folder, study_records
from lensjax.study.runner import run_study
from lensjax.study.spec import CandidateSpec, StudySpec, read_study
from lensjax.study.state import StudyState, read_state
from lensjax.tasks.ready_made import TASKS, write_rows
from lensjax.train.ladder import measure_curve
from lensjax.train.loop import Stopped
from lensjax.train.results import WRITING, Result, curves_csv
from lensjax.train.runs import CLAIM, Claim

Training = Literal["twelve_epochs", "eight_epochs", "thrice_as_long"]
Curvature = Literal["of_the_code", "of_the_theorem"]

HERE = Path(__file__).parent
ZOO = HERE.parent / "pocket_zoo" / "build" / "models"
SHARED = {"learning_rate": [1e-3, 3e-3], "batch_size": 32}
TRAINING = {  # the same for all models
    "twelve_epochs": SHARED | {"epochs": 12, "min_steps": 1600, "patience": 4},
    "eight_epochs": SHARED | {"epochs": 8, "patience": 2},  # which leaves small sets half learned
    "thrice_as_long": SHARED | {"epochs": 12, "min_steps": 4800, "patience": 12},  # through plateaus
}
HELD_OUT = (500, 2000)  # examples for validation and test
CURVATURE: dict[Curvature, dict[str, dict[str, Any]]] = {
    "of_the_code": {"ntk": {"functional": "loss"}, "hessian": {"block": "joint"}},
    "of_the_theorem": {"ntk": {"functional": "label_logits"}, "hessian": {"block": "diagonal", "positive_steps": 16}},
}
PROBES = 32  # training examples that kernels and Hessians are measured on


class Asked(NamedTuple):
    """Which models are measured on a packaged task, in which folder, how they are trained, and which curvature."""

    task: str
    models: tuple[str, ...]
    folder: Path
    largest: int
    seeds: tuple[int, ...]
    training: Training
    curvature: Curvature
    held_out: tuple[int, int] | None = None

    @property
    def out(self) -> Path:
        """The study's folder."""
        return self.folder / self.task


def study_content(asked: Asked) -> dict[str, Any]:
    """A study of models of the zoo; its kernels and Hessians are at the first seed's examples."""
    packaged = TASKS[asked.task]
    here = bundled()
    sources = (SCHEME + name if SCHEME + name in here else str(ZOO / name) for name in asked.models)
    return {
        "name": asked.task,
        "candidates": [{"source": source, "name": name} for source, name in zip(sources, asked.models, strict=True)],
        "task": {
            "source": {"files": str(asked.folder / f"{asked.task}.jsonl")},
            "prompt": packaged.prompt,
            "target": packaged.target,
            **({} if packaged.choices is None else {"choices": list(packaged.choices)}),
            **dict(zip(("validation", "test"), asked.held_out or HELD_OUT, strict=True)),
            "max_prompt_tokens": packaged.max_prompt_tokens,
            "max_target_tokens": packaged.max_target_tokens,
        },
        "training": TRAINING[asked.training],
        "budget": asked.largest,
        "target": asked.largest,
        "seeds": list(asked.seeds),
        "evidence": {
            "ntk": {"examples": PROBES, "along_ladder": True} | CURVATURE[asked.curvature]["ntk"],
            "hessian": {"examples": PROBES} | CURVATURE[asked.curvature]["hessian"],
            "weights": True,
        },
    }


def evidence(state: StudyState, out: Path) -> dict[str, Any]:
    """What was measured besides curves, small enough to be kept: of kernels the modes, of Hessians the sums."""
    records = study_records(state.spec, state.out, state.sizes, None)
    modes = residuals(records)
    spec, searches = state.spec, {}
    for candidate in spec.candidates:
        if rejected := read_searches(out, candidate, state.results):
            searches[candidate.name] = sum(run.flops for run in rejected)
    claims = {one.name: read_sealed(runs_folder(out, one) / one.name / CLAIM, Claim) for one in spec.candidates}
    return {
        "pretrained": {name: claim.weights for name, claim in claims.items() if claim is not None},
        "searches": searches,
        "kernels": [
            {
                "model": kernel.model,
                "functional": kernel.functional,
                "examples": kernel.size,
                "effective_rank": kernel.effective_rank,
                "flops": kernel_flops(out, Cell("ntk", kernel.model, 0, spec.seeds[0])),
                "rates": modes[kernel.model][0].tolist(),
                "weights": modes[kernel.model][1].tolist(),
            }
            for kernel in kernels(records)
        ],
        "drifts": [drift.model_dump(mode="json") for drift in kernel_drifts(records)],
        "bound": [terms.model_dump(mode="json") for terms in bound_terms(records)],
        "weights": weight_scores(records),
    }


def kernel_flops(out: Path, cell: Cell) -> int:
    """FLOPs of a kernel that was measured."""
    found = read_evidence(out, cell)
    return 0 if found is None else int(found.summary["flops"])


def write_results(spec: StudySpec, out: Path, results: Path) -> None:
    """Write a study's curves and evidence, of candidates measured so far, to where the analysis finds them.

    What is there of other runs stays, and of two ladders of a model and seed the longer one. Runs that failed are left
    out.

    Raises:
      InputError: the results there cannot be read, or are of other settings.
    """
    make_folder(results)
    curves, told = results / f"{spec.name}.csv", results / f"{spec.name}.json"
    measured = [run for run in read_results(spec, out) if run.status == "ok"]
    content = evidence(read_state(spec, out), out)
    with locked(results / LOCK):
        runs = {(run.model, run.examples, run.seed): run for run in [*_read_curves(curves, measured), *measured]}
        content = _joined(_read_evidence(told), content, told)
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_files({curves: curves_csv([*runs.values()], spec.task.max_unwritable), told: text})


def _read_curves(file: Path, measured: Sequence[Result]) -> list[Result]:
    """Results that were written before; they must be of the settings, test set and type of what is measured now."""
    if not file.exists():
        return []
    try:
        with file.open(encoding="utf-8", newline="") as rows:
            cells = ({k: v for k, v in row.items() if v and k not in WRITING} for row in csv.DictReader(rows))
            known = [Result.model_validate(row) for row in cells]
    except (OSError, ValueError, ValidationError) as error:
        raise InputError(f"Cannot read {file}; remove it, or name another folder with --results.") from error
    if {(run.spec, run.dtype) for run in known} - {(run.spec, run.dtype) for run in measured}:
        raise InputError(f"{file} holds runs of other settings or test examples; name another folder with --results.")
    sizes = {run.model: run.size for run in measured}
    for run in known:
        if sizes.get(run.model, run.size) != run.size:
            raise InputError(f"{file} holds runs of another {run.model}; name another folder with --results.")
    return known


def _read_evidence(file: Path) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "pretrained": {},
        "searches": {},
        "kernels": [],
        "drifts": [],
        "bound": [],
        "weights": {},
    }
    if not file.exists():
        return nothing
    try:
        return nothing | json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {file}; remove it, or name another folder with --results.") from error


def _joined(before: dict[str, Any], now: dict[str, Any], file: Path) -> dict[str, Any]:
    """Evidence of two times: the later kernels and weights, and the longer ladders.

    Raises:
      InputError: a model was pretrained otherwise before.
    """
    for model, weights in now["pretrained"].items():
        if before["pretrained"].get(model, weights) != weights:
            raise InputError(f"{file} holds measurements of another {model}; name another folder with --results.")

    def longer(name: str) -> list[dict[str, Any]]:
        ladders: dict[tuple[str, int], dict[str, Any]] = {}
        for ladder in [*before[name], *now[name]]:
            known = ladders.setdefault((ladder["model"], ladder["seed"]), ladder)
            if len(ladder["examples"]) >= len(known["examples"]):
                ladders[ladder["model"], ladder["seed"]] = ladder
        return [*ladders.values()]

    kernels = {kernel["model"]: kernel for kernel in [*before["kernels"], *now["kernels"]]}
    return {
        **{name: before[name] | now[name] for name in ("pretrained", "searches", "weights")},
        "kernels": [*kernels.values()],
        "drifts": longer("drifts"),
        "bound": longer("bound"),
    }


def main(
    tasks: tuple[str, ...] = tuple(TASKS),
    models: tuple[str, ...] = (),
    largest: int = 12_800,
    sizes: tuple[int, ...] = (),
    seeds: tuple[int, ...] = (0,),
    training: Training = "twelve_epochs",
    curvature: Curvature = "of_the_code",
    held_out: tuple[int, int] | None = None,
    folder: Path | None = None,
    results: Path | None = None,
) -> None:
    """Measure models on tasks; what was measured before stays.

    Args:
        tasks: Packaged tasks; see `lensjax data fetch`.
        models: Of the zoo; by default those that are part of LensJAX, and those that pretrain.py has made.
        largest: Rung of the ladder.
        sizes: Runs of these numbers of examples alone instead of the ladder, without kernels and Hessians.
        seeds: Of the choice and order of training examples.
        training: For twelve epochs or 1,600 steps, whichever is more; for eight epochs, which are too few on small
            sets; or for three times the steps and with more patience, so that what is learned late is seen.
        curvature: The kernel of the loss, and what all blocks of the Hessian do together to each layer, as in LensLLM's
            code; or the kernel of the labels' logits, and the positive part of each layer's own block, as in its
            theorem.
        held_out: Numbers of examples for validation and for test; by default 500 and 2,000.
        folder: Where data, studies and runs are kept; by default build beside this file.
        results: Where TASK.csv and TASK.json are written; by default results, or a folder in it for other training or
            curvature.
    """
    models = models or available()
    own = Path() if training == "twelve_epochs" else Path(training)
    own = own if curvature == "of_the_code" else own / curvature
    folder, results = folder or HERE / "build" / own, results or HERE / "results" / own
    make_folder(folder)
    for task in tasks:
        if not (folder / f"{task}.jsonl").exists():
            write_rows(task, folder)
        asked = Asked(task, models, folder, largest, seeds, training, curvature, held_out)
        spec = study(asked._replace(largest=max(largest, *sizes, 0)))
        if sizes:
            for candidate in spec.candidates:
                measure_sizes(spec, candidate, asked.out, sizes)
                write_measured(asked, results)
        else:
            run_study(spec, asked.out, say=lambda sentence: print(sentence, flush=True))
            write_measured(asked, results)


def measure_sizes(spec: StudySpec, candidate: CandidateSpec, out: Path, sizes: Sequence[int]) -> None:
    """Fine-tune a candidate of a study on some numbers of examples, where the study would."""
    how, runs = spec.finetune_spec(candidate), runs_folder(out, candidate)
    with running(spec, out):
        for result in measure_curve(how, candidate.source, runs, sizes, seeds=spec.seeds, name=candidate.name):
            print(f"{result.model}, {result.examples:,} examples, seed {result.seed}: {result.loss}", flush=True)


def write_measured(asked: Asked, results: Path) -> None:
    """Write the results of all models, sizes and seeds of a task that are in the folder."""
    runs = asked.out / "runs"
    before = [name for name in available() if (runs / name).is_dir()]
    sown = {int(run.name.rpartition("-")[2]) for run in runs.glob("*/examples-*-seed-*")}
    models = tuple(dict.fromkeys([*asked.models, *before]))
    asked = asked._replace(models=models, seeds=tuple(sorted({*asked.seeds, *sown})))
    reached = max(result.examples for result in read_results(study(asked), asked.out))
    write_results(study(asked._replace(largest=max(asked.largest, reached))), asked.out, results)


def study(asked: Asked) -> StudySpec:
    """The study of some models, whose file is left in the folder."""
    file = asked.folder / f"{asked.task}.yaml"
    write_files({file: json.dumps(study_content(asked), indent=2) + "\n"})
    return read_study(file)


def available() -> tuple[str, ...]:
    """Names of the models that can be measured, the bundled ones first."""
    made = sorted(path.name for path in ZOO.glob("*") if (path / "config.json").exists())
    return tuple(dict.fromkeys([*(name.removeprefix(SCHEME) for name in bundled()), *made]))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(str(error)) from error
    except Stopped as stopped:
        raise SystemExit("Stopped; the same command goes on.") from stopped
