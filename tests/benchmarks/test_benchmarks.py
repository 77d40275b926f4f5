import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from lensjax.curves.public import VARIABLE

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("computing", "loading", "compiling")  # of models.py, without a GPU
FINETUNE_PARTS = ("trainer", "input", "ladder", "packing", "metrics")  # of finetune.py, without a GPU
NTK_PARTS = ("floor", "peers", "cost")  # of ntk.py, without a GPU
PLAN_PARTS = ("flops", "memory", "hours")  # of plan.py


ALL = "LENSJAX_TEST_BENCHMARKS"  # where it is set, every script is run, and elsewhere none

# All in one process, which imports what they need once.
RUN_ALL = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--quick", "--out", f"made/{name}.json"]
    runpy.run_module(name, run_name="__main__")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of what every script writes when it is to be quick, run from elsewhere and without public curves."""
    if ALL not in os.environ:
        pytest.skip(f"{ALL} is not set")
    folder = tmp_path_factory.mktemp("benchmarks")
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | {
        "PYTHONPATH": str(ROOT / "benchmarks"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),  # programs that they have in common
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "OMP_WAIT_POLICY": "passive",  # torch's threads leave the cores to others
    }
    names = ["fit", "finetune", "ntk", "plan", "vocabulary"] + ["models"] * (find_spec("torch") is not None)
    command = [sys.executable, "-c", RUN_ALL, *names]
    subprocess.run(command, check=True, cwd=folder, env=environment, timeout=600, stdout=subprocess.DEVNULL)
    return folder / "made"


def written(folder, name):
    """What a script wrote."""
    if not (folder / f"{name}.json").exists():
        pytest.skip("torch is not installed")
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def quick(made):
    return written(made, "fit")


@pytest.fixture(scope="module")
def quick_models(made):
    return written(made, "models")


@pytest.fixture(scope="module")
def quick_finetune(made):
    return written(made, "finetune")


@pytest.fixture(scope="module")
def quick_ntk(made):
    return written(made, "ntk")


@pytest.fixture(scope="module")
def quick_plan(made):
    return written(made, "plan")


@pytest.fixture
def scripts(imported, monkeypatch):
    """The modules of the benchmarks, by name."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")  # to be put back
    with imported(ROOT / "benchmarks", "parts", "machine", "ntk", "ntk_processes") as modules:
        yield modules


@pytest.fixture
def parts(scripts):
    """The module that the benchmarks share."""
    return scripts["parts"]


@pytest.fixture
def ntk(scripts):
    """The benchmark of kernels, as a module."""
    return scripts["ntk"]


@pytest.fixture
def ntk_processes(scripts):
    """The processes of its contenders, as a module."""
    return scripts["ntk_processes"]


def kinds(value):
    """The keys and types of a result; all numbers are alike, and of a list the first counts."""
    if isinstance(value, dict):
        return {name: kinds(item) for name, item in value.items()}
    if isinstance(value, list):
        return [kinds(value[0])]
    return "number" if isinstance(value, float | int) and not isinstance(value, bool) else type(value).__name__


def positive(value):
    return isinstance(value, float | int) and value > 0


def test_parts_that_are_not_measured_stay(parts, tmp_path):
    out = tmp_path / "made" / "any.json"
    measures = {name: lambda plan, name=name: {name: plan} for name in ("one", "two")} | {"gpu": lambda plan: None}

    def run(plan, *names, quick=True):
        parts.run_parts(
            "any",
            measures,
            plan,
            names,
            out,
            quick=quick,
            notes={},
            packages=["jax"],
            targets=lambda found: [(name, 1.0, found[name][name]) for name in found],
            columns={"s": "median_s"},
        )
        return json.loads(out.read_text())

    before = run(1 / 3, "two")
    found = run(1.5, "gpu", "one")
    assert list(found["parts"]) == ["one", "two"]
    assert found["parts"]["two"] == before["parts"]["two"]
    assert set(found["parts"]["one"]) == {"machine", "versions", "revision", "date", "one"}
    assert found["targets"] == [
        {"what": "one", "at_most": 1.0, "measured": 1.5, "met": False},
        {"what": "two", "at_most": 1.0, "measured": 0.33333, "met": True},
    ]
    out.write_text(json.dumps(found | {"quick": False}))
    assert set(run(1.0, "one")["parts"]) == {"one"}  # what a full run measured is not of the same kind


