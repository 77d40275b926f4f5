"""Rotary embeddings: their frequencies against transformers', and the properties they are made for."""

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lensjax.core.errors import InputError
from lensjax.models.family import family_of
from lensjax.models.options import make_options
from lensjax.models.rotary import rotary_from_config, rotate

HEAD_DIM, LENGTH = 32, 256

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "short_factor": [1.0 + i / 20 for i in range(HEAD_DIM // 2)],
    "long_factor": [1.5 + i for i in range(HEAD_DIM // 2)],
    "original_max_position_embeddings": 64,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 8.0},
    "linear-partial": {"rope_type": "linear", "factor": 8.0, "partial_rotary_factor": 0.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3"} | LLAMA3,
    "yarn": {"rope_type": "yarn"} | YARN,
    "yarn-not-truncated": {"rope_type": "yarn", "truncate": False} | YARN,
    "yarn-mscale": {"rope_type": "yarn", "mscale": 0.7, "mscale_all_dim": 1.3} | YARN,
    "yarn-half-mscale": {"rope_type": "yarn", "mscale": 0.7} | YARN,
    "yarn-attention-factor": {"rope_type": "yarn", "attention_factor": 1.25} | YARN,
    "yarn-betas": {"rope_type": "yarn", "beta_fast": 16.0, "beta_slow": 2.0} | YARN,
    "yarn-no-original": {"rope_type": "yarn", "factor": 4.0},
    "yarn-short-original": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4},
    "yarn-shrinking": {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 64},
    "longrope": {"rope_type": "longrope"} | LONG,
    "longrope-factor": {"rope_type": "longrope", "factor": 2.0} | LONG,
    "longrope-attention-factor": {"rope_type": "longrope", "factor": 8.0, "attention_factor": 1.3} | LONG,
    "longrope-shrinking": {"rope_type": "longrope"} | LONG | {"original_max_position_embeddings": 512},
}


def config(settings: dict[str, Any]) -> Any:
    return LlamaConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        rope_parameters={"rope_theta": 5000.0} | settings,
    )


@pytest.mark.parametrize("time", [7, LENGTH, 3 * LENGTH])
@pytest.mark.parametrize("name", SETTINGS)
def test_frequencies_and_magnitude_equal_those_of_transformers(name: str, time: int) -> None:
    described = config(SETTINGS[name])
    expected, magnitude = ROPE_INIT_FUNCTIONS[SETTINGS[name]["rope_type"]](described, "cpu", seq_len=time)
    rotary = rotary_from_config(described, HEAD_DIM, partial=True)
    np.testing.assert_allclose(rotary.frequencies(time), expected.numpy(), rtol=1e-6)
    assert rotary.magnitude() == pytest.approx(magnitude, rel=1e-12)


def test_plain_frequencies() -> None:
    rotary = rotary_from_config(config({"partial_rotary_factor": 0.25}), HEAD_DIM, partial=True)
    np.testing.assert_allclose(rotary.frequencies(7), [1.0, 5000**-0.25, 5000**-0.5, 5000**-0.75], rtol=1e-12)
    assert rotary.magnitude() == 1.0


@pytest.mark.parametrize("name", ["linear-partial", "dynamic", "llama3", "yarn"])
@given(data=st.data())
def test_rotation_keeps_norms_and_sees_only_distances(name: str, data: st.DataObject) -> None:
    rotary = rotary_from_config(config(SETTINGS[name]), HEAD_DIM, partial=True)
    query, key = data.draw(st.tuples(st.integers(0, 10**4), st.integers(0, 10**4)))
    shift, length = data.draw(st.integers(0, 10**4)), 2 * 10**4 + 1
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(1, 2, 3, HEAD_DIM)))
        near = rotate(x, rotary(jnp.array([[query, key]]), length))
        far = rotate(x, rotary(jnp.array([[query + shift, key + shift]]), length))
        turned = np.linalg.norm(near[..., : rotary.dim], axis=-1)
        np.testing.assert_allclose(turned, rotary.magnitude() * np.linalg.norm(x[..., : rotary.dim], axis=-1))
        np.testing.assert_array_equal(near[..., rotary.dim :], x[..., rotary.dim :])
        products = [np.einsum("hd,hd->h", y[0, 0], y[0, 1]) for y in (near, far)]
        np.testing.assert_allclose(products[0], products[1], rtol=1e-9, atol=1e-9)


