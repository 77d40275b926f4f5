"""GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373): attention and MLP side by side, a norm before each."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from lensjax.core.errors import InputError
from lensjax.models.decoder import DecoderLM
from lensjax.models.family import Family, register
from lensjax.models.layers import MLP, Angles, Attention, LayerNorm
from lensjax.models.options import Options
from lensjax.models.rotary import rotary_from_config
from lensjax.models.weights import ParameterNames, Stored


class Block(nnx.Module):
    def __init__(self, config: Any, options: Options, rngs: nnx.Rngs) -> None:
        width, eps, std = config.hidden_size, config.layer_norm_eps, config.initializer_range
        self.parallel = config.use_parallel_residual
        self.attention_norm = LayerNorm(width, options, eps=eps)
        self.attention = Attention(
            width, config.num_attention_heads, options, rngs, bias=config.attention_bias, std=std
        )
        self.mlp_norm = LayerNorm(width, options, eps=eps)
        self.mlp = MLP(width, config.intermediate_size, config.hidden_act, options, rngs, bias=True, std=std)

    def __call__(self, x: Float[Array, "batch time width"], mask: Array | None, angles: Angles) -> Array:
        attended = x + self.attention(self.attention_norm(x), mask, angles=angles)
        return attended + self.mlp(self.mlp_norm(x if self.parallel else attended))


def module(config: Any, options: Options, rngs: nnx.Rngs) -> DecoderLM:
    norm, dim = LayerNorm(config.hidden_size, options, eps=config.layer_norm_eps), width_of_head(config)
    rotary = rotary_from_config(config, dim, partial=True)
    return DecoderLM(config, lambda rngs: Block(config, options, rngs), norm, rotary, options, rngs)


def width_of_head(config: Any) -> int:
    """Size of a head, which follows from the width.

    Raises:
      InputError: the configuration gives another, by which `transformers` would rotate too many dimensions.
    """
    dim = config.hidden_size // config.num_attention_heads
    given = getattr(config, "head_dim", None) or dim
    if given != dim:
        raise InputError(f"head_dim is {given} in config.json, and heads of {config.model_type} have {dim}; remove it.")
    return int(dim)


def parameter_names(config: Any) -> ParameterNames:
    def fused(part: int) -> Stored:
        heads = config.num_attention_heads
        return Stored("gpt_neox.layers.{layer}.attention.query_key_value", part=(part, (1, 1, 1), heads))

    return {
        "embed": "gpt_neox.embed_in",
        "layers/blocks/attention_norm": "gpt_neox.layers.{layer}.input_layernorm",
        "layers/blocks/attention/q": fused(0),
        "layers/blocks/attention/k": fused(1),
        "layers/blocks/attention/v": fused(2),
        "layers/blocks/attention/o": "gpt_neox.layers.{layer}.attention.dense",
        "layers/blocks/mlp_norm": "gpt_neox.layers.{layer}.post_attention_layernorm",
        "layers/blocks/mlp/up": "gpt_neox.layers.{layer}.mlp.dense_h_to_4h",
        "layers/blocks/mlp/down": "gpt_neox.layers.{layer}.mlp.dense_4h_to_h",
        "norm": "gpt_neox.final_layer_norm",
        "head": "embed_out",
    }


register(
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        module,
        parameter_names,
        prefix="gpt_neox.",
        ignored=(r"^embed_out\.weight$", r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$"),
        examples=("EleutherAI/pythia-70m", "EleutherAI/pythia-410m", "EleutherAI/gpt-neox-20b"),
    )
)