def test_parts_are_measured_in_fresh_processes_unless_quick(parts):
    with parts.processes(quick=True) as call:
        assert call(os.getpid) == os.getpid()
    with parts.processes(quick=False) as call:
        assert len({os.getpid(), call(os.getpid), call(os.getpid)}) == 3
        assert call(os.getenv, "JAX_ENABLE_COMPILATION_CACHE") == "false"


def test_contenders_take_turns(parts, monkeypatch):
    monkeypatch.setattr(parts.gc, "collect", lambda: None)  # of all that tests have left
    taken, order = {"ours": iter([9.0, 1.0, 2.0, 4.0]), "theirs": iter([9.0, 3.0, 4.0, 4.0])}, []

    def seconds(name):
        order.append(name)
        return next(taken[name])

    found = parts.compared({name: partial(seconds, name) for name in taken}, 3, warm_up=1)
    assert order == ["ours", "theirs"] * 4
    assert found["ours"] == {"median_s": 2.0, "min_s": 1.0}
    ratios = {"ratio": 2.0, "ratio_of_minima": 3.0, "ratio_within_turns": 2.0}
    assert found["theirs"] == {"median_s": 4.0, "min_s": 3.0} | ratios


def test_names_machine_versions_and_curves(quick):
    assert {"cpu", "cores", "memory_gb", "os", "load_at_start"} == set(quick["machine"])
    assert {"python", "jax", "jaxlib", "numpy", "scipy", "optax", "lensjax"} == set(quick["versions"])
    assert quick["quick"] is True
    assert quick["curves"] == {"source": "simulated", "models": 3, "sizes": 5, "target": 1638400}


@pytest.mark.parametrize("law", ["rectified", "vanilla"])
def test_per_model_fits_stand_beside_their_peers(quick, law):
    fits = quick["per_model"][law]
    assert set(fits) == {"lensjax", "least_squares", "curve_fit"}
    assert all(positive(fit[name]) for fit in fits.values() for name in ("median_s", "min_s", "mean_rmse"))
    assert all(positive(fits[peer]["ratio"]) for peer in ("least_squares", "curve_fit"))
    assert fits["lensjax"]["worse"] == 0, "faster, but a worse fit than SciPy's"


def test_joint_fit_and_scaling_have_times_and_memory(quick):
    points = quick["scaling"]["points"]
    assert [point["models"] for point in points] == [3]
    for case in (quick["joint"], *points):
        assert all(positive(case["all"][name]) for name in ("cold_s", "median_s", "min_s"))
        assert positive(case["peak_gb"])
    assert quick["scaling"]["exponent"]["all"] == {"all": None, "larger_half": None}  # of one point


def test_command_line_is_timed(quick):
    assert all(positive(quick["command_line"][name]["min_s"]) for name in ("rank", "help"))


def test_commands_that_rank_have_times_of_all_threads_and_memory(quick):
    (case,) = quick["ranking"]
    assert (case["models"], case["sizes"]) == (3, 5)
    assert set(case) == {"models", "sizes", "median_s", "min_s", "cpu_s", "least_cpu_s", "peak_gb", "page_mb"}
    assert all(positive(number) for number in case.values())


def test_notes_explain_every_part_of_fits(quick):
    assert set(quick) - set(quick["notes"]) == {
        *("benchmark", "quick", "machine", "versions", "revision", "date", "curves", "repeats", "notes", "targets"),
        *("per_model", "command_line"),  # whose times, ratios and peers have notes of their own
    }
    assert all(quick["notes"].values())


