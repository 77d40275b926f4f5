import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lensjax.datasets import VARIABLE

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "benchmarks" / "results" / "fit.json"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What `--quick` wrote, run from elsewhere and without public curves."""
    folder = tmp_path_factory.mktemp("benchmark")
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, str(ROOT / "benchmarks" / "fit.py"), "--quick", "--out", "made/fit.json"]
    subprocess.run(command, check=True, cwd=folder, env=environment, timeout=300, stdout=subprocess.DEVNULL)
    return json.loads((folder / "made" / "fit.json").read_text())


def kinds(value):
    """The keys and types of a result; all numbers are alike, and of a list the first counts."""
    if isinstance(value, dict):
        return {name: kinds(item) for name, item in value.items()}
    if isinstance(value, list):
        return [kinds(value[0])]
    return "number" if isinstance(value, float | int) and not isinstance(value, bool) else type(value).__name__


def positive(value):
    return isinstance(value, float | int) and value > 0


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


def test_targets_are_judged_by_what_was_measured(quick):
    judged = [goal for goal in quick["targets"] if goal["measured"] is not None]
    assert judged
    assert all(goal["met"] == (goal["measured"] <= goal["at_most"]) for goal in judged)


def test_committed_results_are_of_a_full_run_of_this_script(quick):
    text = COMMITTED.read_text()
    found = json.loads(text)
    unlike = {"scaling", "targets", "revision"}  # one point of a quick run has no exponent; git may be missing
    assert kinds({k: v for k, v in found.items() if k not in unlike}) == kinds(
        {k: v for k, v in quick.items() if k not in unlike}
    )
    assert kinds(found["scaling"]["points"]) == kinds(quick["scaling"]["points"])
    assert found["quick"] is False
    assert [point["models"] for point in found["scaling"]["points"]] == [30, 100, 300, 1000, 3000]
    assert text == json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    assert '"/' not in text, "a path of the machine it ran on"
