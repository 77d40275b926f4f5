"""Every family compiles for a slice of a TPU pod; none need be attached."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lensjax.models.family import supported

FAMILIES = tuple(supported()) if "LENSJAX_TEST_FAMILIES" in os.environ else ("gemma4_text", "mbart", "pegasus")
COMPILE = """
import sys
from pathlib import Path

import jax
import numpy as np

from lensjax.core.devices import topology_devices
from lensjax.models import make_mesh
from lensjax.models.hub import read_config
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options

jax.config.update("jax_enable_compilation_cache", False)
mesh = make_mesh("fsdp=2,tensor=2", topology_devices("v5e:2x2"))
for folder in map(Path, sys.argv[1:]):
    model = abstract_model(read_config(folder), make_options("bfloat16", "float32", mesh=mesh))
    rows = jax.ShapeDtypeStruct((4, 16), np.int32)
    step = jax.jit(jax.value_and_grad(model.loss)).lower(model.params, {"input_ids": rows, "labels": rows})
    step.compile()
    print(folder.name)
"""


@pytest.mark.skipif(find_spec("libtpu") is None, reason="compiling for a TPU that is not attached needs libtpu")
def test_a_step_of_every_family_compiles(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    for family in FAMILIES:
        tiny_config(family).save_pretrained(tmp_path / family)
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # TPUs' compiler knows no others
    folders = [tmp_path / family for family in FAMILIES]
    made = subprocess.run(
        [sys.executable, "-c", COMPILE, *folders], env=kept, capture_output=True, text=True, timeout=900
    )
    assert made.returncode == 0, made.stderr[-2000:]
    assert made.stdout.split() == [*FAMILIES]