def test_targets_are_judged_by_what_was_measured(quick):
    judged = [goal for goal in quick["targets"] if goal["measured"] is not None]
    assert "lensjax rank of 3 models at 5 sizes, s" in [goal["what"] for goal in judged]
    assert all(goal["met"] == (goal["measured"] <= goal["at_most"]) for goal in judged)


def test_committed_results_are_of_a_full_run_of_this_script(quick):
    text = (RESULTS / "fit.json").read_text()
    found = json.loads(text)
    unlike = {"scaling", "targets", "revision"}  # one point of a quick run has no exponent; git may be missing
    assert kinds({k: v for k, v in found.items() if k not in unlike}) == kinds(
        {k: v for k, v in quick.items() if k not in unlike}
    )
    assert kinds(found["scaling"]["points"]) == kinds(quick["scaling"]["points"])
    assert found["quick"] is False
    assert [point["models"] for point in found["scaling"]["points"]] == [30, 100, 300, 1000, 3000]
    cases = [(30, 11), (30, 200), (3000, 11), (30_000, 11)]
    assert [(case["models"], case["sizes"]) for case in found["ranking"]] == cases
    assert text == json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    assert '"/' not in text, "a path of the machine it ran on"


def test_models_name_machine_and_versions_for_every_part(quick_models):
    assert quick_models["quick"] is True
    assert set(quick_models["parts"]) == set(PARTS)  # tests run without a GPU
    for part in quick_models["parts"].values():
        assert {"cpu", "cores", "memory_gb", "os", "load_at_start"} == set(part["machine"])
        assert {"python", "jax", "flax", "torch", "transformers", "lensjax"} < set(part["versions"])


@pytest.mark.parametrize("what", ["forward", "gradient"])
def test_models_compute_beside_torch(quick_models, what):
    part = quick_models["parts"]["computing"]
    assert set(part[what]) == {"lensjax", "torch, eager", "torch, sdpa"}
    assert part["threads"] == part["machine"]["cores"]
    for name, times in part[what].items():
        assert positive(times["median_s"])
        assert positive(times["min_s"])
        assert name == "lensjax" or positive(times["ratio_within_turns"])


def test_models_load_beside_reading_and_transformers(quick_models):
    for model in ("gpt2", "llama"):
        part = quick_models["parts"]["loading"][model]
        assert positive(part["gigabytes"])
        assert all(positive(part[name]["median_s"]) for name in ("lensjax", "reading", "from_pretrained"))


def test_models_compile_at_two_depths(quick_models):
    part = quick_models["parts"]["compiling"]
    shallow, deep = part["parameters"]
    assert part["layers"] == [1, 2]
    assert shallow < deep
    assert positive(part["deep"]["ratio_within_turns"])


def test_model_targets_are_judged_by_what_was_measured(quick_models):
    assert len(quick_models["targets"]) == 5
    assert all(goal["met"] == (goal["measured"] <= goal["at_most"]) for goal in quick_models["targets"])


def test_committed_model_results_are_of_a_full_run(quick_models):
    text = (RESULTS / "models.json").read_text()
    found = json.loads(text)
    assert found["quick"] is False
    assert found["notes"] == quick_models["notes"]
    for name in PARTS:
        unlike = {"revision": None}  # git may be missing
        assert kinds(found["parts"][name] | unlike) == kinds(quick_models["parts"][name] | unlike)
    assert found["parts"]["computing"]["batch"] == [8, 128]
    assert found["parts"]["compiling"]["layers"] == [4, 32]
    assert text == json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    assert '"/' not in text, "a path of the machine it ran on"


def test_finetune_names_machine_and_versions_for_every_part(quick_finetune):
    assert quick_finetune["quick"] is True
    assert set(quick_finetune["parts"]) == set(FINETUNE_PARTS)
    for part in quick_finetune["parts"].values():
        assert {"cpu", "cores", "memory_gb", "os", "load_at_start"} == set(part["machine"])
        assert {"python", "jax", "flax", "optax", "transformers", "lensjax"} < set(part["versions"])


