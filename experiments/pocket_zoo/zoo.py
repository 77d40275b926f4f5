"""The models of the pocket zoo: how large they are, and how they are pretrained."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import transformers

VOCABULARY = 1024  # tokens, of one tokenizer for all, so that their losses per token can be compared
POSITIONS = 256
PAD, END, MASK = "<pad>", "</s>", "<mask>"


@dataclass(frozen=True)
class Recipe:
    """How a model is made.

    Attributes:
      config: Its configuration.
      corpora: What it is pretrained on.
      steps: Of pretraining, 64 passages each.
      learning_rate: At the peak of a cosine.
      objective: "next" token, or for encoder–decoders "spans" or "infilling" (see `corpora.corrupted`).
      bundled: Whether it is part of the package.
    """

    config: Any
    corpora: tuple[str, ...]
    steps: int
    learning_rate: float = 3e-3
    objective: str = "next"
    bundled: bool = False


def _tokens() -> dict[str, Any]:
    return {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}


def _gpt2(width: int, layers: int, heads: int) -> Any:
    return transformers.GPT2Config(n_embd=width, n_layer=layers, n_head=heads, n_positions=POSITIONS, **_tokens())


def _rotary(kind: str, width: int, layers: int, heads: int, inner: int, shared: int | None = None) -> Any:
    """A decoder with rotary positions, whose key heads may be shared."""
    return transformers.AutoConfig.for_model(
        kind,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared or heads,
        head_dim=width // heads,
        intermediate_size=inner,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        **_tokens(),
    )


def _opt(width: int, layers: int, heads: int) -> Any:
    return transformers.OPTConfig(
        hidden_size=width,
        word_embed_proj_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=4 * width,
        max_position_embeddings=POSITIONS,
        **_tokens(),
    )


def _t5(width: int, layers: int, heads: int, inner: int) -> Any:
    return transformers.T5Config(
        d_model=width,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        d_kv=width // heads,
        d_ff=inner,
        decoder_start_token_id=0,
        **_tokens(),
    )


def _bart(width: int, layers: int, heads: int, inner: int) -> Any:
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in
             {"layers": layers, "attention_heads": heads, "ffn_dim": inner}.items()}  # fmt: skip
    return transformers.BartConfig(
        d_model=width,
        max_position_embeddings=POSITIONS,
        decoder_start_token_id=1,
        forced_eos_token_id=1,
        **sides,
        **_tokens(),
    )


def _gpt_neox(width: int, layers: int, heads: int) -> Any:
    return transformers.GPTNeoXConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=POSITIONS,
        **_tokens(),
    )


ZOO: Mapping[str, Recipe] = {
    "gpt2-0.2m": Recipe(_gpt2(64, 3, 4), ("speeches",), 500, bundled=True),
    "llama-0.3m": Recipe(_rotary("llama", 80, 3, 4, 216), ("letters", "plays"), 500, bundled=True),
    "t5-0.4m": Recipe(_t5(80, 2, 4, 240), ("glosses",), 400, objective="spans", bundled=True),
    "opt-0.5m": Recipe(_opt(96, 3, 4), ("plays", "glosses"), 400, bundled=True),
    "bart-0.6m": Recipe(
        _bart(96, 2, 4, 288), ("scripture", "letters"), 400, learning_rate=2e-3, objective="infilling", bundled=True
    ),
    "qwen3-0.7m": Recipe(_rotary("qwen3", 128, 3, 4, 320, shared=2), ("scripture", "glosses"), 300),
    "gpt2-1m": Recipe(_gpt2(144, 4, 6), ("letters", "glosses", "scripture"), 250),
    "gemma3-1m": Recipe(_rotary("gemma3_text", 128, 6, 4, 384, shared=2), ("speeches", "plays"), 250),
    "t5-2m": Recipe(_t5(160, 4, 5, 400), ("scripture", "speeches"), 150, learning_rate=2e-3, objective="spans"),
    "llama-3m": Recipe(_rotary("llama", 192, 6, 6, 512), ("speeches", "plays", "glosses"), 150, learning_rate=2e-3),
    "gpt_neox-4m": Recipe(_gpt_neox(256, 4, 8), ("plays",), 100, learning_rate=1.5e-3),
    "gpt2-6m": Recipe(_gpt2(288, 5, 8), ("speeches",), 60, learning_rate=1e-3),
}


def hardly_trained(recipe: Recipe) -> Recipe:
    """The same, on a corpus that is small and easy to get, for a few steps: to see that it runs."""
    return replace(recipe, corpora=("letters",), steps=3)
