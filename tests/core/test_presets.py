"""Flags of XLA by name: the compilers know them, and a result says which were used."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from lensjax.cli.main import main
from lensjax.core import presets
from lensjax.core.errors import InputError
from lensjax.core.presets import PRESETS, VARIABLE, preset_in_use, use_preset

COMPILE = """
from lensjax.core.presets import use_preset
use_preset()
import jax
from lensjax.core.devices import topology_devices
from lensjax.models.sharding import make_mesh
mesh = make_mesh("fsdp=4", topology_devices("v5e:2x2"))
x = jax.ShapeDtypeStruct((8, 8), "float32", sharding=jax.NamedSharding(mesh, jax.P("fsdp")))
jax.jit(lambda x: x @ x.T).lower(x).compile()
"""


STEP = """
import json
from lensjax.core.presets import use_preset
use_preset()
from transformers import LlamaConfig
from lensjax.core.roofline.counters import count_program
from lensjax.core.topologies import find_topology
from lensjax.train.meshes import Choice, Workplace
from lensjax.train.spec import TrainingSpec
config = LlamaConfig(
    vocab_size=512, hidden_size=512, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4
)
work = Workplace(config, find_topology("v5p:2x2x1"), TrainingSpec(batch_size=4, remat="full"), (256,), fixed=True)
text = work.lower(Choice(1, 4, 1, 1, "full")).compile().as_text()
gathers = [one for one in count_program(text, {"data": 1, "fsdp": 4, "tensor": 1}).collectives if "gather" in one.kind]
hidden = [one.runs for one in gathers if one.asynchronous and one.overlapped]
print(json.dumps([sum(hidden), sum(one.runs for one in gathers)]))
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("LIBTPU_INIT_ARGS", VARIABLE):
        monkeypatch.setenv(name, "")


def run(code: str, **environment: str) -> str:
    """What Python prints in a process of its own, as a compiler that does not know a flag ends its process."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", code], env=kept | environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.decode()


def test_flags_come_before_those_of_the_user_and_each_once(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_enable_async_all_gather=false --mine=1")
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setattr(presets, "_compiles_for_gpus", lambda: False)
    use_preset("slices")
    flags = os.environ["LIBTPU_INIT_ARGS"].split()
    assert flags[-2:] == ["--xla_enable_async_all_gather=false", "--mine=1"]
    assert len({flag.partition("=")[0] for flag in flags}) == len(flags) == len(PRESETS["slices"].tpu) + 1
    assert os.environ["XLA_FLAGS"] == "--xla_backend_optimization_level=0"  # there is no GPU
    assert preset_in_use() == "slices"
    use_preset()  # as processes do that this one starts
    assert os.environ["LIBTPU_INIT_ARGS"].split() == flags
    monkeypatch.setattr(presets, "_compiles_for_gpus", lambda: True)
    use_preset()
    assert os.environ["XLA_FLAGS"].split() == [*PRESETS["slices"].gpu, "--xla_backend_optimization_level=0"]


def test_no_preset_changes_nothing(monkeypatch):
    before = os.environ["XLA_FLAGS"]
    use_preset()
    assert (os.environ["LIBTPU_INIT_ARGS"], os.environ["XLA_FLAGS"], preset_in_use()) == ("", before, "")


def test_a_preset_that_there_is_not(monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(InputError, match="LENSJAX_XLA_PRESET is 'fast'; give one of overlap, slices"):
        use_preset()
    with pytest.raises(SystemExit) as ended:
        main(["run", "study.yaml", "--xla-preset", "fast"])
    assert ended.value.code == 2
    assert "overlap" in capsys.readouterr().err


def test_xla_knows_the_flags_for_gpus():
    run("import jax; jax.jit(lambda x: x + 1)(1.0)", XLA_FLAGS=" ".join(PRESETS["slices"].gpu), JAX_PLATFORMS="cpu")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the flags are those of libtpu")
@pytest.mark.parametrize("name", PRESETS)
def test_the_compiler_of_tpus_knows_its_flags(name):
    run(COMPILE, **{VARIABLE: name}, JAX_PLATFORMS="cpu")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the flags are those of libtpu")
def test_layers_are_gathered_beside_products() -> None:
    alone, beside = (json.loads(run(STEP, **{VARIABLE: name}, JAX_PLATFORMS="cpu")) for name in ("", "overlap"))
    assert alone == [0, 38]
    assert beside == [30, 38]


def test_a_result_names_the_preset(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "_compiles_for_gpus", lambda: False)
    rows = [{"n": f"{n:03}", "square": f"{n * n:06}"} for n in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"source": {"files": "rows.jsonl"}, "prompt": "{n}:", "target": "{square}", "validation": 8, "test": 8}
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    command = ["finetune", str(tmp_path / "task.yaml"), "--model", "pocket:gpt2-0.2m", "--examples", "0"]
    main([*command, "--out", str(tmp_path / "out"), "--xla-preset", "overlap"])
    (result,) = (tmp_path / "out").glob("*/examples-0-seed-0/result.json")
    assert json.loads(result.read_text())["xla"] == "overlap"
    assert "overlap" in (tmp_path / "out" / "curves.csv").read_text()