def test_finetune_is_timed(quick_finetune):
    part = quick_finetune["parts"]["trainer"]
    assert part["batch"] == [8, 40]
    assert part["steps"] == 3
    assert all(positive(part["lensjax"][name]) for name in ("median_s", "min_s", "tokens_per_second"))


def test_finetune_stands_beside_the_trainer(quick_finetune):
    part = quick_finetune["parts"]["trainer"]
    if set(part["peers"]) != {"torch", "accelerate"}:
        pytest.skip("torch and accelerate are not installed")
    for name in ("Trainer, eager", "Trainer, sdpa"):
        assert all(positive(part[name][key]) for key in ("median_s", "tokens_per_second", "ratio_within_turns"))
    assert any("Trainer" in goal["what"] for goal in quick_finetune["targets"])


@pytest.mark.parametrize("model", ["gpt2", "small"])
def test_finetune_says_how_long_it_waits(quick_finetune, model):
    part = quick_finetune["parts"]["input"][model]
    assert 0 < part["waiting"] < part["seconds"]
    assert part["share"] == pytest.approx(part["waiting"] / part["seconds"], rel=1e-3)


def test_a_ladder_compiles_a_step_for_each_shape_and_one_evaluation(quick_finetune):
    part = quick_finetune["parts"]["ladder"]
    assert part["rungs"] == [0, 200, 400]
    assert part["steps"] == [0, 4, 4]
    short, long = part["training_lengths"]
    assert short < long
    assert part["programs"] == {"step": 2, "losses": 1}
    assert part["programs_in_all"] == 3


def test_packing_takes_fewer_tokens(quick_finetune):
    part = quick_finetune["parts"]["packing"]["small"]
    assert positive(part["packed"]["ratio_within_turns"])
    sizes = {name: [rows * length for rows, length in part[name]["shapes"]] for name in ("packed", "unpacked")}
    assert all(packed <= plain for packed, plain in zip(*sizes.values(), strict=True))
    assert sizes["packed"] != sizes["unpacked"]


@pytest.mark.parametrize("model", ["gpt2", "small"])
def test_metrics_are_timed_beside_losses_alone(quick_finetune, model):
    part = quick_finetune["parts"]["metrics"][model]
    assert part["batch"] == [16, 40]
    assert all(positive(part[name]["median_s"]) for name in ("losses", "scores"))
    assert positive(part["scores"]["ratio_within_turns"])


def test_finetune_targets_are_judged_by_what_was_measured(quick_finetune):
    assert quick_finetune["targets"]
    assert all(goal["met"] == (goal["measured"] <= goal["at_most"]) for goal in quick_finetune["targets"])


def test_committed_finetune_results_are_of_a_full_run(quick_finetune):
    text = (RESULTS / "finetune.json").read_text()
    found = json.loads(text)
    assert found["quick"] is False
    assert found["notes"] == quick_finetune["notes"]
    for name in FINETUNE_PARTS:
        unlike = {"revision": None}  # git may be missing
        if name == "trainer" and "Trainer, sdpa" not in quick_finetune["parts"]["trainer"]:
            continue
        assert kinds(found["parts"][name] | unlike) == kinds(quick_finetune["parts"][name] | unlike)
    assert found["parts"]["trainer"]["batch"] == [8, 128]
    assert found["parts"]["ladder"]["rungs"] == [0, 200, 400, 800, 1600, 3200, 6400, 12800]
    assert text == json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    assert '"/' not in text, "a path of the machine it ran on"


def test_ntk_names_machine_and_versions_for_every_part(quick_ntk):
    assert quick_ntk["quick"] is True
    assert set(quick_ntk["parts"]) == set(NTK_PARTS)
    for part in quick_ntk["parts"].values():
        assert {"cpu", "cores", "memory_gb", "os", "load_at_start"} == set(part["machine"])
        assert {"python", "jax", "flax", "transformers", "lensjax"} < set(part["versions"])


