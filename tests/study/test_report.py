"""Reports of studies at every stage, from folders as `lensjax run` leaves them."""

import csv
import html
import json
from dataclasses import asdict

import numpy as np
import pytest
from pydantic import ValidationError

from lensjax.core import text
from lensjax.core.devices import CPU_WATTS, watts
from lensjax.core.errors import InputError
from lensjax.curvature.bound import LayerTerms
from lensjax.curvature.dynamics import residual_loss, spectrum
from lensjax.measure.kernel import MeasuredKernel, choose_times
from lensjax.measure.measurement import Cell, Measured
from lensjax.measure.rungs import Rung, rung_arrays
from lensjax.models.heavy_tails import LayerMetrics, TailFit, WeightMetrics
from lensjax.models.inference import InferenceCost
from lensjax.report.pages.study import render_study
from lensjax.report.study_files import write_findings
from lensjax.selection import DEFAULT_METHOD, METHODS, ranking
from lensjax.selection.advice import Point
from lensjax.selection.decisive import Decisive, Plan
from lensjax.selection.records import ranking_csv
from lensjax.study.cost import run_cost
from lensjax.study.evidence import evidence_file, write_evidence
from lensjax.study.folder import open_study, run_folder, runs_folder
from lensjax.study.inference import write_costs
from lensjax.study.journal import Journal
from lensjax.study.report import _more, collect
from lensjax.study.schema import Elimination, StudyReport
from lensjax.study.spec import StudySpec
from lensjax.study.state import read_state
from lensjax.tasks.tokens import TOKENS_VERSION
from lensjax.tasks.writing import Writing
from lensjax.train.results import Result, write_result
from lensjax.train.runs import SEARCH

CANDIDATES = ("alpha", "beta", "gamma")
RUNGS, TARGET = (200, 400, 800), 6400
FILES = ["report.html", "report.json", "ranking.csv", "curves.csv"]


