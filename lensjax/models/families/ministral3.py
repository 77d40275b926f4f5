"""Ministral 3 (arXiv 2601.08584), its text models: Mistral's blocks, with queries that grow at far positions."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lensjax.core.errors import InputError
from lensjax.models.decoder import FULL, SLIDING, DecoderLM
from lensjax.models.families import llama
from lensjax.models.family import Family, register
from lensjax.models.options import Options
from lensjax.models.rotary import Rotary, rotary_from_config


@dataclass(frozen=True)
class GrowingRotary(Rotary):
    """A rotary embedding with a factor of the queries beside it: 1 + β·ln(1 + ⌊position / original length⌋)."""

    def __call__(
        self, positions: Int[Array, "batch time"], length: int | None = None
    ) -> tuple[Float[Array, "..."], ...]:
        settings = dict(self.settings)
        tables = super().__call__(positions, length)
        spans = positions // int(settings["original_max_position_embeddings"])
        return *tables, 1 + settings["llama_4_scaling_beta"] * jnp.log1p(spans.astype(tables[0].dtype))


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    plain = rotary_from_config(config, llama.head_dim(config))
    for name in ("llama_4_scaling_beta", "original_max_position_embeddings"):
        if name not in dict(plain.settings):
            raise InputError(f"rope_parameters lacks {name} in config.json, which Ministral 3 needs; give it.")
    rotary = GrowingRotary(plain.dim, plain.kind, plain.theta, plain.length, plain.settings)
    kind = FULL if config.sliding_window is None else SLIDING
    return llama.build(config, options, rngs, rotary=rotary, layer_types=[kind] * config.num_hidden_layers)


register(
    Family(
        "ministral3",
        "Ministral3ForCausalLM",
        module,
        llama.parameter_names,
        examples=("mistralai/Ministral-3-3B-Base-2512", "mistralai/Ministral-3-8B-Base-2512"),
    )
)
