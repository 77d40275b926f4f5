"""Running studies: every cell once, decisions, budgets, candidates that fail, and going on."""

import csv
import json
import shutil
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.core.files import locked
from lensjax.curvature.dynamics import kernel_drift
from lensjax.curves.csv_files import read_curves
from lensjax.measure.kinds.ntk import kernel_drifts
from lensjax.measure.measurement import Cell
from lensjax.selection.prediction import Prediction
from lensjax.study import decisions
from lensjax.study.bench import Bench, Outcome
from lensjax.study.cells import cells_left
from lensjax.study.checks import refused_rows
from lensjax.study.evidence import evidence_file, read_evidence
from lensjax.study.folder import read_results, read_searches, runs_folder, study_records
from lensjax.study.journal import Journal
from lensjax.study.launching import LAUNCHERS
from lensjax.study.runner import _Runner, run_study
from lensjax.study.spec import Budget, StopRule, read_study
from lensjax.study.state import read_state
from lensjax.tasks.task import load_task
from lensjax.train.loop import Stopped
from lensjax.train.results import Result, write_result
from lensjax.train.runs import SEARCH

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FAMILIES = ("gpt2", "llama", "opt", "t5")
TRAINING = {"learning_rate": 3e-3, "batch_size": 16, "epochs": 1, "max_steps": 25}  # enough to learn something


def curves(folder):
    """The rows of curves.csv but for their times."""
    with (folder / "curves.csv").open() as file:
        return [row | {"seconds": ""} for row in csv.DictReader(file)]


def ran(journal):
    """The cells of a journal, in order."""
    return [entry.cell for entry in journal.entries if entry.cell is not None]


@pytest.fixture(scope="module")
def finished(write_study, tmp_path_factory):
    """The spec, the folder, the journal and the sentences of a study of four families on five rungs."""
    folder = tmp_path_factory.mktemp("finished")
    evidence = {"ntk": {"examples": 8}}
    spec = read_study(write_study(folder, *FAMILIES, budget=1600, evidence=evidence, training=TRAINING))
    said = []
    return spec, folder / "study", run_study(spec, folder / "study", say=said.append), said


def test_all_candidates_are_on_a_rung_before_the_next(finished):
    _, folder, journal, said = finished
    runs = [cell for cell in ran(journal) if cell.kind == "finetune"]
    assert runs == [Cell("finetune", name, size) for size in (0, 200, 400, 800, 1600) for name in FAMILIES]
    assert [cell for cell in ran(journal) if cell.kind == "ntk"] == [Cell("ntk", name) for name in FAMILIES]
    assert all(entry.status == "ok" for entry in journal.entries)
    table = read_curves(folder / "curves.csv")
    assert sorted(table.models) == sorted(FAMILIES)
    assert table.measured.all()
    assert (table.column(1600) < table.column(0)).all()
    assert [f"After {size:,} examples" in said[-1] for size in (800, 1600)] == [False, True]
    assert len([entry for entry in journal.entries if entry.decision]) == 3
    for name in FAMILIES:
        kernel = read_evidence(folder, Cell("ntk", name))
        assert kernel.arrays["theta"].shape == (8, 8)
        assert kernel.summary["asked"]["examples"] == 8


def test_the_benchmark_of_overheads_accounts_for_all_of_a_study_s_time(finished, imported):
    _, folder, journal, _ = finished
    with imported(BENCHMARKS, "study") as modules:
        told = modules["study"].told(folder.with_suffix(".yaml"), 1000.0)
    seconds = {name: of["median_s"] for name, of in told.items() if isinstance(of, dict)}
    assert (told["runs"], told["cells"]) == (20, 24)
    assert sum(seconds.values()) == pytest.approx(2 * 1000)  # the whole and its parts
    kernels = [entry.seconds for entry in journal.entries if entry.cell is not None and entry.cell.kind == "ntk"]
    assert seconds["curvature"] == pytest.approx(sum(kernels))
    assert 0 < seconds["inside_runs"] < seconds["training"]
    committed = json.loads((BENCHMARKS / "results" / "study.json").read_text())["parts"]
    assert all(told.keys() <= part.keys() for part in committed.values())
    assert all(0 < part["overhead"] < 1 for part in committed.values())


