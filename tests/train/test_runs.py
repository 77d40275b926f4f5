"""Commands that share a folder of results, and those that find theirs finished."""

import json
from threading import Thread

import jax
import pytest

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.core.files import locked
from lensjax.train.candidate import Candidate
from lensjax.train.ladder import measure, measure_curve
from lensjax.train.prepare import read_examples
from lensjax.train.recorder import Recorder
from lensjax.train.results import Result, write_result
from lensjax.train.runs import open_folder


@pytest.fixture
def mesh():
    return lensjax.models.make_mesh("data=1", jax.devices()[:1])


@pytest.fixture
def loads(monkeypatch):
    """The models that are loaded from here on."""
    import lensjax.train.candidate

    loaded, load = [], lensjax.train.candidate.load
    monkeypatch.setattr("lensjax.train.candidate.load", lambda *args, **how: loaded.append(args) or load(*args, **how))
    return loaded


def test_a_finished_command_loads_no_model(make_spec, pretrained, mesh, loads, tmp_path):
    spec, out = make_spec(validation=4, test=8), tmp_path / "out"

    def results(model_type="gpt2", seeds=(0,), **how):
        how = {"seeds": seeds, "name": "tiny", "mesh": mesh} | how
        return list(measure_curve(spec, pretrained(model_type), out, [0], **how))

    first = results()
    assert len(loads) == 1
    table = (out / "curves.csv").read_bytes()
    (out / "curves.csv").unlink()
    left = out / "tiny" / "examples-0-seed-0" / "checkpoints"
    left.mkdir()
    assert results() == results(retry=True) == first
    assert len(loads) == 1
    assert (out / "curves.csv").read_bytes() == table
    assert not left.exists()

    with pytest.raises(InputError, match="tiny holds results of another model"):
        results("llama")
    assert len(loads) == 2
    assert results(save_models=True)[0].loss == first[0].loss
    assert len(loads) == 3
    assert results(save_models=True) == results()
    assert len(loads) == 3
    weights = out / "tiny" / "examples-0-seed-0" / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert results(save_models=True)[0].loss == first[0].loss
    assert len(loads) == 4  # as what it had made was damaged
    assert weights.read_bytes() == whole
    assert [result.seed for result in results(seeds=(0, 1))] == [0, 1]
    assert len(loads) == 5

    failed = first[0].model_copy(update={"status": "failed", "loss": None, "error": "it rained"})
    write_result(left.parent, failed)
    assert results()[0].error == "it rained"
    assert len(loads) == 5
    assert results(retry=True)[0].loss == first[0].loss
    assert len(loads) == 6


def test_of_two_specs_in_a_new_folder_the_first_that_runs_has_it(make_spec, pretrained, mesh, tmp_path):
    out = tmp_path / "out"

    def begin(name, **fields):
        spec = make_spec(test=8, **fields)
        examples = read_examples(spec, [0], [0])
        open_folder(out, spec, examples.digest)
        return Candidate(spec, str(pretrained("gpt2")), name, examples, out, mesh)

    def run(candidate):
        return list(measure(candidate, [0], [0], Recorder(candidate.dtype, 1)))

    one, two = begin("one", validation=4), begin("two", validation=6)
    assert json.loads((out / "spec.json").read_text())["digest"] == two.examples.digest
    (result,) = run(one)
    assert json.loads((out / "spec.json").read_text())["digest"] == one.examples.digest == result.spec
    with pytest.raises(InputError, match="out holds results of another spec"):
        run(two)
    assert list(out.glob("*/examples-*")) == [one.planned(0, 0, 0.0).folder]


def test_folders_are_opened_one_command_at_a_time(make_spec, tmp_path):
    spec, out = make_spec(), tmp_path / "out"
    out.mkdir()
    with locked(out / ".lock"):
        other = Thread(target=open_folder, args=(out, spec, "one"))
        other.start()
        other.join(0.2)
        assert other.is_alive()
        assert not (out / "spec.json").exists()
    other.join(60)
    assert json.loads((out / "spec.json").read_text())["digest"] == "one"


def test_a_file_of_the_name_that_is_no_spec_is_not_written_over(make_spec, tmp_path):
    (tmp_path / "spec.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="is there already and holds something else"):
        open_folder(tmp_path, make_spec(), "one")
    assert (tmp_path / "spec.json").read_text() == "[1, 2]"


def test_folders_of_other_specs_are_refused(make_spec, tmp_path):
    spec = make_spec()
    open_folder(tmp_path / "out", spec, "zero")
    open_folder(tmp_path / "out", spec, "one")  # nothing came of the other
    (tmp_path / "out" / "tiny" / "examples-0-seed-0").mkdir(parents=True)
    open_folder(tmp_path / "out", spec, "one")
    with pytest.raises(InputError, match="out holds results of another spec"):
        open_folder(tmp_path / "out", spec, "two")
    kept = tmp_path / "out" / "spec.json"
    content = {name: value for name, value in json.loads(kept.read_text()).items() if name in ("digest", "spec")}
    kept.write_text(json.dumps(content))  # as before versions of tokens were counted
    with pytest.raises(InputError, match=r"out holds results of another version of LensJAX, which made other tokens"):
        open_folder(tmp_path / "out", spec, "two")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".lensjax-x.part").touch()  # as where a first command was killed
    open_folder(tmp_path / "begun", spec, "one")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(InputError, match="full is there already and holds something else"):
        open_folder(tmp_path / "full", spec, "one")


def test_results_of_other_training_examples_are_refused(prepare):
    candidate, recorder = prepare([200])
    run = candidate.planned(200, 0, 3e-3)
    run.folder.mkdir(parents=True)
    write_result(run.folder, Result(model="tiny", examples=200, loss=1.0, seed=0, size=1, family="gpt2", data="other"))
    with pytest.raises(InputError, match="holds a result of other training examples than the source has now"):
        list(measure(candidate, [200], (0,), recorder))


def test_a_run_that_another_command_makes_is_left_to_it(prepare):
    candidate, recorder = prepare([200])
    folder = candidate.planned(200, 0, 3e-3).folder
    folder.mkdir(parents=True)
    with locked(folder / ".lock"), pytest.raises(InputError, match="Another command is making"):
        list(measure(candidate, [200], (0,), recorder))


def test_what_a_killed_command_had_half_written_goes(prepare):
    candidate, recorder = prepare([200])
    folder = candidate.planned(200, 0, 3e-3).folder
    (folder / ".lensjax-abc.part").mkdir(parents=True)
    (folder / ".lensjax-abc.part" / "model.safetensors").write_bytes(b"half")
    list(measure(candidate, [200], (0,), recorder))
    assert not [path for path in folder.iterdir() if path.name.endswith(".part")]
