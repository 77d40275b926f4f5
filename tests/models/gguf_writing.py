"""Writing GGUF files as llama.cpp's converter does, from folders of `transformers`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, TokenType, get_tensor_name_map
from gguf.quants import quantize
from safetensors.numpy import load_file

_NAMES = {"gemma3_text": "gemma3"}
_PAIRED = ("llama", "smollm3", "granite")
_KEYS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
_WINDOWED = ("gemma2", "gemma3_text", "phi3")


def write_gguf(
    folder: Path, path: Path, kind: str = "F32", keys: Mapping[str, Any] = {}, tokenizer: Any = None
) -> dict[str, np.ndarray]:
    """Write the model in a folder; matrices are stored as `kind`. Returns what the file's tensors hold, by name.

    `keys` are added to the architecture's, or replace them; those that are None are left out.
    """
    config = json.loads((folder / "config.json").read_text())
    model_type = config["model_type"]
    name = _NAMES.get(model_type, model_type)
    writer = GGUFWriter(path, name)
    found = {theirs: config[ours] for ours, theirs in _KEYS.items() if config.get(ours) is not None}
    if config.get("head_dim"):
        found |= {"attention.key_length": config["head_dim"], "attention.value_length": config["head_dim"]}
    if model_type in _WINDOWED:
        found["attention.sliding_window"] = config.get("sliding_window") or 0
    parameters = config["rope_parameters"]
    found["rope.freq_base"] = parameters.get("full_attention", parameters)["rope_theta"]
    for key, value in (found | keys).items():
        if value is not None:
            _add(writer, f"{name}.{key}", value)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer)
    for token in ("bos", "eos"):
        writer.add_uint32(f"tokenizer.ggml.{token}_token_id", config[f"{token}_token_id"])
    writer.add_uint32("tokenizer.ggml.padding_token_id", config["pad_token_id"])
    table = get_tensor_name_map(next(arch for arch in MODEL_ARCH if arch.name.lower() == name), 8)
    written = {}
    for tensor, values in load_file(folder / "model.safetensors").items():
        stem, end = tensor.rsplit(".", 1)
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config.get("num_key_value_heads")}
        rows = heads.get(stem.rsplit(".", 1)[-1]) if model_type in _PAIRED else None
        if rows:
            values = values.reshape(rows, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if stem.endswith("norm") and model_type.startswith("gemma"):
            values = values + 1
        written[f"{table.get_name(stem)}.{end}"] = values
    add_tensors(writer, written.items(), kind)
    return written


def add_tensors(writer: GGUFWriter, tensors: Iterable[tuple[str, np.ndarray]], kind: str = "F32") -> None:
    """Write the file, with these tensors, of which matrices are stored as `kind`."""
    stored = GGMLQuantizationType[kind]
    for name, values in tensors:
        if values.ndim > 1 and stored != GGMLQuantizationType.F32:
            writer.add_tensor(name, quantize(values, stored), raw_dtype=stored)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Any) -> None:
    """The vocabulary and merges of a byte-level BPE tokenizer, whose digits are split."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