def test_a_finished_study_has_nothing_left(finished, monkeypatch):
    spec, folder, journal, _ = finished
    assert cells_left(spec, folder) == []
    before = (folder / "journal.jsonl").read_bytes()
    monkeypatch.setattr(decisions, "predict_by", None)  # what was decided is recalled
    again = run_study(spec, folder)
    assert again.entries == journal.entries
    assert (folder / "journal.jsonl").read_bytes() == before


def test_a_lost_journal_is_made_anew_from_results(finished, tmp_path):
    spec, folder, journal, _ = finished
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "journal.jsonl").unlink()
    again = run_study(spec, tmp_path / "copy")
    assert ran(again) == ran(journal)
    assert curves(tmp_path / "copy") == curves(folder)
    assert [e.decision for e in again.entries if e.decision] == [e.decision for e in journal.entries if e.decision]


def test_other_evidence_is_measured_anew(finished, tmp_path):
    spec, folder, _, _ = finished
    shutil.copytree(folder, tmp_path / "copy")
    more = spec.model_copy(
        update={
            "evidence": spec.evidence.model_copy(update={"ntk": spec.evidence.ntk.model_copy(update={"examples": 9})})
        }
    )
    assert cells_left(more, tmp_path / "copy") == [Cell("ntk", name) for name in FAMILIES]


def test_limits_and_dry_runs(write_study, tmp_path):
    spec = read_study(write_study(tmp_path, "gpt2", "opt", "t5", constraints={"parameters": "40k"}))
    left = cells_left(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert left == [Cell("finetune", name, size) for size in (0, 200, 400) for name in ("gpt2", "opt")]
    said = []
    assert ran(run_study(spec, tmp_path / "out", limit=2, say=said.append)) == left[:2]
    assert said[0] == "t5 is not measured: it has 46.7k parameters, and at most 40k are allowed."
    assert said[-1] == "Stopped after 2 cells; the same command goes on."
    assert cells_left(spec, tmp_path / "out") == left[2:]
    assert ran(run_study(spec, tmp_path / "out", limit=4)) == left


def test_a_launcher_is_added_by_one_function(write_study, tmp_path, monkeypatch):
    monkeypatch.setattr(LAUNCHERS, "_entries", dict(LAUNCHERS._entries))

    @LAUNCHERS.register("backwards")
    @contextmanager
    def backwards(bench):
        yield lambda cells: ((cell, bench.compute(cell)) for cell in reversed(cells))

    assert "backwards" in LAUNCHERS
    spec = read_study(write_study(tmp_path, "gpt2", "opt"))
    journal = run_study(spec, tmp_path / "out", launcher="backwards", limit=2)
    assert ran(journal) == [Cell("finetune", name) for name in ("opt", "gpt2")]
    with pytest.raises(InputError, match="There is no launcher 'backward'; did you mean backwards"):
        run_study(spec, tmp_path / "out", launcher="backward")


def test_a_candidate_that_fails_is_recorded_and_the_others_go_on(write_study, tmp_path, tiny_models):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_models("gpt2")[0], broken)
    weights = broken / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    diverging = {
        "source": tiny_models("opt")[0],
        "name": "diverging",
        "training": {"learning_rate": 1e30, "clip": 1e30},
    }
    candidates = [str(broken), *tiny_models("gpt2", "llama"), diverging]
    spec = read_study(write_study(tmp_path, candidates=candidates))
    out = tmp_path / "out"
    journal = run_study(spec, out)
    failed = {entry.cell: entry.error for entry in journal.entries if entry.status == "failed"}
    assert set(failed) == {Cell("finetune", "broken"), Cell("finetune", "diverging", 200)}
    assert "model.safetensors" in failed[Cell("finetune", "broken")]
    assert "loss is" in failed[Cell("finetune", "diverging", 200)]
    assert journal.last(Cell("finetune", "llama", 400)).status == "ok"
    assert journal.last(Cell("finetune", "diverging", 400)) is None
    assert ran(run_study(spec, out)) == ran(journal)  # failures are not tried again

    weights.write_bytes(whole)
    again = run_study(spec, out, retry=True)
    assert again.last(Cell("finetune", "broken", 400)).status == "ok"
    assert len([cell for cell in ran(again) if cell == Cell("finetune", "diverging", 200)]) == 2