def test_rotation_turns_pairs_half_a_head_apart() -> None:
    rotary = rotary_from_config(config({"partial_rotary_factor": 0.125}), HEAD_DIM, partial=True)
    x = jnp.zeros((1, 1, 1, HEAD_DIM)).at[..., 0].set(1.0).at[..., 3].set(1.0).at[..., 4].set(1.0)
    angle, slow = 3.0, 3.0 / np.sqrt(5000)
    expected = [np.cos(angle), -np.sin(slow), np.sin(angle), np.cos(slow), 1.0] + [0.0] * (HEAD_DIM - 5)
    np.testing.assert_allclose(rotate(x, rotary(jnp.array([[3]])))[0, 0, 0], expected, rtol=1e-6, atol=1e-7)


ROTATING = ["gemma", "gemma2", "gemma3_text", "gpt_neox", "granite", "llama", "mistral", "olmo2"]
ROTATING += ["olmo3", "phi", "phi3", "qwen2", "qwen3", "smollm3"]


def their_rotary(model_type: str, described: Any) -> Any:
    """The module of `transformers` that makes the frequencies of a family."""
    name = model_type.removesuffix("_text")
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    (found,) = (c for c in vars(module) if c.endswith("RotaryEmbedding"))
    return getattr(module, found)(described)


@pytest.mark.parametrize("model_type", ROTATING)
def test_a_share_of_a_head_is_rotated_by_the_families_of_which_transformers_does(
    model_type: str, tiny_config: Callable[..., Any]
) -> None:
    described = tiny_config(model_type, partial_rotary_factor=0.5)
    theirs = their_rotary(model_type, described)
    module = nnx.eval_shape(lambda: family_of(model_type).module(described, make_options(), nnx.Rngs(0)))
    for sliding, ours in (kind for kind in module.kinds if kind[1] is not None):
        kind = "sliding_attention" if sliding else "full_attention"
        expected = getattr(theirs, "inv_freq" if hasattr(theirs, "inv_freq") else f"{kind}_inv_freq")
        np.testing.assert_allclose(ours.frequencies(7), expected.numpy(), rtol=1e-6)


def test_a_scaled_share_of_a_head_that_is_rotated_whole_is_refused() -> None:
    with pytest.raises(InputError, match=r"partial_rotary_factor is 0\.5 beside rope_type 'linear' in config\.json"):
        rotary_from_config(config(SETTINGS["linear-partial"]), HEAD_DIM)
    described = config({k: v for k, v in SETTINGS["linear-partial"].items() if k != "partial_rotary_factor"})
    assert rotary_from_config(described, HEAD_DIM).dim == HEAD_DIM  # as the message advises


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("largest", [3, 63, 64, LENGTH - 1, 3 * LENGTH])
def test_frequencies_follow_the_largest_position(kind: str, largest: int) -> None:
    rotary = rotary_from_config(config(SETTINGS[kind]), HEAD_DIM)
    positions = jnp.array([[0, largest], [1, 2]])
    with jax.enable_x64(True):
        for ours, known in zip(rotary(positions), rotary(positions, largest + 1), strict=True):
            np.testing.assert_allclose(ours, known, rtol=1e-9, atol=1e-9)


def test_factors_of_longrope_are_as_many_as_frequencies() -> None:
    with pytest.raises(InputError, match=r"short_factor has 16 numbers in config\.json, and 16 dimensions .* give 8"):
        rotary_from_config(config(SETTINGS["longrope"]), HEAD_DIM // 2)


def test_unknown_kind_is_refused() -> None:
    described = SimpleNamespace(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}, max_position_embeddings=64)
    with pytest.raises(InputError, match=r"rope_type is 'spiral' in config\.json; LensJAX knows default, linear"):
        rotary_from_config(described, HEAD_DIM)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_missing_factor_is_refused(kind: str) -> None:
    settings = {"rope_type": kind, "rope_theta": 1e4, "factor": None}
    described = SimpleNamespace(rope_parameters=settings, max_position_embeddings=64)
    with pytest.raises(InputError, match=rf"rope_parameters lacks factor in config\.json, which rope_type '{kind}'"):
        rotary_from_config(described, HEAD_DIM)


@pytest.mark.parametrize(("share", "dims"), [(0.34, 3), (0.1, 1), (0.05, 0)])
def test_an_odd_number_of_rotated_dimensions_is_refused(
    share: float, dims: int, tiny_config: Callable[..., Any]
) -> None:
    """As transformers broadcasts what does not match."""
    config = tiny_config("phi", num_attention_heads=3, hidden_size=30, partial_rotary_factor=share)
    with pytest.raises(InputError, match=rf"has {dims} dimensions of each head rotated in config\.json"):
        family_of("phi").module(config, make_options(), nnx.Rngs(0))
