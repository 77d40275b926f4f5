"""Every family compiles for a slice of a TPU pod; none need be attached."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from lensjax.models.family import supported

FAMILIES = tuple(supported()) if "LENSJAX_TEST_FAMILIES" in os.environ else ("gemma4_text", "mbart", "pegasus")
COMPILE = """
import importlib.util
import sys

import jax
import numpy as np

from lensjax.core.devices import topology_devices
from lensjax.models import make_mesh
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options

spec = importlib.util.spec_from_file_location("settings", sys.argv[1])
settings = importlib.util.module_from_spec(spec)
spec.loader.exec_module(settings)
jax.config.update("jax_enable_compilation_cache", False)
mesh = make_mesh("fsdp=2,tensor=2", topology_devices("v5e:2x2"))
for family in sys.argv[2:]:
    config = settings.tiny_config.__wrapped__()(family)
    model = abstract_model(config, make_options("bfloat16", "float32", mesh=mesh))
    rows = jax.ShapeDtypeStruct((4, 16), np.int32)
    step = jax.jit(jax.value_and_grad(model.loss)).lower(model.params, {"input_ids": rows, "labels": rows})
    print(family, step.compile().memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.skipif(find_spec("libtpu") is None, reason="compiling for a TPU that is not attached needs libtpu")
def test_a_step_of_every_family_compiles(request: pytest.FixtureRequest) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # TPUs' compiler knows no others
    settings = request.config.rootpath / "tests" / "conftest.py"
    made = subprocess.run(
        [sys.executable, "-c", COMPILE, settings, *FAMILIES], env=kept, capture_output=True, text=True, timeout=900
    )
    assert made.returncode == 0, made.stderr[-2000:]
    assert [line.split()[0] for line in made.stdout.splitlines()] == [*FAMILIES]
