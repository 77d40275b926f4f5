"""Trials that end early by the joint fit of all curves."""

import numpy as np
import pytest

from lensjax.core.errors import InputError
from lensjax.tuning.rule import Rule

STEPS = [1, 2, 3, 4, 6, 8, 12, 16]
SLOPES = np.array([0.4, 0.2, 0.1, 0.05])
HORIZON = 256


def loss(slope, step, start=4.0):
    return start * step**-slope


def curves(upto=STEPS):
    return {f"t{i}": {step: loss(slope, step) for step in upto} for i, slope in enumerate(SLOPES)}


def test_the_flattest_curve_is_ended_and_the_steepest_never():
    rule = Rule(HORIZON)
    assert rule.chance(curves(), "t0") > 0.9
    assert rule.chance(curves(), "t3") < 0.05
    assert rule.ends(curves(), "t3")
    assert not rule.ends(curves(), "t0")


def test_trials_are_compared_where_they_will_be_and_not_where_they_are():
    """A trial that starts high and falls fast is behind all others when it is judged, and ahead at the horizon."""
    late = curves() | {"late": {step: loss(0.6, step, 8.0) for step in STEPS}}
    last = {name: curve[16] for name, curve in late.items()}
    assert last["late"] > last["t0"]
    assert Rule(HORIZON).chance(late, "late") > 0.5


def test_a_trial_is_judged_when_its_steps_have_doubled():
    asked = []

    class Asked(Rule):
        def chance(self, curves, name):
            asked.append(max(curves[name]))
            return 0.0

    for steps in range(1, 20):
        Asked(HORIZON).ends({"a": dict.fromkeys(range(1, steps + 1), 1.0)}, "a")
    assert asked == [3, 4, 8, 16]


def test_few_trials_and_first_steps_end_nothing_and_a_lost_one_ends_at_once():
    rule = Rule(HORIZON)
    few = {name: curve for name, curve in curves().items() if name != "t0"}
    assert rule.chance(few, "t3") is None
    assert not rule.ends(few, "t3")
    assert not rule.ends(curves([1, 2]), "t3")
    assert not rule.ends({"a": {0: 3.0}}, "a")
    assert rule.ends({"a": {1: float("nan")}}, "a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 0}, "horizon is 0; give the last step of a trial"),
        ({"horizon": 9, "below": 1.0}, "below is 1.0; give a probability between 0 and 1"),
        ({"horizon": 9, "trials": 1}, "trials is 1; give 2 or more"),
        ({"horizon": float("nan")}, "horizon is nan; give a whole number"),
        ({"horizon": "9"}, "horizon is 9; give a whole number"),
        ({"horizon": 9, "trials": 2.5}, "trials is 2.5; give a whole number"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Rule(**settings)


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        ({1: 3.0, 2: 1.0, 3: -1.0}, "Trial bad reported -1 at step 3; report a loss above 0"),
        ({1: 3.0, 2: 1.0, 512: 0.5}, "Trial bad reported step 512, beyond the horizon 256; raise that"),
    ],
)
def test_what_is_no_loss_is_named(curve, message):
    with pytest.raises(InputError, match=message):
        Rule(HORIZON).chance(curves() | {"bad": curve}, "t0")
