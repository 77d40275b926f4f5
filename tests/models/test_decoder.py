"""What decoder-only models with rotary positions share: which mask and which angles each layer gets."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxtyping import Array

from lensjax.core.errors import InputError
from lensjax.models.decoder import DecoderLM
from lensjax.models.layers import Angles
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options
from lensjax.models.rotary import Rotary

TIME, WINDOW, WIDTH, VOCABULARY = 9, 3, 4, 11
FULL, SLIDING = "full_attention", "sliding_attention"
LAYERS = {
    "mixed": (SLIDING, FULL, FULL, SLIDING, FULL),
    "alternating": (FULL, SLIDING, FULL, SLIDING),
    "full": (FULL, FULL),
    "sliding": (SLIDING, SLIDING),
}
ROTARY = {FULL: Rotary(2, "default", 100.0, 64, ()), SLIDING: Rotary(2, "linear", 100.0, 64, (("factor", 5.0),))}


class Probe(nnx.Module):
    """In place of a block: adds its own numbers times the sum of the positions that are seen, and times the angle."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.weights = nnx.Param(rngs.params.uniform((2,)))

    def __call__(self, x: Array, mask: Array | None, angles: Angles) -> Array:
        causal = jnp.tril(jnp.ones((TIME, TIME), bool))
        seen = causal if mask is None else causal & mask[:, 0]
        weights = self.weights[...]
        return x + (weights[0] * seen @ jnp.arange(1.0, TIME + 1))[..., None] + weights[1] * angles[1]


class Same(nnx.Module):
    def __call__(self, x: Array) -> Array:
        return x


def make(layer_types: tuple[str, ...] | None, **changes: Any) -> DecoderLM:
    sizes = {"hidden_size": WIDTH, "vocab_size": VOCABULARY, "initializer_range": 0.5, "num_hidden_layers": 5}
    given = {} if layer_types is None else {"num_hidden_layers": len(layer_types)}
    config = SimpleNamespace(**sizes | {"tie_word_embeddings": False, "sliding_window": WINDOW} | given | changes)
    return DecoderLM(config, Probe, Same(), ROTARY, make_options(), nnx.Rngs(0), layer_types=layer_types)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("layers", LAYERS)
def test_every_layer_gets_its_own_mask_and_angles(layers: str, padded: bool) -> None:
    model = make(LAYERS[layers])
    batch = {"input_ids": jnp.arange(2 * TIME).reshape(2, TIME) % VOCABULARY}
    tokens = np.ones((2, TIME), int)
    if padded:
        tokens[0, :2] = tokens[1, -3:] = 0
        batch["attention_mask"] = jnp.asarray(tokens)
    expected = np.array(model.embed(batch["input_ids"]))
    for kind, weights in zip(LAYERS[layers], np.asarray(model.layers.blocks.weights[...]), strict=True):
        for t in range(TIME):
            first = max(0, t - WINDOW + 1) if kind == SLIDING else 0
            seen = (tokens * np.arange(1, TIME + 1))[:, first : t + 1].sum(1)
            expected[:, t] += weights[0] * seen[:, None] + weights[1] * np.sin(t / 5 if kind == SLIDING else t)
    np.testing.assert_allclose(model(batch), model.logits(jnp.asarray(expected)), rtol=1e-5, atol=1e-4)


def test_window_is_of_no_effect_without_layer_types() -> None:
    assert make(None).window is None
    assert make(None).kinds == ((False, ROTARY[FULL]),)


@pytest.mark.parametrize(
    ("layer_types", "changes", "message"),
    [
        ((FULL, "chunked_attention"), {}, r"layer_types has 'chunked_attention' in config\.json"),
        ((FULL, SLIDING), {"sliding_window": None}, r"sliding_window is null"),
        (None, {"is_causal": False}, r"is_causal is false"),
        (None, {"use_bidirectional_attention": True}, r"use_bidirectional_attention is true"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    layer_types: tuple[str, ...] | None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(layer_types, **changes)


@pytest.mark.parametrize(
    ("model_type", "option"),
    [
        *((name, {"use_bidirectional_attention": True}) for name in ("gemma", "gemma2", "gemma3_text")),
        *((name, {"is_causal": False}) for name in ("gpt2", "opt", "bart", "t5", "switch_transformers")),
    ],
)
def test_decoders_that_see_tokens_to_come_are_refused(
    model_type: str, option: dict[str, bool], tiny_config: Callable[..., Any]
) -> None:
    with pytest.raises(InputError, match=r"is_causal is false or use_bidirectional_attention is true in config\.json"):
        abstract_model(tiny_config(model_type, **option), make_options())


def test_a_head_of_another_size_is_refused_by_gpt_neox(tiny_config: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"head_dim is 12 in config\.json, and heads of gpt_neox have 8; remove it"):
        abstract_model(tiny_config("gpt_neox", head_dim=12), make_options())