def test_ntk_stands_beside_its_floor(quick_ntk):
    part = quick_ntk["parts"]["floor"]
    ours = part["lensjax"]
    assert all(positive(ours[name]) for name in ("median_s", "flops"))
    assert ours["peak_gb"] >= 0  # memory that a tiny kernel takes may have been resident before
    assert part["floor_s"] == pytest.approx(part["gradients"]["median_s"] + part["contraction_s"], rel=1e-3)
    assert ours["over_floor"] == pytest.approx(ours["median_s"] / part["floor_s"], rel=1e-3)


def test_ntk_agrees_with_its_peers(quick_ntk):
    part = quick_ntk["parts"]["peers"]
    assert "neural-tangents" in part["missing"]  # quick runs install nothing
    names = ["jax.jacrev, contraction", "ntk_vp, vector products"]
    torch = ("contraction", "chunked", "vector products")
    names += [f"torch.func, {way}" for way in torch] * (find_spec("torch") is not None)
    case = part["transformer"]
    assert case["max_relative_difference"] < 1e-5
    assert case["wrong"] == []
    assert case["failed"] == {}
    assert case["best_peer"] in names
    for name in names:
        assert all(positive(case[name][key]) for key in ("median_s", "ratio_within_turns", "ratio_of_memory"))


def test_ntk_cost_is_drawn(quick_ntk, made):
    part = quick_ntk["parts"]["cost"]
    for name in ("examples", "tokens", "width", "outputs"):
        assert all(positive(point["median_s"]) for point in part[name]["points"])
    assert "seconds" in (made / "ntk_cost.svg").read_text()


def test_ntk_targets_are_judged_by_what_was_measured(quick_ntk):
    assert len(quick_ntk["targets"]) == 2
    assert all(goal["met"] == (goal["measured"] <= goal["at_most"]) for goal in quick_ntk["targets"])


def test_ntk_contenders_have_processes_of_their_own(ntk, ntk_processes, tmp_path):
    ntk.ntk_peers.write_case(ntk.Case("mlp", 3, 2, 4, width=5, layers=2, outputs=2), tmp_path)
    kernels = {}
    for name, rows in (("jax.jacrev, contraction", 3), ("ntk_vp, vector products", 2)):
        with ntk_processes.contender(name, tmp_path) as run:
            assert all(positive(run()["seconds"]) for _ in range(2))
        kernels[rows] = ntk.np.load(ntk.ntk_peers.kernel_file(name, tmp_path))
        assert kernels[rows].shape == (rows, rows)
    assert ntk.difference(kernels[3], kernels[2]) < 1e-5
    with ntk_processes.contender("none", tmp_path) as run, pytest.raises(RuntimeError, match="KeyError: 'none'"):
        run()


def test_nothing_is_measured_on_a_busy_machine_or_of_changed_code(scripts, monkeypatch):
    machine = scripts["machine"]
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.6, 0, 0))
    with pytest.raises(SystemExit, match=r"The load is 0.60; nothing is measured above 0.5"):
        machine.refuse_unless_idle()
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.1, 0, 0))
    monkeypatch.setattr(machine, "_revision", lambda: "abc-dirty")
    with pytest.raises(SystemExit, match="The revision is abc-dirty; commit what has changed"):
        machine.refuse_unless_idle()
    monkeypatch.setattr(machine, "_revision", lambda: "abc")
    machine.refuse_unless_idle()


def test_results_do_not_make_a_revision_dirty(scripts, monkeypatch, tmp_path):
    machine = scripts["machine"]
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "benchmarks" / "machine.py"))
    assert machine._revision() is None  # no repository
    script, result = tmp_path / "benchmarks" / "fit.py", tmp_path / "benchmarks" / "results" / "fit.json"
    result.parent.mkdir(parents=True)
    script.write_text("1"), result.write_text("{}")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = machine._revision()
    result.write_text('{"seconds": 1}')
    assert machine._revision() == commit
    script.write_text("2")
    assert machine._revision() == f"{commit}-dirty"