def test_losing_candidates_are_eliminated_and_a_clear_decision_ends_it(write_study, tmp_path, monkeypatch):
    spec = read_study(write_study(tmp_path, "gpt2", "opt", "llama", budget=1600, eliminate_below=0.1))
    chances = iter([{"gpt2": 0.5, "opt": 0.45, "llama": 0.05}, {"gpt2": 0.97, "opt": 0.02, "llama": 0.01}])

    def predict_by(method, table, target, evidence, otherwise):
        known = next(chances)
        best = np.repeat(np.eye(len(table.models)), [round(100 * known[model]) for model in table.models], axis=0)
        return method, Prediction(1 - best.mean(axis=0), draws=1 - best)

    monkeypatch.setattr(decisions, "predict_by", predict_by)
    stop = spec.model_copy(update={"stop_when": StopRule(probability_best=0.95)})
    journal = run_study(stop, tmp_path / "out")
    sizes = {name: [c.examples for c in ran(journal) if c.model == name] for name in stop.names}
    assert sizes == {"gpt2": [0, 200, 400, 800], "opt": [0, 200, 400, 800], "llama": [0, 200, 400]}
    last = journal.entries[-1]
    assert last.stop
    assert last.decision.endswith("the decision is clear.")
    monkeypatch.setattr(decisions, "predict_by", None)
    assert run_study(stop, tmp_path / "out").entries == journal.entries


def test_a_budget_of_flops_ends_before_the_rung_that_would_pass_it(finished, write_study, tmp_path):
    _, _, journal, _ = finished
    took = sum(e.flops for e in journal.entries if e.cell and e.cell.kind == "finetune" and e.cell.examples <= 400)
    spec = read_study(write_study(tmp_path, *FAMILIES, budget={"flops": 1.3 * took}, training=TRAINING))
    shutil.copytree(finished[1] / "runs", tmp_path / "out" / "runs")
    shutil.copy(finished[1] / "study.json", tmp_path / "out")
    said = []
    done = run_study(spec, tmp_path / "out", say=said.append)
    assert {cell.examples for cell in ran(done)} == {0, 200, 400}
    assert said[-1] == "The budget leaves no room for 800 examples."
    entries = len(done.entries)
    assert len(run_study(spec, tmp_path / "out").entries) == entries


def test_a_budget_of_hours_ends_before_the_rung_that_would_pass_it(finished, tmp_path):
    spec, folder, journal, _ = finished
    seconds = {0: 60.0, 200: 600.0, 400: 1140.0}
    spent = 4 * (sum(seconds.values()) + 15)
    needed = 4 * (60 + (1140 - 60) * 2)  # a test of the model, and twice the rest

    def run(limit):
        out = tmp_path / str(limit)
        shutil.copytree(folder, out)
        (out / "journal.jsonl").unlink()
        made = Journal(out, spec.identity)
        for entry in journal.entries[: journal.entries.index(journal.last(Cell("finetune", FAMILIES[0], 800)))]:
            fields = entry.model_dump(exclude={"study", "time"})
            if entry.cell is not None:
                fields["seconds"] = 15.0 if entry.cell.kind == "ntk" else seconds[entry.cell.examples]
            made.add(**fields)
        said = []
        hours = spec.model_copy(update={"budget": Budget(hours=limit / 3600)})
        return ran(run_study(hours, out, limit=1, say=said.append))[-1].examples, said[-1]

    assert run(spent + needed - 1) == (400, "The budget leaves no room for 800 examples.")
    assert run(spent + needed + 1) == (800, "Stopped after 1 cells; the same command goes on.")


def test_a_rung_is_expected_to_take_what_the_one_before_it_lets_expect(write_study, tmp_path):
    spec = read_study(write_study(tmp_path, "gpt2", "opt"))
    journal, bench = Journal(tmp_path, spec.identity), Bench(spec, tmp_path)
    runner = _Runner(bench, journal, lambda cells: iter([]), None, lambda sentence: None)

    def took(kind, size, seconds):
        journal.add(cell=Cell(kind, "gpt2", size), seconds=seconds, flops=round(1e6 * seconds))

    took("finetune", 0, 60)
    assert runner.cost("gpt2", 200) == 0  # nothing is known of training
    took("finetune", 200, 900)
    took("finetune", 200, 600)  # again
    took("hessian", 200, 30)
    assert runner.cost("gpt2", 400, "seconds") == 60 + 2 * 540 + 30
    search = runs_folder(tmp_path, spec.candidates[0]) / "gpt2" / SEARCH / "0.001"
    search.mkdir(parents=True)
    made = {"model": "gpt2", "examples": 200, "loss": 1.0, "seed": 0, "size": 1, "family": "gpt2", "seconds": 240}
    write_result(search, Result(**made, lensjax="", jax=""))
    assert runner.cost("gpt2", 400, "seconds") == 60 + 2 * (540 - 240) + 30
    assert runner.cost("gpt2", 400) == 1e6 * (60 + 2 * 540 + 30)  # of which the search's are not
    took("finetune", 400, 700)
    took("hessian", 400, 31)
    took("ntk", 0, 7)  # once, before fine-tuning
    took("ntk", 400, 5)
    assert runner.cost("gpt2", 800, "seconds") == 60 + 2 * 640 + 31 + 5


