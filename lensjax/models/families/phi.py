"""Phi 1, 1.5 and 2 (arXiv 2306.11644, 2309.05463): attention and MLP side by side behind one norm, all with biases."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from lensjax.models.decoder import DecoderLM
from lensjax.models.family import Family, register
from lensjax.models.layers import MLP, Angles, Attention, LayerNorm
from lensjax.models.options import Options
from lensjax.models.rotary import rotary_from_config
from lensjax.models.weights import ParameterNames


class Block(nnx.Module):
    def __init__(self, config: Any, options: Options, rngs: nnx.Rngs) -> None:
        width, eps, std = config.hidden_size, config.layer_norm_eps, config.initializer_range
        self.norm = LayerNorm(width, options, eps=eps)
        self.attention = Attention(
            width,
            config.num_attention_heads,
            options,
            rngs,
            kv_heads=config.num_key_value_heads,
            bias=True,
            qk_norm=(lambda size: LayerNorm(size, options, eps=eps)) if config.qk_layernorm else None,
            std=std,
        )
        self.mlp = MLP(width, config.intermediate_size, config.hidden_act, options, rngs, bias=True, std=std)

    def __call__(self, x: Float[Array, "batch time width"], mask: Array | None, angles: Angles) -> Array:
        y = self.norm(x)
        return x + self.attention(y, mask, angles=angles) + self.mlp(y)


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    norm = LayerNorm(config.hidden_size, options, eps=config.layer_norm_eps)
    rotary = rotary_from_config(config, config.hidden_size // config.num_attention_heads, partial=True)
    return DecoderLM(config, lambda rngs: Block(config, options, rngs), norm, rotary, options, rngs, head_bias=True)


def parameter_names(config: Any) -> ParameterNames:
    block = {
        "norm": "input_layernorm",
        **{f"attention/{name}": f"self_attn.{name}_proj" for name in "qkv"},
        **{f"attention/{name}_norm": f"self_attn.{name}_layernorm" for name in "qk"},
        "attention/o": "self_attn.dense",
        "mlp/up": "mlp.fc1",
        "mlp/down": "mlp.fc2",
    }
    layers = {f"layers/blocks/{ours}": f"model.layers.{{layer}}.{theirs}" for ours, theirs in block.items()}
    ends = {"norm": "model.final_layernorm", "head": "lm_head", "head_bias": "lm_head"}
    return {"embed": "model.embed_tokens", **layers, **ends}


register(
    Family(
        "phi",
        "PhiForCausalLM",
        module,
        parameter_names,
        ignored=(r"^lm_head\.weight$", r"rotary_emb\.inv_freq$"),
        examples=("microsoft/phi-1", "microsoft/phi-1_5", "microsoft/phi-2"),
    )
)