def test_ntk_goes_without_a_peer_that_cannot_be_installed(ntk_processes, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **settings):
        raise subprocess.CalledProcessError(1, "pip", stderr="no such version")

    monkeypatch.setattr(ntk_processes.venv, "create", lambda *arguments, **settings: None)
    monkeypatch.setattr(ntk_processes.subprocess, "run", fail)
    assert ntk_processes.install_neural_tangents(tmp_path) == ""
    assert "neural-tangents is skipped: no such version" in capsys.readouterr().out
    (tmp_path / "installed.txt").write_text("\n".join(ntk_processes.NEURAL_TANGENTS))
    assert ntk_processes.install_neural_tangents(tmp_path).startswith(str(tmp_path))  # as it was


def test_committed_ntk_results_are_of_a_full_run(quick_ntk):
    text = (RESULTS / "ntk.json").read_text()
    found, parts = json.loads(text), quick_ntk["parts"]
    assert found["quick"] is False
    assert found["notes"].keys() == quick_ntk["notes"].keys()
    assert set(NTK_PARTS) <= set(found["parts"])
    ours, quick = (one["floor"]["lensjax"] for one in (found["parts"], parts))
    assert set(ours) == set(quick)
    assert kinds(found["parts"]["floor"]["contraction"]) == kinds(parts["floor"]["contraction"])
    assert found["parts"]["floor"]["batch"] == [64, 64]
    for title, case in found["parts"]["peers"].items():
        if title.startswith("transformer"):
            assert case["max_relative_difference"] < 1e-4
            quick = parts["peers"]["transformer"]
            assert set(quick["lensjax"]) >= set(case["lensjax"]) > {"median_s", "min_s"}
    for name in ("examples", "tokens", "width", "outputs"):
        points = found["parts"]["cost"][name]["points"]
        assert len(points) == 4
        assert kinds(points) == kinds(parts["cost"][name]["points"])
    assert (RESULTS / "ntk_cost.svg").exists()
    assert text == json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    assert '"/' not in text, "a path of the machine it ran on"


def test_plan_names_machine_and_versions_for_every_part(quick_plan):
    assert quick_plan["quick"] is True
    assert list(quick_plan["parts"]) == list(PLAN_PARTS)
    for part in quick_plan["parts"].values():
        assert {"cpu", "cores", "memory_gb", "os", "load_at_start"} == set(part["machine"])
        assert {"python", "jax", "jaxlib", "flax", "optax", "numpy", "transformers", "lensjax"} == set(part["versions"])


def test_plans_stand_beside_what_they_foretell(quick_plan):
    parts = quick_plan["parts"]
    for what in ("step", "evaluation"):
        case = parts["flops"][f"gpt2, {what}"]
        assert 0.9 * case["measured"] < case["planned"] <= case["measured"]  # XLA counts elementwise work besides
    assert parts["memory"]["gpt2, full"]["ratio"] == pytest.approx(1, abs=0.05)
    (turn,) = parts["hours"]["turns"]
    assert turn["ratio"] == pytest.approx(turn["planned"] / turn["measured"], rel=1e-3)
    assert parts["hours"]["study"] == {
        "planned_s": turn["planned"],
        "median_s": turn["measured"],
        "ratio": turn["ratio"],
    }


def test_plan_targets_are_judged_by_what_was_measured(quick_plan):
    assert [goal["what"].partition(":")[0] for goal in quick_plan["targets"]] == list(PLAN_PARTS)
    assert all(goal["met"] == (goal["measured"] <= goal["at_most"]) for goal in quick_plan["targets"])


def test_committed_plan_results_are_of_a_full_run(quick_plan):
    text = (RESULTS / "plan.json").read_text()
    found = json.loads(text)
    assert found["quick"] is False
    assert found["notes"] == quick_plan["notes"]
    unlike = {"revision": None}  # git may be missing
    for name in PLAN_PARTS:
        quick, whole = (kinds(one["parts"][name]) | unlike for one in (quick_plan, found))
        assert {key: whole[key] for key in quick} == quick  # which has fewer models
    assert len(found["parts"]["hours"]["turns"]) == 3
    assert text == json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    assert '"/' not in text, "a path of the machine it ran on"


