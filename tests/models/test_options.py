"""Settings that there are not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensjax.core.errors import InputError
from lensjax.models.options import as_dtype, make_options


def test_parameters_are_held_in_the_type_of_the_computation_unless_told() -> None:
    assert make_options().param_dtype == np.float32
    assert make_options("bfloat16").param_dtype == jnp.bfloat16
    mixed = make_options("bfloat16", "float32", remat="dots")
    assert (mixed.dtype, mixed.param_dtype, mixed.remat) == (jnp.bfloat16, np.float32, "dots")


@pytest.mark.parametrize(
    ("field", "value", "choices"),
    [
        ("dtype", "int8", "float32, bfloat16, float16, float64"),
        ("dtype", "half-precision", "float32, bfloat16, float16, float64"),
        ("param_dtype", "float8_e4m3fn", "float32, bfloat16, float16, float64"),
        ("remat", "all", "none, cheap, dots, full"),
        ("attention", "flash", "auto, xla, cudnn, splash"),
    ],
)
def test_a_bad_value_names_the_good_ones(field: str, value: str, choices: str) -> None:
    with pytest.raises(InputError, match=rf"is '{value}'; give one of {choices}\.$"):
        make_options(**{field: value})


def test_float64_needs_64_bits() -> None:
    with pytest.raises(InputError, match="float64 needs 64-bit JAX; set JAX_ENABLE_X64=1"):
        make_options("float64")
    with jax.enable_x64(True):
        assert make_options("float64").dtype == np.float64


@given(st.one_of(st.text(), st.none(), st.integers(), st.sampled_from(["f4", "<f4", "float", "f4,f4", "(2,)f4", "O"])))
def test_any_type_is_one_of_ours_or_refused(value: object) -> None:
    try:
        name = as_dtype(value).name
    except InputError as error:
        name = str(error)
    assert re.fullmatch(r"float32|bfloat16|float16|dtype is '.{0,60}'; give one of .*\.|float64 needs .*\.", name)