def test_choosing_learning_rates_counts_for_the_budget(write_study, tmp_path):
    training = {"learning_rate": [1e-3, 3e-3], "batch_size": 16, "epochs": 1}
    spec = read_study(write_study(tmp_path, "gpt2", "opt", training=training, budget={"flops": 1.0}))
    out = tmp_path / "out"
    journal = run_study(spec, out)  # a rung is begun while what it takes is not known
    assert {cell.examples for cell in ran(journal)} == {0}
    more = spec.model_copy(update={"budget": Budget(flops=1e15)})
    run_study(more, out, limit=2)
    results = read_results(spec, out)
    for candidate in spec.candidates:
        (search,) = read_searches(out, candidate, results)
        (taken,) = (r for r in results if r.model == candidate.name and r.examples == 200)
        assert {search.learning_rate, taken.learning_rate} == {1e-3, 3e-3}
        assert search.flops > 0


def test_the_adaptive_strategy_measures_what_promises_most(finished, tmp_path):
    spec, folder, journal, _ = finished
    spec = spec.model_copy(update={"strategy": "adaptive"})
    shutil.copytree(folder / "runs", tmp_path / "out" / "runs")
    shutil.copy(folder / "study.json", tmp_path / "out")
    done = run_study(spec, tmp_path / "out")
    runs = [cell for cell in ran(done) if cell.kind == "finetune"]
    assert runs[:12] == [cell for cell in ran(journal) if cell.kind == "finetune"][:12]
    assert len(set(runs)) == len(runs) <= 20
    assert run_study(spec, tmp_path / "out").entries == done.entries


def test_the_adaptive_strategy_measures_curvature_that_was_left_out(write_study, tmp_path):
    evidence = {"ntk": {"examples": 4, "along_ladder": True}}
    spec = read_study(write_study(tmp_path, "gpt2", "opt", evidence=evidence, strategy="adaptive", budget=1600))
    journal, bench, asked = Journal(tmp_path, spec.identity), Bench(spec, tmp_path), []
    for cell in (Cell("finetune", "gpt2", 800), Cell("finetune", "opt", 800), Cell("finetune", "gone", 800)):
        journal.add(cell=cell, status="failed" if cell.model == "opt" else "ok")

    def launch(cells):
        for cell in cells:
            asked.append(cell)
            yield cell, Outcome()

    _Runner(bench, journal, launch, None, lambda sentence: None).catch_up()
    assert asked == [Cell("finetune", "gpt2", 800), Cell("ntk", "gpt2", 800)]  # neither result is there


def test_kernels_of_several_seeds_are_apart(tmp_path):
    assert evidence_file(tmp_path, Cell("ntk", "gpt2")).name == "ntk.json"
    names = {evidence_file(tmp_path, Cell("ntk", "gpt2", size, seed)).name for size in (0, 200) for seed in (0, 1)}
    assert len(names) == 4


@pytest.mark.eight_devices
@pytest.mark.long
def test_terms_of_the_bound_are_measured_at_fine_tuned_models(write_study, tmp_path):
    spec = read_study(write_study(tmp_path, "gpt2", "opt", evidence={"ntk": False, "hessian": {"examples": 4}}))
    out = tmp_path / "out"
    journal = run_study(spec, out)
    cells = [Cell("hessian", name, size) for size in (200, 400) for name in ("gpt2", "opt")]
    assert [cell for cell in ran(journal) if cell.kind == "hessian"] == cells
    for cell in cells:
        terms = read_evidence(out, cell)
        assert terms.summary["sum_of_largest"] >= 0
        assert terms.summary["flops"] == journal.last(cell).flops > 0
        assert terms.arrays["forms"].shape == (len(terms.arrays["layers"]), 4)
    assert not list(out.rglob("model.safetensors"))  # fine-tuned models are not kept unless asked for
    assert cells_left(spec, out) == []
    evidence_file(out, cells[0]).unlink()
    assert cells_left(spec, out) == [Cell("finetune", "gpt2", 200), cells[0]]
    again = run_study(spec, out)
    assert again.last(cells[0]).status == "ok"
    np.testing.assert_array_equal(read_evidence(out, cells[0]).arrays["layers"], terms.arrays["layers"])


