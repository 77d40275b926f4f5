"""What `import lensjax` gives, and what it costs."""

import json
import subprocess
import sys

import pytest

import lensjax

PARTS = ["curvature", "curves", "data", "fit", "models", "plot", "study", "train"]


def public(thing):
    return [name for name in dir(thing) if not name.startswith("_")]


def test_dir_lists_the_parts_and_nothing_else():
    assert public(lensjax) == PARTS


@pytest.mark.parametrize("part", PARTS)
def test_every_name_of_a_part_is_there(part):
    thing = getattr(lensjax, part)
    assert public(thing)
    for name in public(thing):
        assert getattr(thing, name) is not None


def test_nothing_is_imported_before_it_is_used():
    code = """
import json, sys
import lensjax
first = {name.partition(".")[0] for name in sys.modules} & {"jax", "numpy", "flax", "transformers", "plotly"}
import lensjax.study.cells
slow = {name.partition(".")[0] for name in sys.modules} & {"flax", "optax", "orbax", "transformers", "plotly"}
lensjax.curves.read_curves, lensjax.fit.fit_joint
then = {name.partition(".")[0] for name in sys.modules} & {"flax", "transformers", "matplotlib", "plotly"}
print(json.dumps([sorted(first), sorted(then), sorted(slow)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], [], []]


def test_modules_of_a_part_are_reached_and_others_refused():
    assert lensjax.curvature.hvp.hvp_fn is lensjax.curvature.hvp_fn
    assert lensjax.data.load_task.__module__ == "lensjax.tasks.task"
    for thing in (lensjax, lensjax.study, lensjax.data):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            thing.nothing  # noqa: B018
