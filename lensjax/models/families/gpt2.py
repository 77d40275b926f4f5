"""GPT-2 and the models built on it: LaMini-GPT, Cerebras-GPT, mGPT."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from lensjax.core.errors import InputError
from lensjax.models.family import Family, register
from lensjax.models.layers import MLP, Attention, Embedding, LanguageModel, LayerNorm, Linear, Stack
from lensjax.models.masks import Sight, check_causal, check_positions, positions, self_mask, sight
from lensjax.models.options import Options
from lensjax.models.weights import ParameterNames, Stored


class Block(nnx.Module):
    def __init__(self, config: Any, options: Options, rngs: nnx.Rngs) -> None:
        width, eps, std = config.n_embd, config.layer_norm_epsilon, config.initializer_range
        scale = None if config.scale_attn_weights else 1.0
        self.attention_norm = LayerNorm(width, options, eps=eps)
        self.attention = Attention(width, config.n_head, options, rngs, bias=True, scale=scale, std=std)
        self.mlp_norm = LayerNorm(width, options, eps=eps)
        self.mlp = MLP(
            width, config.n_inner or 4 * width, config.activation_function, options, rngs, bias=True, std=std
        )

    def __call__(self, x: Float[Array, "batch time width"], mask: Array | Sight | None) -> Array:
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.mlp(self.mlp_norm(x))


class GPT2(LanguageModel):
    """Learned positions, blocks with their norms in front, and a head that is usually tied to the embedding."""

    takes_segments = True

    def __init__(self, config: Any, options: Options, rngs: nnx.Rngs) -> None:
        check_causal(config)
        if config.add_cross_attention or config.scale_attn_by_inverse_layer_idx:
            raise InputError(
                "add_cross_attention or scale_attn_by_inverse_layer_idx is true in config.json; "
                "LensJAX has GPT-2 without them."
            )
        std = config.initializer_range
        self.mesh, self.length, self.fused = options.mesh, config.n_positions, options.attention == "splash"
        self.embed = Embedding(config.vocab_size, config.n_embd, options, rngs, std=std)
        self.positions = Embedding(config.n_positions, config.n_embd, options, rngs, std=std)
        self.layers = Stack(lambda rngs: Block(config, options, rngs), config.n_layer, options, rngs)
        self.norm = LayerNorm(config.n_embd, options, eps=config.layer_norm_epsilon)
        tied = config.tie_word_embeddings
        self.head = None if tied else Linear(config.n_embd, config.vocab_size, options, rngs, std=std)

    def hidden(self, batch: Mapping[str, Array]) -> Float[Array, "batch time width"]:
        """What the head reads at every position of `input_ids`."""
        check_positions(batch, self.length)
        x = self.embed(batch["input_ids"]) + self.positions(positions(batch))
        return self.norm(self.layers(x, sight(batch) if self.fused else self_mask(batch)))


def parameter_names(config: Any) -> ParameterNames:
    def fused(part: int) -> Stored:
        return Stored("transformer.h.{layer}.attn.c_attn", transposed=False, part=(part, (1, 1, 1), 1))

    def conv(name: str) -> Stored:
        return Stored(f"transformer.h.{{layer}}.{name}", transposed=False)

    return {
        "embed": "transformer.wte",
        "positions": "transformer.wpe",
        "layers/blocks/attention_norm": "transformer.h.{layer}.ln_1",
        "layers/blocks/attention/q": fused(0),
        "layers/blocks/attention/k": fused(1),
        "layers/blocks/attention/v": fused(2),
        "layers/blocks/attention/o": conv("attn.c_proj"),
        "layers/blocks/mlp_norm": "transformer.h.{layer}.ln_2",
        "layers/blocks/mlp/up": conv("mlp.c_fc"),
        "layers/blocks/mlp/down": conv("mlp.c_proj"),
        "norm": "transformer.ln_f",
        "head": "lm_head",
    }


register(
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        GPT2,
        parameter_names,
        prefix="transformer.",
        ignored=(r"^lm_head\.weight$", r"\.attn\.(bias|masked_bias)$"),
        examples=("openai-community/gpt2", "MBZUAI/LaMini-GPT-124M", "cerebras/Cerebras-GPT-256M", "ai-forever/mGPT"),
    )
)