class Folder:
    """A study's folder, to which what a study leaves is written without computing it."""

    def __init__(self, root, **fields):
        rows = root / "rows.jsonl"
        rows.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(7000)))
        content = {
            "name": "toy",
            "candidates": [{"source": f"org/{name}", "name": name} for name in CANDIDATES],
            "task": {"name": "toy", "source": {"files": str(rows)}, "prompt": "{n}:", "target": "{n}"}
            | {"validation": 20, "test": 20},
            "budget": RUNGS[-1],
            "target": TARGET,
            "evidence": {"ntk": False},
        }
        self.spec, self.out = StudySpec.model_validate(content | fields), root / "study"
        open_study(self.spec, self.out)
        self.journal = Journal(self.out, self.spec.identity)

    def result(self, name, size, **fields):
        place = CANDIDATES.index(name)
        content = {
            "model": name,
            "examples": size,
            "loss": 5.0 if not size else (4 - place) * (size / 200 + place) ** -0.15 + 0.3,
            "seed": 0,
            "size": 10**6 * (place + 1),
            "family": "gpt2",
            "flops": 1000 * (place + 1) * (size or 10),
            "seconds": size / 100,
            "device": "cpu",
            "devices": 2,
            "lensjax": "0.1.0",
            "jax": "0.10.0",
        }
        return Result.model_validate(content | fields)

    def run(self, name, size, error="", **fields):
        """A run that ended, or failed where there is an error."""
        failed = {"status": "failed", "error": error, "loss": None} if error else {}
        result = self.result(name, size, **failed, **fields)
        cell = Cell("finetune", name, size, result.seed)
        folder = run_folder(self.out, self.spec.candidate(name), cell)
        folder.mkdir(parents=True)
        write_result(folder, result)
        status = "failed" if error else "ok"
        self.journal.add(cell=cell, status=status, error=error, seconds=10.0, flops=result.flops)
        return result

    def rungs(self, *sizes, names=CANDIDATES):
        for size in sizes:
            for name in names:
                self.run(name, size)

    def evidence(self, cell, asked, summary, arrays, flops=0):
        path = evidence_file(self.out, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_evidence(self.out, cell, Measured({"asked": {**asked, "tokens": TOKENS_VERSION}, **summary}, arrays))
        self.journal.add(cell=cell, seconds=5.0, flops=flops)
        return path

    def kernel(self, name, size=0, turned=0.0, examples=None):
        """With a ladder's size, one that fine-tuning has doubled and turned."""
        rng = np.random.default_rng(CANDIDATES.index(name))
        root = rng.standard_normal((8, 12)).astype(np.float32)
        theta, f0 = root @ root.T, rng.uniform(1, 5, 8).astype(np.float32)
        theta = (2 if size else 1) * ((1 - turned) * theta + turned * np.trace(theta) * np.eye(8, dtype=np.float32) / 8)
        values, y = spectrum(theta), np.zeros(8, np.float32)
        times = choose_times(values)
        kernel = MeasuredKernel(
            "loss", theta, None, f0, y, values, times, np.asarray(residual_loss(theta, f0, y, times)), (), 10**6
        )
        asked = self.spec.evidence.ntk.model_dump(mode="json") | ({} if examples is None else {"examples": examples})
        return self.evidence(Cell("ntk", name, size), asked, kernel.summary(), kernel.arrays(), kernel.flops)

    def hessian(self, name, size):
        """β₂ = −0.9 and C₃ = 0.01, so that the Hessian's term is 0.01 n^(−0.05), and a remainder equal to it at 500."""
        forms, losses = np.full((2, 4), 1.25e-5 * size**0.9), np.array([0.5, 1.0, 1.5, 2.0])
        terms = LayerTerms(("a", "b"), "joint", "examples", forms, None, np.ones(2), losses)
        rung = Rung(size, 0.0, 0.01 * (size**-0.05 + 500**0.7 * size**-0.75), terms)
        asked = self.spec.evidence.hessian.model_dump(mode="json")
        total = {"examples": size, "sum_of_largest": float(terms.largest.sum())}
        return self.evidence(Cell("hessian", name, size, 0), asked, total, rung_arrays(rung))

    def weights(self, name):
        place = CANDIDATES.index(name)
        layers = tuple(
            LayerMetrics(layer, (30, 30), TailFit(3.0 + place, 0.0, 1.0, 0.1), TailFit(1.0, 0.5 * scale, 1.0, 0.1))
            for layer, scale in (("a", 1), ("b", 3))
        )
        return self.evidence(Cell("weights", name), {}, asdict(WeightMetrics(layers, ())), {})

    def transferability(self, name):
        asked = self.spec.evidence.transferability.model_dump(mode="json")
        place = CANDIDATES.index(name)
        numbers = {"logme": 0.1 * place, "h_score": 3.0 - place, "layers": 2, "classes": 5, "size": 200}
        return self.evidence(Cell("transferability", name), asked, numbers, {})

    def report(self):
        return collect(self.spec, self.out).report


@pytest.fixture
def make(tmp_path):
    """Makes a study's folder; arguments replace fields of its spec."""
    return lambda **fields: Folder(tmp_path, **fields)


@pytest.fixture
def quick(monkeypatch):
    """Only methods that are fitted in no time."""

    names = ["ats", "zero_shot", "model_size", "sub_tuning", "lensllm"]  # the last without kernels
    monkeypatch.setattr(ranking, "methods_in_order", lambda: names)
    return {"method": "ats"}


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A study with all of its evidence."""
    folder = Folder(
        tmp_path_factory.mktemp("complete"),
        evidence={"ntk": {"examples": 8}, "hessian": {"examples": 4}, "transferability": True, "weights": True},
    )
    for name in CANDIDATES:
        folder.weights(name)
        folder.transferability(name)
        folder.kernel(name)
    for size in (0, *RUNGS):
        folder.rungs(size)
        for name in CANDIDATES if size else ():
            folder.hessian(name, size)
    folder.journal.add(decision="After 800 examples: gamma first.", basis="curves")
    return folder


@pytest.fixture(scope="module")
def found(complete):
    return collect(complete.spec, complete.out)


def test_nothing_measured(make):
    folder = make()
    assert [path.name for path in write_findings(collect(folder.spec, folder.out), folder.out)] == FILES
    report = StudyReport.model_validate_json((folder.out / "report.json").read_text())
    assert (
        report.decision.sentence
        == "No decision yet: nothing was measured so far. 12 runs and measurements of 12 are left."
    )
    assert (report.decision.model, report.decision.final) == (None, False)
    assert [candidate.state for candidate in report.candidates] == ["waiting"] * 3
    assert report.left_out == {}
    assert (folder.out / "ranking.csv").read_text().count("\n") == 1
    assert "No decision yet" in (folder.out / "report.html").read_text()
    assert report.cost.full_tuning is report.cost.share_saved is None
    assert report.lensllm_missing == "there is no ranking yet."


def test_one_rung_is_too_few(make):
    folder = make()
    folder.rungs(0, 200)
    report = folder.report()
    assert report.decision.sentence == (
        "No decision yet: a ranking needs two candidates measured at two sizes above 0, and there are none so far. "
        "6 runs and measurements of 12 are left."
    )
    assert report.candidates[0].losses == {0: 5.0, 200: pytest.approx(4.3)}
    assert report.phases == ()


def test_a_decision_so_far_says_what_is_left(make, quick):
    folder = make(**quick)
    folder.rungs(0, 200, 400)
    folder.run("gamma", 800)
    report = folder.report()
    best, second = report.ranking[0], report.ranking[1]
    assert report.decision.sentence == (
        f"So far, fine-tune {best.model}: predicted {best.predicted:.3f} nats per token at 6,400 examples; second "
        f"{second.model} at {second.predicted:.3f}, with 2 runs and measurements left."
    )
    assert (report.progress.done, report.progress.left, report.progress.ended_by) == (10, 2, None)


def test_a_candidate_that_cannot_write_the_answers_is_shown_and_not_chosen(make, quick):
    folder = make(**quick)
    lost = Writing(rows=40, unknown_targets=2, changed_targets=4, examples=(("día", "d<unk>a"),))
    for size in (0, *RUNGS):
        folder.rungs(size, names=CANDIDATES[:2])
        folder.run("gamma", size, writing=lost)  # whose losses are the lowest
    findings = collect(folder.spec, folder.out)
    report = findings.report
    why = "it cannot write 10 % of the 40 targets looked at, more than 0.1 %: 'día' is read back as 'd<unk>a'"
    assert [candidate.ineligible for candidate in report.candidates] == [None, None, why]
    assert report.candidates[2].writing == lost
    assert [(row.model, row.rank, row.ineligible) for row in report.ranking] == [
        ("beta", 1, None),
        ("alpha", 2, None),
        ("gamma", None, why),
    ]
    assert report.decision.model == "beta"
    write_findings(findings, folder.out)
    page = html.unescape((folder.out / "report.html").read_text())
    assert "Answers that models can write" in page
    assert f"I{why[1:]}." in page
    assert "2 ranked, 1 not to be chosen" in page
    with (folder.out / "ranking.csv").open(newline="") as rows:
        assert [row["ineligible"] for row in csv.DictReader(rows)] == ["", "", why]
    lenient = folder.spec.task.model_copy(update={"max_unwritable": 0.1})
    assert collect(folder.spec.model_copy(update={"task": lenient}), folder.out).report.decision.model == "gamma"


def test_a_method_that_predicts_no_loss(make, quick):
    folder = make(method="model_size")
    folder.rungs(0, *RUNGS)
    assert folder.report().decision.sentence == (
        "Fine-tune gamma: ModelSize ranks it first of 3 for 6,400 examples; second beta."
    )


@pytest.mark.parametrize("violated", ["refuse", "measure"])
def test_what_costs_too_much_is_not_chosen_and_a_smaller_one_may_be(make, quick, violated):
    limits = {"parameters": "2.5M", "violated": violated}
    folder = make(**quick, constraints=limits, prefer={"smallest_within": 0.5, "by": "flops_per_token"})
    costs = {
        name: {"parameters": 10**6 * (k + 1), "memory": 10**7, "flops_per_token": 2e6 * (k + 1), "context": 640}
        for k, name in enumerate(CANDIDATES)
    }
    write_costs(folder.out, {name: InferenceCost(**cost) for name, cost in costs.items()})
    folder.rungs(0, *RUNGS, names=CANDIDATES if violated == "measure" else CANDIDATES[:2])
    findings = collect(folder.spec, folder.out)
    report, why = findings.report, "it has 3M parameters, and at most 2.5M are allowed"
    states = {one.name: (one.state, one.ineligible) for one in report.candidates}
    assert states["gamma"] == ("measured" if violated == "measure" else "refused", why)
    assert report.left_out == ({} if violated == "measure" else {"gamma": f"not measured, as {why}"})
    assert [(row.model, row.rank) for row in report.ranking][:2] == [("beta", 1), ("alpha", 2)]
    assert [row.on_front for row in report.ranking][:2] == [True, True]
    assert report.cost.share_saved is not None
    assert report.decision.model == "alpha"
    beta, alpha = report.ranking[:2]
    assert report.decision.sentence == (
        f"Fine-tune alpha: predicted {alpha.predicted:.3f} nats per token at 6,400 examples, within 0.5 of the best of "
        f"2; the best, beta, at {beta.predicted:.3f}."
    )
    assert report.decision.because == (
        "alpha (2M FLOPs per token) is the smallest that is expected to be within 0.5 nats per token of the "
        f"best, beta (4M FLOPs per token): it gives up {alpha.predicted - beta.predicted:.2g}.",
        f"Fine-tuning alpha is predicted to gain {5 - alpha.predicted:.3f} nats per token over its untuned self.",
    )
    page = write_findings(findings, folder.out)[0].read_text()
    assert "Loss and cost" in page
    assert "Is fine-tuning worth it?" in page
    assert page.count(why[:1].upper() + why[1:]) == (violated == "measure")


def test_failures_say_what_to_do_and_drop_out(make, quick):
    folder = make(**quick)
    folder.rungs(0)
    folder.run("alpha", 200, error="the validation loss is nan after step 12")
    folder.rungs(*RUNGS, names=CANDIDATES[1:])
    report = folder.report()
    (failure,) = report.failures
    assert (failure.model, failure.cell) == ("alpha", "alpha, 200 examples, seed 0")
    assert "Lower learning_rate" in failure.mend
    assert "--retry" in failure.mend
    assert report.left_out == {"alpha": "failed: the validation loss is nan after step 12"}
    assert report.candidates[0].state == "failed"
    assert (report.progress.left, report.progress.ended_by) == (0, "ladder")
    assert report.decision.sentence.startswith("Fine-tune ")


def test_a_first_choice_that_failed_later_is_named(make, quick):
    folder = make(**quick)
    folder.rungs(0, 200, 400)
    folder.rungs(800, names=CANDIDATES[:2])
    folder.run("gamma", 800, error="the devices ran out of memory; lower batch_size")
    report = folder.report()
    assert report.decision.model == "gamma"
    assert report.warnings[0] == "gamma comes first, and a run of it failed: " + report.failures[0].error + "."


def test_runs_that_ended_while_still_learning_are_told_of(make, quick):
    folder = make(**quick)
    folder.rungs(0)
    for name in CANDIDATES:
        folder.run(name, 200, steps=40, best_step=40)
        folder.run(name, 400, steps=80, best_step=60)
    (said,) = (warning for warning in folder.report().warnings if "min_steps" in warning)
    assert said.startswith(f"In {len(CANDIDATES)} of {2 * len(CANDIDATES)} runs (the smallest on 200 examples)")


def test_all_but_one_failed(make, quick):
    folder = make(**quick)
    for name in CANDIDATES[:2]:
        folder.run(name, 0, error="its weights are damaged.")
    folder.rungs(0, *RUNGS, names=["gamma"])
    report = folder.report()
    assert report.decision.sentence == (
        "No decision: a ranking needs two candidates measured at two sizes above 0, and there is 1 so far. "
        "Failed: alpha, beta; the report says why, and what to do."
    )
    assert report.decision.final
    assert report.cost.full_tuning_of == ("gamma",)


def test_the_last_try_of_a_cell_counts(make, quick):
    folder = make(**quick)
    folder.rungs(0, 200, 400)
    folder.journal.add(cell=Cell("finetune", "alpha", 800, 0), status="failed", error="a disk was full", seconds=3.0)
    folder.rungs(800)
    report = folder.report()
    assert report.failures == ()
    assert next(one for one in report.cost.spent if one.model == "alpha").seconds == 43


def test_who_was_eliminated_and_after_which_rung(make, quick):
    folder = make(**quick)
    folder.rungs(0, 200, 400)
    folder.journal.add(
        decision="After 400 examples: …", basis="a", eliminated=("alpha",), probability_best={"alpha": 0.03}
    )
    folder.rungs(800, names=CANDIDATES[1:])
    report = folder.report()
    assert report.eliminated == (Elimination(model="alpha", after=400, probability_best=0.03),)
    assert report.progress.ended_by == "ladder"
    assert report.cost.skipped_flops == 800_000
    assert report.cost.ladder_flops == 1000 * sum(RUNGS) * 6
    folder.run("alpha", 800)  # under other rules
    assert folder.report().eliminated == ()


@pytest.mark.parametrize(
    ("entry", "ended_by"), [({"basis": "a", "stop": True, "choice": "alpha"}, "rule"), ({}, "budget")]
)
def test_measuring_ends_before_the_last_rung(make, quick, entry, ended_by):
    folder = make(**quick)
    folder.rungs(0, 200, 400)
    folder.journal.add(decision="It ends.", **entry)
    report = folder.report()
    assert (report.progress.left, report.progress.ended_by) == (0, ended_by)
    assert report.decision.final
    assert report.cost.skipped_flops == (4_800_000 if ended_by == "rule" else 0)
    assert [one.decision for one in report.journal] == ["It ends."]
    changed = "Measuring ended as alpha was clearly first, and gamma comes first by what is known now."
    assert (changed in report.warnings) == (ended_by == "rule")


def test_what_an_adaptive_study_has_left_is_not_known(make, quick):
    folder = make(strategy="adaptive", **quick)
    folder.rungs(0, 200)
    assert folder.report().progress.left == 3
    folder.rungs(400)
    assert folder.report().progress.left is None


def test_cost(make, quick):
    folder = make(seeds=[0, 1], **quick)
    for seed in (0, 1):
        for name in CANDIDATES[:2]:
            for size in (0, 200, 400):
                result = folder.run(name, size, seed=seed)
    assert folder.report().cost.full_tuning is None
    folder.run("gamma", 0, error="it is damaged", flops=0)
    tries = runs_folder(folder.out, folder.spec.candidate("beta")) / "beta" / SEARCH
    for rate, tried in (("0.1", result), ("0.2", folder.result("beta", 200, flops=77))):
        (tries / rate).mkdir(parents=True)
        write_result(tries / rate, tried)
    cost = folder.report().cost
    spent = {(one.model, one.kind): (one.cells, one.seconds, one.flops) for one in cost.spent}
    assert spent == {
        ("alpha", "finetune"): (6, 60.0, 2 * 610_000),
        ("beta", "finetune"): (6, 60.0, 2 * 1_220_000),
        ("beta", "learning_rates"): (1, 0.0, 77),  # the other one is a rung's
        ("gamma", "finetune"): (1, 10.0, 0),
    }
    assert (cost.total.flops, cost.total.seconds) == (6 * 610_000 + 77, 130)
    assert cost.full_tuning_of == ("alpha", "beta")
    assert cost.full_tuning.flops == 2 * 3 * 1000 * TARGET
    assert cost.full_tuning.seconds == pytest.approx(4 * TARGET / 100)
    assert cost.share_saved == pytest.approx(1 - cost.total.flops / cost.full_tuning.flops)
    assert cost.total.kwh == pytest.approx(130 * CPU_WATTS / 3.6e6)
    assert "CodeCarbon" in cost.energy


def test_energy_needs_a_device_whose_power_is_known(make, quick):
    folder = make(**quick)
    for name in CANDIDATES[:2]:
        folder.run(name, 200, device="NVIDIA H100 80GB HBM3")
    cost = folder.report().cost
    assert cost.total.kwh == pytest.approx(2 * 10 * 2 * 700 / 3.6e6)
    folder.run("gamma", 200, device="Abacus")
    cost = folder.report().cost
    assert cost.total.kwh is cost.full_tuning.kwh is None
    assert cost.energy == "Energy is not estimated: the power of Abacus is not known."


@pytest.mark.parametrize(
    ("device", "power"),
    [
        ("cpu", CPU_WATTS),
        ("TPU v3", 225),
        ("TPU v5 lite", None),
        ("NVIDIA A100-SXM4-80GB", 400),
        ("NVIDIA H200", 700),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_watts(device, power):
    assert watts(device) == power


def test_the_target_may_be_all_there_is_and_the_data_may_be_gone(make, quick):
    folder = make(target=None, **quick)
    folder.rungs(0, 200, 400)
    assert folder.report().target == 7000 - 40
    (folder.out.parent / "rows.jsonl").unlink()
    with pytest.raises(InputError, match=r"rows\.jsonl"):
        folder.report()
    given = folder.spec.model_copy(update={"target": TARGET})
    assert collect(given, folder.out).report.progress.left == 3


def test_damage_to_the_journal_is_told(make):
    folder = make()
    folder.rungs(0)
    with folder.journal.path.open("a") as file:
        file.write("{half a li\n")
    assert folder.report().warnings == ("1 damaged lines of the journal were set aside, in journal.quarantined.jsonl.",)
    assert folder.report().progress.done == 3


def test_all_or_none(make, quick):
    folder = make(**quick)
    (folder.out / "ranking.csv").mkdir()
    with pytest.raises(InputError, match=r"ranking\.csv is a folder, and a file of LensJAX belongs there; remove it"):
        write_findings(collect(folder.spec, folder.out), folder.out)
    assert not any((folder.out / name).exists() for name in FILES if name != "ranking.csv")


def test_a_damaged_file_is_named(make, quick):
    folder = make(evidence={"ntk": True}, **quick)
    path = folder.kernel("alpha").with_suffix(".npz")
    path.write_bytes(b"PK")
    (said,) = folder.report().warnings
    assert said.startswith("evidence/alpha/ntk.json is left out (ntk.npz has 2 bytes, and 2,")


def test_the_whole_of_it(complete, found):
    report = found.report
    first = report.ranking[0]
    assert report.decision.sentence.startswith(
        f"Fine-tune {first.model}: predicted {first.predicted:.3f} nats per token"
    )
    assert "(90 % interval " in report.decision.sentence
    assert "best of 3 with probability " in report.decision.sentence
    assert set(first.baselines) == set(METHODS) - {DEFAULT_METHOD}
    scores = {row.model: row.baselines["nlp_metrics"] for row in report.ranking}
    assert scores == {"alpha": 4.0, "beta": 5.0, "gamma": 6.0}
    assert {row.model: row.baselines["h_score"] for row in report.ranking} == {
        "alpha": -3.0,
        "beta": -2.0,
        "gamma": -1.0,
    }
    assert {one.model: one.logme for one in report.transferability} == {"alpha": 0.0, "beta": 0.1, "gamma": 0.2}
    assert report.decision.final
    assert [one.decision for one in report.journal] == ["After 800 examples: gamma first."]
    assert report.origin.devices == ("2 × cpu",)


def test_kernels_and_terms_are_as_they_were_measured(complete, found):
    kernel = found.report.kernels[0]
    assert (kernel.model, kernel.size, len(kernel.eigenvalues)) == ("alpha", 8, 8)
    assert kernel.residuals[0] > kernel.residuals[-1] > 0
    for terms in found.report.bound_terms:
        assert terms.examples == RUNGS
        assert terms.sum_of_largest == pytest.approx([2.5e-5 * size**0.9 for size in RUNGS])
        assert terms.beta2.value == pytest.approx(-0.9)
        assert terms.beta2.lower <= terms.beta2.value <= terms.beta2.upper
    assert {phase.seen_in for phase in found.report.phases} == {"bound"}


def test_drift_of_kernels_along_the_ladder(make, quick):
    folder = make(evidence={"ntk": {"along_ladder": True}}, **quick)
    folder.rungs(0, *RUNGS)
    folder.kernel("alpha")
    for turned, size in enumerate(RUNGS):
        folder.kernel("alpha", size, turned / 4)
    folder.kernel("beta", RUNGS[0])  # whose own is missing
    folder.kernel("gamma")
    folder.kernel("gamma", RUNGS[0], examples=7)  # which are others than its own is on
    folder.kernel("gamma", RUNGS[1]).with_suffix(".npz").unlink()
    (drift,) = folder.report().kernel_drifts
    assert (drift.model, drift.seed, drift.examples) == ("alpha", 0, RUNGS)
    assert drift.drift[0] == pytest.approx(0, abs=1e-7)  # twice the kernel
    assert np.all(np.diff(drift.drift) > 0.005)
    assert drift.growth == pytest.approx([2] * len(RUNGS))
    assert np.all(np.diff(drift.effective_rank) > 0)
    assert None not in drift.target_alignment


def test_phases_begin_where_the_terms_change_over(make, quick):
    folder = make(evidence={"ntk": False, "hessian": {"examples": 4}}, **quick)
    folder.rungs(0, *RUNGS)
    for size in RUNGS:
        folder.hessian("alpha", size)
    phases = {phase.model: phase for phase in folder.report().phases}
    (terms,) = folder.report().bound_terms
    assert (phases["alpha"].seen_in, phases["beta"].seen_in) == ("bound", "losses")
    assert terms.phases == ("pre-power", "pre-power", "power")
    assert terms.transition == pytest.approx(500)
    assert phases["alpha"].begins == 800
    assert phases["beta"].begins is None
    assert phases["beta"].note


def test_lensllm_and_its_ablation(found):
    told = found.report.lensllm
    assert [one.variant for one in told.ablation] == ["tied", "published", "hierarchical", "free"]
    assert all(set(one.predicted) == set(CANDIDATES) for one in told.ablation)
    assert told.b.lower <= told.b.value <= told.b.upper
    assert "NTK term" in told.verdict


def test_lensllm_ranks_where_it_is_asked_to(complete, found):
    spec = complete.spec.model_copy(update={"method": "lensllm"})
    ranked = collect(spec, complete.out)
    assert ranked.ranking.prediction.widening == 1.0  # the joint fit's intervals alone are widened
    tied = found.report.lensllm.ablation[0].predicted
    predicted = {row.model: row.predicted for row in ranked.report.ranking}  # medians of draws
    assert predicted == pytest.approx(tied, rel=3e-3)
    assert [row.model for row in ranked.report.ranking] == sorted(tied, key=tied.get)
    assert "joint" in ranked.report.ranking[0].baselines
    assert sum(row.probability_best for row in ranked.report.ranking) == pytest.approx(1)
    assert ranked.ranking.curves.loss.shape[0] == 3


def test_without_kernels_lensllm_says_why(make, quick):
    folder = make(evidence={"ntk": True}, **quick)
    folder.rungs(0, *RUNGS)
    report = folder.report()
    assert report.lensllm is None
    assert report.lensllm_missing.startswith("No model has a kernel")
    folder.kernel("alpha")
    report = folder.report()
    assert "1 model;" in report.lensllm_missing
    assert [kernel.model for kernel in report.kernels] == ["alpha"]


def test_files_hold_what_the_report_says(complete, found):
    write_findings(found, complete.out)
    assert StudyReport.model_validate_json((complete.out / "report.json").read_text()) == found.report
    with (complete.out / "ranking.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == [row.model for row in found.report.ranking]
    assert (complete.out / "curves.csv").read_text().count("\n") == 1 + 3 * 4


def test_the_schema_has_a_version_and_refuses_others(found):
    schema = StudyReport.model_json_schema()
    assert schema["properties"]["version"]["const"] == 1
    assert schema["additionalProperties"] is False
    content = found.report.model_dump(mode="json")
    for wrong in ({"version": 2}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            StudyReport.model_validate(content | wrong)


def comparable(folder, name, size, **fields):
    """A run with what the test shows besides the loss per token; larger models cut texts into more tokens."""
    loss = folder.result(name, size).loss
    bits = loss * (1 + CANDIDATES.index(name))
    known = {"bits_per_byte": bits, "bits_per_byte_error": 0.0123, "nats_per_example": 9.5, "token_accuracy": 0.75}
    folder.run(name, size, **{**known, "exact_match": 0.5, "exact_match_error": 0.05, **fields})


def test_candidates_are_compared_in_bits_per_byte_where_all_are_known(make, quick):
    folder = make(**quick)
    for size in (0, 200, 400):
        for name in CANDIDATES:
            comparable(folder, name, size, note="2 targets were cut" if name == "beta" else "")
    collected = collect(folder.spec, folder.out)
    report = collected.report
    assert report.unit == "bits per byte"
    assert report.decision.sentence.startswith("So far, fine-tune alpha: predicted ")  # gamma by nats per token
    assert " bits per byte at 6,400 examples" in report.decision.sentence
    assert report.candidates[2].losses[400] == pytest.approx(3 * folder.result("gamma", 400).loss)
    last = report.candidates[2].tests[-1]
    assert (last.examples, last.seeds, last.scores["token_accuracy"].error) == (400, 1, None)
    assert last.scores["bits_per_byte"].error == 0.0123
    assert report.candidates[1].notes == ("2 targets were cut",)
    assert not any("tokenizer" in sentence for sentence in (*report.assumptions, *report.warnings))
    page = render_study(report, collected.ranking)
    for said in ("0.500 ± 0.050", "± 0.012", "2 targets were cut", "test loss, bits per byte (log scale)"):
        assert said in page
    assert "nats per token" not in page
    assert ranking_csv(collected.ranking).splitlines()[1].endswith(",bits per byte")


def test_a_candidate_without_bits_per_byte_is_not_chosen_and_the_others_are_compared_by_them(make, quick):
    folder = make(**quick)
    for size in (0, 200, 400):
        for name in CANDIDATES:
            comparable(folder, name, size, **({"bits_per_byte": None} if name == "beta" else {}))
    report = folder.report()
    assert report.unit == "bits per byte"
    assert "fine-tune alpha" in report.decision.sentence
    beta = report.candidates[1]
    assert (beta.state, beta.losses, len(beta.tests)) == ("measured", {}, 3)
    assert beta.ineligible == "its losses are not all known in bits per byte, which the others are compared by"


def test_where_one_candidate_alone_has_bits_per_byte_tokens_are_compared_and_that_is_said(make, quick):
    folder = make(**quick)
    for size in (0, 200, 400):
        for name in CANDIDATES:
            comparable(folder, name, size, **({} if name == "alpha" else {"bits_per_byte": None}))
    report = folder.report()
    assert report.unit == "nats per token"
    assert "fine-tune gamma" in report.decision.sentence
    assert report.warnings[0].startswith(
        "Losses of beta, gamma are not known in bits per byte, so all are compared in nats per"
    )


def test_hours_have_a_price(make, quick):
    folder = make(**quick, price_per_hour=3600.0)
    folder.rungs(0, 200, 400)
    total = folder.report().cost.total
    assert total.seconds > 0
    assert total.price == pytest.approx(total.seconds)


def test_what_is_too_close_says_which_runs_would_probably_decide_it(make, quick, monkeypatch):
    folder = make(**quick, price_per_hour=3.6e5)
    folder.rungs(0, 200, 400)
    found, state = collect(folder.spec, folder.out).ranking, read_state(folder.spec, folder.out)
    assert _more(state, found) == ""  # ats knows no probabilities
    points = tuple(Point(name, 800) for name in found.table.models[:2])
    costs = [run_cost(state, *point) for point in points]

    def decides(ranking, cost):
        assert [cost(point) for point in points] == [one.seconds for one in costs]
        assert cost(Point("not measured", 800)) is None
        return Decisive(Plan(points, 1.0, 0.64, 0.02, 0.71))

    monkeypatch.setattr("lensjax.study.report.decisive", decides)
    seconds, flops = sum(one.seconds for one in costs), sum(one.flops for one in costs)
    assert _more(state, found) == (
        f"Fine-tuning {points[0].model}, {points[1].model} on 800 examples each (1,600 in all, about "
        f"{text.duration(seconds)}, {text.flops(flops)}, {100 * seconds:,.2f} at the given price per hour) may "
        "well decide it: P(best) of the choice is then 0.8 or more with probability 0.64 as simulated (about half as "
        "often in trials), and 0.71 on average. A budget of 800 measures them, and the other candidates that are left."
    )
    monkeypatch.setattr("lensjax.study.report.decisive", lambda ranking, cost: Decisive(None, "It is not known."))
    assert _more(state, found) == "It is not known."
