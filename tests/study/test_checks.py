"""Results in a study's folder, written as runs and kernels write them, against the data and settings of now."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import normalizers

from lensjax.core.errors import InputError
from lensjax.measure.measurement import Cell, Measured
from lensjax.study.bench import Bench
from lensjax.study.checks import check_candidates, check_results
from lensjax.study.constraints import Constraints
from lensjax.study.evidence import evidence_cells, evidence_file, write_evidence
from lensjax.study.folder import is_current, run_folder, runs_folder
from lensjax.study.inference import candidates_costs, check_some_left
from lensjax.study.spec import read_study
from lensjax.tasks.task import fingerprint, load_task
from lensjax.tasks.tokens import TOKENS_VERSION
from lensjax.tasks.writing import Writing
from lensjax.train.results import Result, write_result
from lensjax.train.runs import open_folder

OTHER_DATA = r"holds results of other examples than the task's source has now; give a new folder \(--out\)"
SLOW = {"batch_size": 8}


@pytest.fixture
def study(write_study, tmp_path, tiny_models):
    """A study whose second candidate is trained in its own way, its task, and a folder of it."""
    return read(write_study, tmp_path, tiny_models), tmp_path / "out"


def read(write_study, folder, tiny_models, training=SLOW, **fields):
    (source,) = tiny_models("gpt2")
    candidates = [{"source": source, "name": "plain"}, {"source": source, "name": "slow", "training": training}]
    return read_study(write_study(folder, candidates=candidates, evidence={"ntk": {"examples": 8}}, **fields))


def open_runs(spec, out):
    """The folders of runs, as loading the candidates makes them."""
    task = load_task(spec.task)
    held_out = fingerprint([*task.validation, *task.test])
    for candidate in spec.candidates:
        made = spec.finetune_spec(candidate)
        open_folder(runs_folder(out, candidate), made, made.digest(held_out))


def write_run(spec, out, name, examples, data=None, status="ok"):
    """A run's result."""
    task = load_task(spec.task)
    result = Result(
        model=name,
        examples=examples,
        loss=1.0 if status == "ok" else None,
        seed=0,
        size=1,
        family="gpt2",
        status=status,
        data=fingerprint(task.train(0, examples)) if data is None else data,
    )
    folder = run_folder(out, spec.candidate(name), Cell("finetune", name, examples))
    folder.mkdir(parents=True)
    write_result(folder, result)


def write_kernel(spec, out, cell, data=None, **asked):
    """What is left of a kernel."""
    rows = load_task(spec.task).train(cell.seed, 8)
    data = fingerprint(rows) if data is None else data
    asked = {"model": "", "data": data, "examples": 8, "functional": "loss", "tokens": TOKENS_VERSION} | asked
    file = evidence_file(out, cell)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_evidence(out, cell, Measured({"asked": asked}))


def check(spec, out, **how):
    check_results(spec, out, load_task(spec.task), **how)


def test_results_of_the_same_data_pass(study):
    spec, out = study
    open_runs(spec, out)
    for name in spec.names:
        for examples in (0, 200, 400):
            write_run(spec, out, name, examples)
    write_kernel(spec, out, Cell("ntk", "plain"))
    write_kernel(spec, out, Cell("ntk", "slow", 200, 1))
    assert [*evidence_cells(spec, out)] == [Cell("ntk", "plain"), Cell("ntk", "slow", 200, 1)]
    check(spec, out)


def test_a_source_that_was_cut_short(study):
    spec, out = study
    open_runs(spec, out)
    write_run(spec, out, "plain", 8000, data="of more rows than there are")
    with pytest.raises(InputError, match=OTHER_DATA):
        check(spec, out)


@pytest.mark.parametrize("name", ["plain", "slow"])
def test_runs_of_other_training_examples(study, name):
    spec, out = study
    open_runs(spec, out)
    for model in spec.names:
        write_run(spec, out, model, 200, data="of other rows" if model == name else None)
    with pytest.raises(InputError, match=OTHER_DATA):
        check(spec, out)


def test_kernels_of_other_training_examples(study):
    spec, out = study
    write_kernel(spec, out, Cell("ntk", "plain"))
    check(spec, out)
    write_kernel(spec, out, Cell("ntk", "slow"), data="of other rows")
    with pytest.raises(InputError, match=OTHER_DATA):
        check(spec, out)


def test_a_folder_in_which_nothing_was_measured_is_of_any_data(study):
    spec, out = study
    open_runs(spec, out)
    (rows,) = spec.task.source.files["train"]
    Path(rows).write_text("\n".join(reversed(Path(rows).read_text().splitlines())))
    check(spec, out)
    write_run(spec, out, "plain", 0)
    with pytest.raises(InputError, match=OTHER_DATA):
        check(spec, out)


