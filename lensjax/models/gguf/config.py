"""The configuration in a GGUF file's metadata, as Hugging Face's config.json would say it.

Every key of the architecture is read, known to make no difference, or refused: a setting that is passed over in silence
would change what a model computes. The meaning of keys, and of those that are absent, is llama.cpp's.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lensjax.core.errors import InputError, shorten
from lensjax.models.gguf.header import PLAIN, Header, read_header

_TOKENS = {"bos": "bos", "eos": "eos", "padding": "pad"}
FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_LAYERS = 10_000
_KEY_HEADS = "attention.head_count_kv"
_IDLE = ("rope.scaling.finetuned", "tensor_data_layout", "leading_dense_block_count")


class Keys:
    """The metadata of an architecture, which notes what is asked for.

    Args:
      header: Of the file.
    """

    def __init__(self, header: Header) -> None:
        self.header, self._start = header, f"{header.architecture}."
        self._asked = {f"{self._start}{name}" for name in _IDLE}

    def __contains__(self, name: str) -> bool:
        return f"{self._start}{name}" in self.header.fields

    def get(self, name: str) -> Any:
        """A value, or None; a list of equal values, one for each layer, is that value."""
        self._asked.add(f"{self._start}{name}")
        value = self.header.fields.get(f"{self._start}{name}")
        if isinstance(value, list) and len(value) and all(one == value[0] for one in value):
            return value[0]
        return value

    def whole(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.get(name) if name in self or default is None else default
        if type(value) is not int or value < least:
            raise self.bad(name, value, f"a whole number from {least} on")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """A finite number, as short as float32 can tell it from others."""
        value = self.get(name) if name in self or default is None else default
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.bad(name, value, "a number")
        return float(str(np.float32(value)))

    def bad(self, name: str, value: object, wanted: str) -> InputError:
        says = "does not say" if value is None else f"says {shorten(value)} for"
        return InputError(
            f"{self.header.path} {says} {self._start}{name}, which has to be {wanted}; take a file that "
            "llama.cpp converted."
        )

    def check_all_read(self) -> None:
        """Raise InputError where the file has a key that nothing asked for."""
        left = [key for key in self.header.fields if key.startswith(self._start) and key not in self._asked]
        if left:
            raise InputError(
                f"{self.header.path} sets {shorten(left[0], 200)}, which LensJAX does not know; take the model's "
                "safetensors."
            )


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp keeps a family of models.

    Attributes:
      model_type: Hugging Face's name of the family.
      settings: What its config.json would say besides what all of them do, from the keys and that.
      paired: Whether rows of queries and keys that are rotated together lie side by side, and not half a head apart.
      norm_offset: What is added to the scales of norms.
      mixed: Whether some layers have no attention, and thus no key heads.
      lacking: What its config.json does not have of what those of all others do.
    """

    model_type: str
    settings: Callable[[Keys, Mapping[str, Any]], dict[str, Any]] = field(default=lambda keys, common: {})
    paired: bool = False
    norm_offset: float = 0.0
    mixed: bool = False
    lacking: tuple[str, ...] = ()