def test_chunks_of_the_vocabulary_stand_beside_all_of_it(made):
    found = written(made, "vocabulary")
    assert list(found["parts"]) == ["memory", "time"]
    assert all(positive(found["parts"]["memory"][name]["ratio"]) for name in ("gradient", "step", "hvp", "linearised"))
    assert all(0 < found["parts"]["time"][name]["difference"] < 1e-4 for name in ("step", "hvp"))
    assert [goal["at_most"] for goal in found["targets"]] == pytest.approx([1 / 3, 1 / 3, 1, 1], rel=1e-4)


TPU_SIZES = ("arguments_gb", "outputs_gb", "temporaries_gb", "aliased_gb")


def test_tpu_programs_compile_without_a_tpu(tmp_path):
    pytest.importorskip("libtpu")
    command = [sys.executable, str(ROOT / "benchmarks" / "tpu_compile.py"), "--quick", "--out", "found.json"]
    # The TPU's compiler ends the process at flags that only others know, such as those of the tests.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=300, **quiet)
    found = json.loads((tmp_path / "found.json").read_text())
    committed = json.loads((RESULTS / "tpu_compile.json").read_text())
    assert [row["what"] for row in found.values()] == ["forward and backward", "forward and backward", "training step"]
    expected = kinds(next(iter(committed.values()))) | {"revision": None}
    assert all(kinds(row) | {"revision": None} == expected for row in found.values())


def test_committed_tpu_results_fit_the_chips():
    rows = json.loads((RESULTS / "tpu_compile.json").read_text())
    training = [name for name, row in rows.items() if row["what"] == "training step"]
    assert [name.split(", ")[1] for name in training] == ["v5e:16x16", "v5p:8x8x8"]
    for name, row in rows.items():
        arguments, outputs, temporaries, aliased = (row[size] for size in TPU_SIZES)
        assert row["total_gb"] == pytest.approx(arguments + outputs + temporaries - aliased, rel=1e-3), name
        assert row["total_gb"] < row["chip_gb"], name
        assert {"python", "jax", "flax", "libtpu"} == set(row["versions"]), name
    for name in training:  # parameters and two moments, all split over the chips
        each = 3 * 4 * rows[name]["parameters"] / rows[name]["chips"] / 1e9
        assert each < rows[name]["arguments_gb"] < 1.05 * each
        assert rows[name]["aliased_gb"] > 0.95 * each


def test_pods_are_estimated_without_one(tmp_path):
    pytest.importorskip("libtpu")
    command = [sys.executable, str(ROOT / "benchmarks" / "pods.py"), "--quick", "--out", "found.json"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=300, **quiet)
    published, advised = json.loads((tmp_path / "found.json").read_text()).values()
    committed = next(iter(json.loads((RESULTS / "pods.json").read_text()).values()))
    assert kinds(published) | {"revision": None, "networks_s": None} == kinds(committed) | {
        "revision": None,
        "networks_s": None,
    }
    assert advised["mesh"]
    assert 0 < advised["mfu_causal"] <= advised["mfu"] < 1


def test_committed_estimates_bound_what_is_published():
    rows = json.loads((RESULTS / "pods.json").read_text())
    published = {name: row for name, row in rows.items() if "published_mfu" in row}
    assert len(published) >= 2
    for name, row in published.items():
        assert row["published_mfu"] <= row["mfu"] < 1, name
        assert row["ratio"] == pytest.approx(row["mfu"] / row["published_mfu"], rel=1e-4)
        assert row["ratio"] < 1.6, name
        assert row["step_s"] >= max(row["compute_s"], row["memory_s"], row["core_s"], *row["networks_s"].values())