@pytest.mark.long
def test_kernels_are_measured_along_ladders(write_study, tmp_path, tiny_models):
    evidence = {"ntk": {"examples": 4, "along_ladder": True}, "hessian": {"examples": 4}}
    gpt2, opt = tiny_models("gpt2", "opt")
    candidates = [gpt2, {"source": opt, "name": "opt", "training": {"warmup": 0.1}}]
    spec = read_study(write_study(tmp_path, candidates=candidates, evidence=evidence, seeds=[0, 1]))
    out = tmp_path / "out"
    journal = run_study(spec, out)
    kernels = [cell for cell in ran(journal) if cell.kind == "ntk"]
    assert kernels == [Cell("ntk", name, size) for size in (0, 200, 400) for name in ("gpt2", "opt")]  # of seed 0
    assert str(kernels[-1]) == "opt, 400 examples, seed 0, kernel"
    assert not list(out.rglob("model.safetensors"))  # whichever was the last to need them
    drifts = kernel_drifts(study_records(spec, out, spec.ladder(400), None))
    assert [(one.model, one.seed, one.examples) for one in drifts] == [
        (name, 0, (200, 400)) for name in ("gpt2", "opt")
    ]
    theta = [read_evidence(out, Cell("ntk", "opt", size)).arrays["theta"] for size in (0, 200, 400)]
    assert drifts[1].drift == tuple(kernel_drift(theta[0], later) for later in theta[1:])
    assert drifts[1].growth == pytest.approx([np.trace(later) / np.trace(theta[0]) for later in theta[1:]])
    assert all(0 < drift < 1 for one in drifts for drift in one.drift)
    evidence_file(out, Cell("ntk", "opt", 400)).unlink()
    assert cells_left(spec, out) == [Cell("finetune", "opt", 400), Cell("ntk", "opt", 400)]
    run_study(spec, out)
    np.testing.assert_allclose(read_evidence(out, Cell("ntk", "opt", 400)).arrays["theta"], theta[2], rtol=1e-4)
    assert not list(out.rglob("model.safetensors"))


def test_a_stopped_study_goes_on(write_study, tmp_path):
    spec = read_study(write_study(tmp_path, "gpt2", "opt"))
    out = tmp_path / "out"

    def stop_after_three(sentence):
        if len(Journal(out, spec.identity).entries) == 3:
            signal.raise_signal(signal.SIGTERM)

    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(Stopped()))
    try:
        with pytest.raises(Stopped):
            run_study(spec, out, say=stop_after_three)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(ran(run_study(spec, out))) == 6


