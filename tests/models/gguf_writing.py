"""Writing GGUF files as llama.cpp's converter does, from folders of `transformers`."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, TokenType, get_tensor_name_map
from gguf.quants import quantize
from safetensors.numpy import load_file

_NAMES = {"gemma3_text": "gemma3", "gpt_oss": "gpt-oss", "mixtral": "llama", "qwen3_moe": "qwen3moe"}
_PAIRED = ("llama", "mixtral", "smollm3", "granite")
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
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "conv_L_cache": "shortconv.l_cache",
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
_WINDOWED = ("gemma2", "gemma3_text", "gpt_oss", "phi3")


def write_gguf(
    folder: Path, path: Path, kind: str = "F32", keys: Mapping[str, Any] = {}, tokenizer: Any = None, split: int = 0
) -> dict[str, np.ndarray]:
    """Write the model in a folder; matrices are stored as `kind`. Returns what the file's tensors hold, by name.

    `keys` are added to the architecture's, or replace them; those that are None are left out. With `split`, a file has
    no more tensors than that.
    """
    config = json.loads((folder / "config.json").read_text())
    model_type = config["model_type"]
    name = _NAMES.get(model_type, model_type)
    writer = GGUFWriter(path, name, split_max_tensors=split)
    found = {theirs: config[ours] for ours, theirs in _KEYS.items() if config.get(ours) is not None}
    if config.get("head_dim"):
        found |= {"attention.key_length": config["head_dim"], "attention.value_length": config["head_dim"]}
    if model_type in _WINDOWED:
        found["attention.sliding_window"] = config.get("sliding_window") or 0
    if model_type == "lfm2":
        attends = [kind == "full_attention" for kind in config["layer_types"]]
        found["attention.head_count_kv"] = [config["num_key_value_heads"] if one else 0 for one in attends]
    parameters = config["rope_parameters"]
    if model_type == "gpt_oss":
        found |= {"rope.scaling.type": "yarn", "rope.scaling.factor": parameters["factor"]}
        found["rope.scaling.original_context_length"] = parameters["original_max_position_embeddings"]
    found["rope.freq_base"] = parameters.get("full_attention", parameters)["rope_theta"]
    for key, value in (found | keys).items():
        if value is not None:
            _add(writer, f"{name}.{key}", value)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer)
    for token in ("bos", "eos"):
        writer.add_uint32(f"tokenizer.ggml.{token}_token_id", config[f"{token}_token_id"])
    writer.add_uint32("tokenizer.ggml.padding_token_id", config["pad_token_id"])
    table = get_tensor_name_map(next(arch for arch, known in MODEL_ARCH_NAMES.items() if known == name), 8)
    written = {}
    for tensor, values in _by_matrix(load_file(folder / "model.safetensors")):
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


def _by_matrix(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors with the same matrix of all experts in each, outputs first, and what llama.cpp names otherwise."""
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, values in tensors.items():
        if one := re.fullmatch(r"(.+\.experts)\.(\d+)(\.\w+\.weight)", name):
            stacks.setdefault(f"{one[1]}{one[3]}", {})[int(one[2])] = values
        elif fused := re.fullmatch(r"(.+\.experts)\.gate_up_proj(_bias)?", name):
            for start, half in enumerate(("gate", "up")):
                yield from _turned(f"{fused[1]}.{half}_proj", fused[2], values[..., start::2])
        elif down := re.fullmatch(r"(.+\.experts\.down_proj)(_bias)?", name):
            yield from _turned(down[1], down[2], values)
        elif name.endswith(".sinks"):
            yield f"{name}.weight", values
        else:
            yield name, values[:, 0] if name.endswith(".conv.conv.weight") else values
    for name, matrices in stacks.items():
        yield name, np.stack([matrices[expert] for expert in range(len(matrices))])


def _turned(stem: str, bias: str | None, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    yield (f"{stem}.bias", values) if bias else (f"{stem}.weight", values.swapaxes(1, 2))


def add_tensors(writer: GGUFWriter, tensors: Iterable[tuple[str, np.ndarray]], kind: str = "F32") -> None:
    """Write the file, with these tensors, of which matrices are stored as `kind`."""
    stored = GGMLQuantizationType[kind]
    for name, values in tensors:
        matrix = values.ndim > 1 and name.endswith(".weight") and ".conv." not in name
        if matrix and kind != "F32" and (kind != "MXFP4" or "_exps" in name):
            writer.add_tensor(name, quantize(np.ascontiguousarray(values), stored), raw_dtype=stored)
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
