from typing import get_args

import pytest

from lensjax.cli.arguments import UnitName
from lensjax.core.errors import InputError
from lensjax.curves.units import BITS_PER_BYTE, UNITS, unit_named


@pytest.mark.parametrize("name", ["bits per byte", "bits_per_byte", " Bits  per byte "])
def test_units_are_found_by_name_and_key(name):
    assert unit_named(name) == BITS_PER_BYTE == UNITS[BITS_PER_BYTE.key]
    assert f"1.2 {BITS_PER_BYTE}" == "1.2 bits per byte"


def test_the_command_line_takes_every_unit():
    assert set(get_args(get_args(get_args(UnitName)[0])[0])) == set(UNITS)


def test_there_is_no_other():
    with pytest.raises(InputError, match="There is no unit 'shannons'; choose one of bits_per_byte, nats_per_token, "):
        unit_named("shannons")