def test_folders_of_other_studies_are_refused(finished, write_study, tmp_path):
    spec, folder, _, _ = finished
    other = read_study(write_study(tmp_path, *FAMILIES, name="other"))
    with pytest.raises(InputError, match=r"this one has other settings: name \(study then, other now\)"):
        run_study(other, folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(InputError, match="full is there already and holds something else; give a new folder"):
        run_study(other, tmp_path / "full")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is there already and holds something else"):
        run_study(other, tmp_path / "file")
    with locked(folder / ".running"), pytest.raises(InputError, match="Another command runs the study in"):
        run_study(spec, folder)


@pytest.mark.parametrize("held_out", [False, True])
def test_results_of_other_data_are_refused(finished, tmp_path, held_out):
    spec, folder, _, _ = finished
    shutil.copytree(folder, tmp_path / "copy")
    (path,) = spec.task.source.files["train"]
    task = load_task(spec.task)
    (changed,) = task.test[:1] if held_out else task.train(0, 1)
    row = json.dumps({"n": changed.prompt.rstrip(":"), "letters": "z", "words": "z"})
    lines = [row if f'"n": "{changed.prompt[:4]}"' in line else line for line in path.read_text().splitlines()]
    (tmp_path / path.name).write_text("\n".join(lines))
    source = spec.task.source.model_copy(update={"files": {"train": [tmp_path / path.name]}})
    other = spec.model_copy(update={"task": spec.task.model_copy(update={"source": source})})
    for command in (run_study, cells_left):
        with pytest.raises(InputError, match="holds results of other examples than the task's source has now"):
            command(other, tmp_path / "copy")


def test_candidates_that_cannot_be_used_are_named_before_anything_is_measured(write_study, tmp_path, tiny_models):
    plain = tmp_path / "no-end"
    shutil.copytree(tiny_models("gpt2")[0], plain)
    config = plain / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    for candidates, sentence in (
        ([*tiny_models("gpt2"), "nobody/nothing"], "The candidate nothing cannot be used: .*nobody/nothing"),
        ([*tiny_models("gpt2"), str(plain)], "The candidate no-end cannot be used: .*end"),
    ):
        spec = read_study(write_study(tmp_path, candidates=candidates))
        with pytest.raises(InputError, match=sentence):
            run_study(spec, tmp_path / "out")
        assert not list((tmp_path / "out").rglob("result.json"))


def test_a_device_that_is_missing(write_study, tmp_path):
    spec = read_study(write_study(tmp_path, "gpt2", "opt", device="tpu"))
    with pytest.raises(InputError, match="asks for a TPU and JAX has only found a CPU; install what it needs"):
        run_study(spec, tmp_path / "out")
    assert not Path(tmp_path / "out").exists()


def test_a_candidate_whose_chat_template_refuses_a_row_is_set_aside(tiny_models, tmp_path):
    rows = [
        [{"role": role, "content": f"{n}"} for role in ("user", "assistant") * (1 + n % 3 // 2)] for n in range(500)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in rows))
    refuses = "{% if m['content'] == '41' %}{{ raise_exception('no 41') }}{% endif %}"
    strict = "{% for m in messages %}" + refuses + "{{ m['content'] + ' ' }}{% endfor %}"
    gpt2, t5 = tiny_models("gpt2", "t5")
    for name in ("strict", "stricter"):
        shutil.copytree(gpt2, tmp_path / name)
        (tmp_path / name / "chat_template.jinja").write_text(strict)
    content = {
        "candidates": [gpt2, t5, str(tmp_path / "strict")],
        "task": {"source": {"files": "chat.jsonl"}, "validation": 16, "test": 16},
        "training": TRAINING | {"max_steps": 2},
        "budget": 400,
        "evidence": {"ntk": False},
    }
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(content))
    said = []
    spec = read_study(file)
    journal = run_study(spec, tmp_path / "out", say=said.append)
    reason = (
        f"{tmp_path / 'chat.jsonl'} line 42 cannot be rendered by the chat template of {tmp_path / 'strict'}: it says "
        "'no 41'; mend the row, or choose another model."
    )
    assert said[0] == f"strict is set aside: {reason}"
    results = {(run.model, run.examples): run for run in read_results(spec, tmp_path / "out")}
    assert set(results) == {(model, examples) for model in ("gpt2", "t5") for examples in (0, 200, 400)}
    # The encoder–decoder is tested on the same texts.
    ours, theirs = results["gpt2", 400], results["t5", 400]
    assert ours.test_bytes == theirs.test_bytes > 0
    assert ours.test_examples == theirs.test_examples == 16
    assert None not in (ours.bits_per_byte, theirs.bits_per_byte, theirs.nats_per_example)
    (failure,) = read_state(spec, tmp_path / "out").failed_cells()
    assert (failure.model, failure.error) == ("strict", reason)
    assert failure.mend == (
        "Mend or remove the row and run the study in a new folder (--out), or leave the candidate out."
    )
    again = run_study(spec, tmp_path / "out", say=said.append)
    assert len(again.entries) == len(journal.entries)
    # The advice: without the candidate, in the same folder; and without the row, in another.
    file.write_text(json.dumps(content | {"candidates": [gpt2, t5]}))
    assert len(run_study(read_study(file), tmp_path / "out").entries) == len(journal.entries)
    assert list(read_state(read_study(file), tmp_path / "out").failed_cells()) == []
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": t}) + "\n" for t in rows[:41] + rows[42:]))
    bench = Bench(read_study(file), tmp_path / "other")
    assert refused_rows(bench.spec, bench) == {}
    content["candidates"] = [str(tmp_path / "strict"), str(tmp_path / "stricter")]
    file.write_text(json.dumps(content))
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in rows))
    with pytest.raises(InputError, match=r"No candidate can be fine-tuned on the task: .* line 42 cannot be"):
        run_study(read_study(file), tmp_path / "none")