def config_values(path: Path) -> dict[str, Any]:
    """The content of the config.json that a GGUF file stands for.

    Raises:
      InputError: the file cannot be read, or describes a model, or a setting of it, that LensJAX does not have.
    """
    header = read_header(path)
    keys, ours = Keys(header), architecture_of(header)
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise InputError(f"{path} has no token_embd.weight; give a whole language model.")
    heads, width = keys.whole("attention.head_count"), keys.whole("embedding_length")
    head_dim = keys.whole("attention.key_length", keys.whole("rope.dimension_count", width // heads))
    if keys.whole("attention.value_length", head_dim) != head_dim:
        raise keys.bad("attention.value_length", keys.get("attention.value_length"), f"{head_dim}, as for keys")
    common: dict[str, Any] = {
        "model_type": ours.model_type,
        "vocab_size": keys.whole("vocab_size", embedding.shape[0]),
        "hidden_size": width,
        "intermediate_size": keys.whole("feed_forward_length", keys.get("expert_feed_forward_length")),
        "num_hidden_layers": keys.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": max(_heads_of_layers(keys)) if ours.mixed else keys.whole(_KEY_HEADS, heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.whole("context_length"),
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "dtype": _dtype(header),
    }
    for theirs, name in _TOKENS.items():
        token = header.fields.get(f"tokenizer.ggml.{theirs}_token_id")
        common[f"{name}_token_id"] = token if type(token) is int and token < common["vocab_size"] else None
    values = common | {"rope_parameters": rope(keys, head_dim, common["max_position_embeddings"])}
    values |= ours.settings(keys, values)
    keys.check_all_read()
    return {name: value for name, value in values.items() if name not in ours.lacking}


def architecture_of(header: Header) -> Architecture:
    """How the model in a file is kept.

    Raises:
      InputError: LensJAX does not read such models from GGUF.
    """
    if header.architecture not in ARCHITECTURES:
        name = shorten(header.architecture) or "not named"
        raise InputError(
            f"{header.path} has a model whose architecture is {name}, which LensJAX does not read from GGUF; it reads "
            f"{', '.join(sorted(ARCHITECTURES))}. Take the model's safetensors."
        )
    return ARCHITECTURES[header.architecture]


def rope(keys: Keys, head_dim: int, length: int) -> dict[str, Any]:
    """The rotary embedding.

    Raises:
      InputError: it is scaled in a way that LensJAX does not read from GGUF.
    """
    header, kind = keys.header, keys.get("rope.scaling.type") or "none"
    factor = keys.real("rope.scaling.factor", keys.real("rope.scale_linear", 1.0))
    original = keys.whole("rope.scaling.original_context_length", length)
    magnitude = keys.real("rope.scaling.attn_factor", 1.0)
    made: dict[str, Any] = {"rope_type": "default", "rope_theta": keys.real("rope.freq_base", 10_000.0)}
    dim = keys.whole("rope.dimension_count", head_dim)
    if dim != head_dim:
        made["partial_rotary_factor"] = dim / head_dim
    short, long = (_factors(header, name, dim) for name in (SHORT, LONG))
    plain = _factors(header, FREQUENCIES, dim)
    if (short is None) != (long is None):
        raise InputError(f"{header.path} has one of {SHORT} and {LONG}; take a file that llama.cpp converted.")
    if short is not None or plain is not None:  # Llama 3's divisors are the same for all lengths
        made |= {"rope_type": "longrope", "short_factor": short or plain, "long_factor": long or plain}
        return made | {"original_max_position_embeddings": original, "attention_factor": magnitude}
    if kind == "linear" or (kind == "none" and "rope.scale_linear" in keys):
        return made | {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and magnitude == 1:
        return made | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    if kind != "none":
        raise InputError(
            f"{header.path} scales its rotary embedding by {shorten(kind)}, which LensJAX does not read from GGUF; "
            "take the model's safetensors."
        )
    return made


def _factors(header: Header, name: str, dim: int) -> list[float] | None:
    """The divisors of rotary frequencies in a tensor."""
    entry = header.tensors.get(name)
    if entry is None:
        return None
    if entry.kind != "F32" or entry.shape != (dim // 2,):
        stored = f"{entry.kind} {list(entry.shape)}"
        raise InputError(f"{header.path} has {name} as {stored}, which should be F32 [{dim // 2}]; fetch it again.")
    values = np.memmap(entry.path, "<f4", "r", entry.start, entry.shape)
    return [float(str(value)) for value in values]


def _dtype(header: Header) -> str:
    """The narrowest type of config.json that holds all weights as they are."""
    kinds = {entry.kind for entry in header.tensors.values() if len(entry.shape) > 1}
    narrow = {"F16": "float16", "BF16": "bfloat16"}
    return narrow.get(next(iter(kinds)), "float32") if len(kinds) == 1 and kinds <= {*PLAIN} else "float32"


def _llama(keys: Keys, common: Mapping[str, Any]) -> dict[str, Any]:
    """Llama, Mistral or Mixtral."""
    count = keys.whole("expert_count", 0, least=0)
    keys.get("expert_used_count")
    if count:
        return {"model_type": "mixtral", **_experts(keys, "num_local_experts")}
    return {"attention_bias": "blk.0.attn_q.bias" in keys.header.tensors, "mlp_bias": False}


def _experts(keys: Keys, name: str) -> dict[str, Any]:
    """How many experts there are, under that name, and how many a token passes through."""
    count = keys.whole("expert_count")
    used = keys.whole("expert_used_count")
    if used > count:
        raise keys.bad("expert_used_count", used, f"at most {count}, the number of experts")
    return {name: count, "num_experts_per_tok": used}


def _qwen3moe(keys: Keys, common: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_experts(keys, "num_experts"),
        "moe_intermediate_size": keys.whole("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }


def _gpt_oss(keys: Keys, common: Mapping[str, Any]) -> dict[str, Any]:
    rope = common["rope_parameters"]
    stretched = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False} if rope["rope_type"] == "yarn" else {}
    return {
        **_experts(keys, "num_local_experts"),
        **_windows(keys, common, 128, 2),
        "intermediate_size": keys.whole("expert_feed_forward_length", common["intermediate_size"]),
        "rope_parameters": rope | stretched,
        "attention_bias": "blk.0.attn_q.bias" in keys.header.tensors,
    }


def _lfm2(keys: Keys, common: Mapping[str, Any]) -> dict[str, Any]:
    heads = _heads_of_layers(keys)
    return {
        "norm_eps": common["rms_norm_eps"],
        "layer_types": ["full_attention" if count else "conv" for count in heads],
        "conv_L_cache": keys.whole("shortconv.l_cache"),
        "conv_bias": any(name.endswith("shortconv.in_proj.bias") for name in keys.header.tensors),
        "block_auto_adjust_ff_dim": False,
    }


def _heads_of_layers(keys: Keys) -> list[int]:
    """The number of key heads of every layer, which is 0 where there is no attention, and else the same."""
    layers, value = min(keys.whole("block_count"), _LAYERS), keys.get(_KEY_HEADS)
    counts = value if isinstance(value, list) else [value] * layers
    if len(counts) != layers or any(type(one) is not int for one in counts) or len({*counts} - {0}) != 1:
        raise keys.bad(_KEY_HEADS, value, f"{layers} numbers, of which those that are not 0 are equal")
    return counts


def _smollm3(keys: Keys, common: Mapping[str, Any]) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in keys.header.tensors, "no_rope_layer_interval": 4}


def _granite(keys: Keys, common: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attention_multiplier": keys.real("attention.scale", common["head_dim"] ** -0.5),
        "embedding_multiplier": keys.real("embedding_scale", 1.0),
        "residual_multiplier": keys.real("residual_scale", 1.0),
        "logits_scaling": keys.real("logit_scale", 1.0),
        "attention_bias": "blk.0.attn_q.bias" in keys.header.tensors,
    }


def _qwen2(keys: Keys, common: Mapping[str, Any]) -> dict[str, Any]:
    return {"use_sliding_window": False}


def _phi3(keys: Keys, common: Mapping[str, Any]) -> dict[str, Any]:
    window = keys.whole("attention.sliding_window", 0, least=0)
    original = common["rope_parameters"].get("original_max_position_embeddings", common["max_position_embeddings"])
    return {"sliding_window": window or None, "original_max_position_embeddings": original}


def _gemma2(keys: Keys, common: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_windows(keys, common, 4096, 2),
        **_score_scale(common, 46),
        "attn_logit_softcapping": keys.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.real("final_logit_softcapping", 30.0),
    }


def _gemma3(keys: Keys, common: Mapping[str, Any]) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": keys.real("rope.freq_base_swa", 10_000.0)}
    cap = keys.real("final_logit_softcapping", 0.0)
    return {
        **_windows(keys, common, 0, 6),
        **_score_scale(common, 62),
        "rope_parameters": {"full_attention": common["rope_parameters"], "sliding_attention": local},
        "final_logit_softcapping": cap or None,
    }


def _windows(keys: Keys, common: Mapping[str, Any], window: int, period: int) -> dict[str, Any]:
    """Layers that attend to a window: all but each `period`-th, unless the file says otherwise."""
    layers = min(common["num_hidden_layers"], _LAYERS)
    size = keys.whole("attention.sliding_window", window, least=0)
    name = "attention.sliding_window_pattern"
    said = keys.header.fields.get(f"{keys.header.architecture}.{name}")
    if isinstance(said, list):
        keys.get(name)
        sliding = [bool(one) for one in said]
        if len(said) != layers:
            raise keys.bad(name, said, f"{layers} values, one for each layer")
    else:
        period = keys.whole(name, period)
        sliding = [i % period < period - 1 for i in range(layers)]
    types = ["sliding_attention" if size and one else "full_attention" for one in sliding]
    return {"sliding_window": size or common["max_position_embeddings"], "layer_types": types}


def _score_scale(common: Mapping[str, Any], largest: int) -> dict[str, Any]:
    """Queries are divided by the root of a head's size; in the largest model, of so many layers, of width / heads."""
    heads, layers = common["num_attention_heads"], common["num_hidden_layers"]
    return {"query_pre_attn_scalar": common["hidden_size"] // heads if layers == largest else common["head_dim"]}


ARCHITECTURES = {
    "gemma": Architecture("gemma", norm_offset=1.0),
    "gemma2": Architecture("gemma2", _gemma2, norm_offset=1.0),
    "gemma3": Architecture("gemma3_text", _gemma3, norm_offset=1.0),
    "gpt-oss": Architecture("gpt_oss", _gpt_oss),
    "granite": Architecture("granite", _granite, paired=True),
    "lfm2": Architecture("lfm2", _lfm2, mixed=True, lacking=("rms_norm_eps",)),
    "llama": Architecture("llama", _llama, paired=True),
    "phi3": Architecture("phi3", _phi3),
    "qwen2": Architecture("qwen2", _qwen2),
    "qwen3": Architecture("qwen3", _qwen2),
    "qwen3moe": Architecture("qwen3_moe", _qwen3moe),
    "smollm3": Architecture("smollm3", _smollm3, paired=True),
}
