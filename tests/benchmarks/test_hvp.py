import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.long
PROMISED = ("hvp", "linearised", "ggn_vp", "quadratic_form", "joint", "diagonal")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of what the script writes when it is to be quick, run from elsewhere."""
    folder = tmp_path_factory.mktemp("benchmark")
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),  # programs that parts have in common
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(ROOT / "benchmarks" / "hvp.py"), "--quick", "--out", "made/hvp.json"]
    subprocess.run(command, check=True, cwd=folder, env=environment, timeout=600, stdout=subprocess.DEVNULL)
    return folder / "made"


@pytest.fixture(scope="module")
def quick(made):
    return json.loads((made / "hvp.json").read_text())


@pytest.fixture
def hvp(imported):
    """The benchmark as a module."""
    with imported(ROOT / "benchmarks", "hvp") as modules:
        yield modules["hvp"]


def positive(value):
    return isinstance(value, float | int) and value > 0


def test_names_machine_and_versions_for_every_part(quick):
    assert quick["quick"] is True
    assert set(quick["parts"]) == {"gpt2", "cost", "lanczos"}  # one tiny model, and tests run without a GPU
    for part in quick["parts"].values():
        assert {"cpu", "cores", "memory_gb", "os", "load_at_start"} == set(part["machine"])
        assert {"python", "jax", "flax", "transformers", "lensjax"} < set(part["versions"])


@pytest.mark.parametrize("row", ["hvp", "quadratic_form"])
def test_products_are_measured_in_gradients(quick, row):
    part = quick["parts"]["gpt2"]
    ours = part[row]["lensjax"]
    assert all(positive(ours[name]) for name in ("median_s", "peak_gb", "memory_over_gradient"))
    ratio = part[row]["gradient"]["ratio_within_turns"]
    assert ours["gradients"] == pytest.approx(1 / ratio, rel=1e-3)


@pytest.mark.parametrize("row", ["hvp", "quadratic_form"])
def test_peers_compute_the_same(quick, row):
    found = quick["parts"]["gpt2"][row]
    names = ["curvlinops"] * (find_spec("curvlinops") is not None) + ["PyHessian"] * (
        find_spec("pyhessian") is not None
    )
    assert set(names) < set(found)
    for name in names:
        assert all(positive(found[name][key]) for key in ("median_s", "ratio_within_turns", "ratio_of_memory"))
    if "PyHessian" in names:
        assert found["PyHessian"]["difference"] < 1e-3
    assert set(found["wrong"]) <= {"curvlinops"}


def test_gradients_are_those_of_torch(quick):
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    found = quick["parts"]["gpt2"]["gradient"]
    assert found["torch"]["difference"] < 1e-5
    assert found["wrong"] == []


def test_numbers_are_compared_with_the_nearest(hvp):
    assert hvp.difference([1.0, -4.0, 2.0], [-4.0, 2.0]) == 0
    assert hvp.difference([1.0, -4.0, 2.0], [2.5]) == pytest.approx(0.5 / 4)


def test_a_contender_has_a_process_of_its_own(hvp, tmp_path):
    case = hvp.Case("gpt2", hvp.TINY, examples=2, tokens=8, vectors=1, few=1)
    assert hvp.hvp_peers.write_case(case, tmp_path)["layers"] == 20
    plan = hvp.replace(hvp.QUICK, in_process=False)
    with hvp.contender("gradient", "lensjax", tmp_path, plan, True) as run:
        found = [run(), run()]
    assert all(positive(each["seconds"]) and positive(each["peak_gb"]) for each in found)
    assert found[0]["numbers"] == found[1]["numbers"]
    with pytest.raises(KeyError), hvp.contender("none", "lensjax", tmp_path, plan, True) as run:
        run()


def test_cost_is_drawn(quick, made):
    for name in ("width", "tokens", "examples", "vectors"):
        for point in quick["parts"]["cost"][name]:
            assert all(positive(point[what]["median_s"]) for what in ("gradient", "hvp", "ggn_vp", "quadratic_form"))
    assert "seconds" in (made / "hvp_cost.svg").read_text()


def test_lanczos_takes_the_steps_that_it_should(quick):
    part = quick["parts"]["lanczos"]
    assert part["steps"] == 6
    assert len(part["eigenvalues"]) == len(part["residuals"]) == 1
    assert positive(part["peak_gb"])


def test_targets_are_judged_by_what_was_measured(quick):
    assert {goal["what"].split(" of ")[0] for goal in quick["targets"]} >= {"hvp", "quadratic_form"}
    assert all(goal["met"] == (goal["measured"] <= goal["at_most"]) for goal in quick["targets"])


def test_committed_results_are_of_a_full_run(hvp):
    text = (ROOT / "benchmarks" / "results" / "hvp.json").read_text()
    found = json.loads(text)
    assert found["quick"] is False
    assert found["notes"] == hvp.NOTES
    assert {"gpt2", "t5", "cost", "lanczos"} <= set(found["parts"])
    for name in ("gpt2", "t5"):
        part = found["parts"][name]
        assert set(part["peers"]) == set(hvp.PEER_PACKAGES)
        assert all({"curvlinops", "PyHessian"} <= set(part[row]) for row in ("hvp", "linearised", "joint", "diagonal"))
    lanczos = found["parts"]["lanczos"]
    assert (lanczos["steps"], lanczos["basis"]) == (100, 20)
    assert lanczos["parameters"] > 124e6
    assert text == json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    assert '"/' not in text, "a path of the machine it ran on"
