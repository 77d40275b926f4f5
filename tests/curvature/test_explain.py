"""What kernels do with every parameter, as they say it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.curvature.ntk.explain import HEADINGS, explain

SHAPES = {
    "bias": (4,),
    "deep": (3, 4, 4),
    "first": (4, 6),
    "head": (4, 2),
    "idle": (5,),
    "mixed": (4, 4),
    "over": (4, 4),
    "table": (50, 4),
}
PARAMS = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
XS = np.zeros((7, 5), np.int32)


def f(p, ids):
    h = p["table"][ids] @ p["mixed"] + p["bias"]
    h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h @ p["mixed"].T, p["deep"])
    h, _ = jax.lax.scan(lambda c, row: (jnp.tanh(c @ p["over"] + row), None), jnp.zeros(4), h)
    return h @ p["head"] + (h @ p["first"]).sum() + jnp.sin(p["first"]).sum()


@pytest.fixture(scope="module")
def plan():
    return explain(f, PARAMS, XS, measure=True)


def test_every_parameter_says_which_way_it_goes_and_why(plan):
    by_name = {one.name: one for one in plan.parameters}
    assert set(by_name) == set(PARAMS)
    reasons = {
        "bias": "broadcast_in_dim takes it",
        "first": "sin takes it",
        "idle": "nothing uses it",
    }
    for name, why in reasons.items():
        assert (by_name[name].way, why in by_name[name].why or by_name[name].why) == ("plain", True), name
    assert by_name["table"].why.startswith("1 lookup; ")
    assert by_name["deep"].why.startswith("1 product; ")
    assert by_name["over"].why.startswith("1 product; ")
    assert by_name["mixed"].why.startswith("2 products; ")
    for name in ("deep", "head", "table"):
        one = by_name[name]
        assert one.way == min(one.predicted, key=one.predicted.get)
        assert {way: seconds > 0 for way, seconds in one.measured.items()} == {"form": True, "gram": True}
        assert one.measured_examples == 7
        assert one.memory > 0
        assert all(flops > 0 for flops in one.flops.values())


def test_it_is_a_table_and_json(plan):
    lines = str(plan).splitlines()
    assert lines[0] == "7 examples, 2 outputs, 7 examples at a time"
    assert all(heading in lines[1] for heading in HEADINGS)
    assert len(lines) == 2 + len(PARAMS)
    assert plan.as_json()["parameters"][0]["name"] == "bias"


def test_parameters_may_be_shapes_and_memory_small():
    shapes = jax.eval_shape(lambda: PARAMS)
    with pytest.raises(InputError, match="at least") as refused:
        explain(f, shapes, XS, XS[:2], memory_limit=1)
    least = int(re.search("need ([0-9,]+)", str(refused.value))[1].replace(",", ""))
    small = explain(f, shapes, XS, XS[:2], memory_limit=least, output="full")
    assert max(one.pieces for one in small.parameters) > 1
    assert not any(one.measured for one in small.parameters)
    assert str(small).startswith("7 by 2 examples")