def test_a_candidate_that_is_trained_otherwise_now(study, write_study, tmp_path, tiny_models):
    spec, out = study
    open_runs(spec, out)
    for name in spec.names:
        write_run(spec, out, name, 0)
    write_run(spec, out, "slow", 200, status="failed")
    slower = read(write_study, tmp_path, tiny_models, {"batch_size": 4})
    check(slower, out)  # as long as its failure is not to be tried again, it stays
    assert runs_folder(out, slower.candidate("slow")).is_dir()
    check(slower, out, retry=True)
    assert not runs_folder(out, slower.candidate("slow")).exists()
    assert run_folder(out, slower.candidate("plain"), Cell("finetune", "plain")).is_dir()

    open_runs(slower, out)
    write_run(slower, out, "slow", 200)
    for retry in (False, True):
        with pytest.raises(InputError, match=r"runs-slow holds runs with other training settings than the study has"):
            check(spec, out, retry=retry)
    check(slower, out)
    remat = read(write_study, tmp_path, tiny_models, {"batch_size": 4, "remat": "full"})
    check(remat, out)  # which changes no result


def test_results_of_a_version_that_made_other_tokens(study):
    spec, out = study
    open_runs(spec, out)
    write_run(spec, out, "slow", 200, status="failed")
    kept = out / "runs-slow" / "spec.json"
    old = {"digest": "of its tokens", "spec": json.loads(kept.read_text())["spec"]}
    kept.write_text(json.dumps(old))
    check(spec, out)
    write_run(spec, out, "slow", 400)
    for retry in (False, True):
        with pytest.raises(
            InputError, match=r"runs-slow holds runs of another version of LensJAX, which made other tok"
        ):
            check(spec, out, retry=retry)
    assert run_folder(out, spec.candidate("slow"), Cell("finetune", "slow", 400)).is_dir()
    cell = Cell("ntk", "plain")
    for tokens, current in ((TOKENS_VERSION, True), (TOKENS_VERSION - 1, False)):
        write_kernel(spec, out, cell, tokens=tokens)
        assert is_current(spec, out, cell) == current


def test_runs_that_candidates_share_are_never_removed_for_one_that_failed(study):
    spec, out = study
    open_runs(spec, out)
    write_run(spec, out, "plain", 200)
    kept = out / "runs" / "spec.json"
    kept.write_text(json.dumps({"digest": "of another version", "tokens": TOKENS_VERSION, "spec": {}}))
    with pytest.raises(InputError, match="runs holds runs with other training settings"):
        check(spec, out, retry=True)
    assert run_folder(out, spec.candidate("plain"), Cell("finetune", "plain", 200)).is_dir()


def test_what_is_measured_at_a_model_that_was_trained_otherwise_is_not_current(
    study, write_study, tmp_path, tiny_models
):
    spec, out = study
    cells = [Cell("ntk", name, examples) for name in spec.names for examples in (0, 200)]
    for cell in cells:
        training = spec.finetune_spec(spec.candidate("slow")).deciding()["training"]
        write_kernel(spec, out, cell, **({"training": training} if cell == Cell("ntk", "slow", 200) else {}))
    assert all(is_current(spec, out, cell) for cell in cells)
    slower = read(write_study, tmp_path, tiny_models, {"batch_size": 4})
    assert [cell for cell in cells if not is_current(slower, out, cell)] == [Cell("ntk", "slow", 200)]


def test_a_candidate_that_cannot_write_the_targets_is_told_of_and_one_must(
    write_study, tmp_path, tiny_models, make_tokenizer
):
    (good,), lossy = tiny_models("gpt2"), tmp_path / "lossy"
    shutil.copytree(good, lossy)
    tokenizer = make_tokenizer(pad_token="<pad>", bos_token="<s>")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(lossy)
    spec = read_study(write_study(tmp_path, candidates=[good, str(lossy)], target_text="{letters} J"))
    found = check_candidates(spec, Bench(spec, tmp_path / "out"))
    rows = 4000
    assert found["gpt2"] == Writing(rows=rows)
    assert (found["lossy"].changed_targets, found["lossy"].unknown_targets) == (rows, 0)
    (size, _), limits = (cost.parameters for cost in candidates_costs(spec).values()), {"violated": "measure"}
    fits = spec.model_copy(update={"constraints": Constraints.model_validate({"parameters": size, **limits})})
    check_some_left(fits, candidates_costs(spec), {"lossy": "it cannot write"})
    costs = candidates_costs(spec)
    costs["gpt2"] = costs["gpt2"].model_copy(update={"parameters": size + 1})
    check_some_left(fits, costs)
    with pytest.raises(InputError, match=r"no candidate to choose from \(gpt2: .*; lossy: it cannot write\); raise"):
        check_some_left(fits, costs, {"lossy": "it cannot write"})
    two = spec.candidates[1], spec.candidates[1].model_copy(update={"name": "other"})
    spec = spec.model_copy(update={"candidates": two})
    with pytest.raises(InputError, match=r"No candidate could be chosen \(lossy: it cannot write 100 % of the 4,000"):
        check_candidates(spec, Bench(spec, tmp_path / "out"))
    task = spec.task.model_copy(update={"max_unwritable": 0.999})
    assert spec.model_copy(update={"task": task}).identity == spec.identity
