"""GGUF files as llama.cpp writes them, beside the folders they are made from, `gguf` and `transformers`."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf_writing import add_tensors, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

import lensjax.models
from lensjax.cli.main import main
from lensjax.core.errors import InputError
from lensjax.models.gguf.header import BLOCKS, read_header
from lensjax.models.gguf.tensors import _Stored
from lensjax.models.gguf.tokenizer import make_tokenizer as tokenizer_of
from lensjax.models.hub import find_folder, folder_here, read_config
from lensjax.models.inputs import check_finite_weights, model_fingerprint
from lensjax.models.rotary import rotary_from_config
from lensjax.models.tokenizer_check import TEXTS
from lensjax.models.torch_check import compare_with_torch
from lensjax.study.init import _check_model
from lensjax.study.spec import read_study

MakeConfig = Callable[..., Any]
MXFP4 = GGMLQuantizationType.MXFP4
FAMILIES = ("gemma", "gemma2", "gemma3_text", "gpt_oss", "granite", "lfm2", "llama", "mixtral", "phi3", "qwen2")
FAMILIES += ("qwen3", "qwen3_moe", "smollm3")
CHANGES = {  # what llama.cpp knows of these families, and the tiny configurations differ in
    "gemma3_text": {"final_logit_softcapping": 2.0},
    "granite": {"attention_bias": True},
    "llama": {"tie_word_embeddings": False, "attention_bias": True},
    "qwen3_moe": {"mlp_only_layers": [], "norm_topk_prob": True},
    "smollm3": {"no_rope_layer_interval": 4, "num_hidden_layers": 4},
}
OF_NO_MATTER = {"architectures", "transformers_version", "_name_or_path", "dtype", "max_window_layers", "head_dim"}
OF_NO_MATTER |= {"decoder_start_token_id", "original_max_position_embeddings"}


@pytest.fixture
def save(tmp_path: Path, tiny_config: MakeConfig, random_model: Callable[..., Any]) -> Callable[..., Path]:
    """Saves a random model as `transformers` would; returns its folder."""

    def make(model_type: str, **changes: Any) -> Path:
        config = tiny_config(model_type, **CHANGES.get(model_type, {}) | changes)
        folder = tmp_path / f"{model_type}-folder"
        random_model(config).save(folder)
        return folder

    return make


def assert_equal(path: Path, folder: Path, tolerance: float = 0.0) -> None:
    """A file and a folder make the same model."""
    found, expected = lensjax.models.load(path), lensjax.models.load(folder)
    one, other = (
        {key: value for key, value in model.config.to_dict().items() if key not in OF_NO_MATTER}
        for model in (found, expected)
    )
    assert one == other
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), found.params, expected.params)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_file_makes_the_model_it_is_made_of(model_type: str, save: Callable[..., Path], tmp_path: Path) -> None:
    folder, path = save(model_type), tmp_path / "model.gguf"
    write_gguf(folder, path)
    assert_equal(path, folder, 1e-7 if model_type.startswith("gemma") else 0.0)  # scales are stored one larger
    assert str(read_config(path).dtype).endswith("float32")


def test_a_model_in_parts_is_read_whole(save: Callable[..., Path], tmp_path: Path) -> None:
    folder, place = save("llama"), tmp_path / "parts"
    place.mkdir()
    write_gguf(folder, place / "model.gguf", split=9)
    parts = sorted(place.iterdir())
    assert [path.name for path in parts] == [f"model-{i:05d}-of-00004.gguf" for i in (1, 2, 3, 4)]
    for path in (place, parts[0], parts[2]):
        assert_equal(path, folder)
    before = model_fingerprint(parts[0])
    shutil.copy(parts[0], place / "alone.gguf")
    with pytest.raises(InputError, match=r"alone\.gguf is part 0, from 0 on, of 4 of a model by its metadata, and by"):
        read_config(place / "alone.gguf")
    content = parts[2].read_bytes()
    parts[2].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert model_fingerprint(parts[0]) != before
    parts[2].unlink()
    with pytest.raises(InputError, match=r"lacks model-00003-of-00004\.gguf beside model-00001-of-00004\.gguf; fet"):
        lensjax.models.load(parts[0])


def test_experts_in_mxfp4(save: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    written = write_gguf(save("gpt_oss", intermediate_size=64), path, "MXFP4")
    model = lensjax.models.load(path)
    experts = model.params["layers"]["blocks"]["mlp"]["experts"]
    for name in ("gate", "up", "down"):
        for layer in range(2):
            rounded = gguf.quantize(np.ascontiguousarray(written[f"blk.{layer}.ffn_{name}_exps.weight"]), MXFP4)
            expected = gguf.dequantize(rounded, MXFP4).swapaxes(1, 2)
            np.testing.assert_array_equal(experts[name]["kernel"][layer], expected)
            np.testing.assert_array_equal(experts[name]["bias"][layer], written[f"blk.{layer}.ffn_{name}_exps.bias"])


def test_logits_are_those_of_torch_with_the_file(save: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(save("llama", hidden_size=64, intermediate_size=96, vocab_size=97), path, "Q4_1")
    for one in compare_with_torch(path):
        assert one.passed
        assert one.error < 1e-5


def test_a_file_that_transformers_does_not_read_is_checked_once_exported(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "granite.gguf"
    write_gguf(save("granite", num_hidden_layers=1), path)
    with pytest.raises(
        InputError, match=r"transformers does not read .*granite\.gguf \(.+\); run `lensjax models export`"
    ):
        compare_with_torch(path)
    main(["models", "export", str(path), str(tmp_path / "made")])
    assert all(one.passed for one in compare_with_torch(tmp_path / "made"))


ROPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "linear": ("llama", {"rope_type": "linear", "factor": 4.0}, {"rope.scaling.type": "linear"}),
    "yarn": ("qwen2", {"rope_type": "yarn", "factor": 4.0}, {"rope.scaling.type": "yarn"}),
    "global layers only": ("gemma3_text", {"rope_type": "linear", "factor": 8.0}, {"rope.scaling.type": "linear"}),
}


@pytest.mark.parametrize("kind", ROPES)
def test_scaled_rotary_embeddings(kind: str, save: Callable[..., Path], tmp_path: Path) -> None:
    model_type, parameters, keys = ROPES[kind]
    made: dict[str, Any] = parameters | {"rope_theta": 1e4}
    keys = keys | {"rope.scaling.factor": parameters["factor"], "rope.scaling.finetuned": True}
    if kind == "yarn":
        made["original_max_position_embeddings"] = keys["rope.scaling.original_context_length"] = 16
    if model_type == "gemma3_text":
        made = {"full_attention": made, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    folder, path = save(model_type, rope_parameters=made), tmp_path / "model.gguf"
    write_gguf(folder, path, keys=keys)
    assert_equal(path, folder, 1e-7)


def test_divisors_of_frequencies(save: Callable[..., Path], tmp_path: Path) -> None:
    """Llama 3's scaling is stored as the divisors that it comes to, and Phi 3's as they are."""
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled |= {"original_max_position_embeddings": 32, "rope_theta": 1e4}
    folder = save("llama", rope_parameters=scaled)
    expected = lensjax.models.load(folder)
    plain = 1e4 ** -(np.arange(0, 8, 2) / 8)
    divisors = plain / rotary_from_config(expected.config, 8).frequencies(1)
    assert divisors.max() == 8
    path, tensors = tmp_path / "model.gguf", write_gguf(folder, tmp_path / "old.gguf")
    writer = copied(tmp_path / "old.gguf", path)
    add_tensors(writer, [*tensors.items(), ("rope_freqs.weight", divisors.astype(np.float32))])
    ids = {"input_ids": np.arange(60)[None] % 96}
    found = lensjax.models.load(path)
    logits = [jax.jit(model.apply)(model.params, ids) for model in (found, expected)]
    np.testing.assert_allclose(*logits, rtol=0, atol=2e-6 * np.abs(logits[1]).max())

    short, long = [1.0, 1.25, 1.5, 2.0], [1.0, 2.5, 3.5, 4.0]
    rope = {"rope_type": "longrope", "short_factor": short, "long_factor": long, "rope_theta": 1e4}
    rope |= {"attention_factor": 1.1875, "original_max_position_embeddings": 16}
    folder = save("phi3", rope_parameters=rope, original_max_position_embeddings=16)
    keys = {"rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.1875, "rope.dimension_count": 8}
    tensors = write_gguf(folder, tmp_path / "old.gguf", keys=keys)
    writer = copied(tmp_path / "old.gguf", path)
    pair = [(f"rope_factors_{name}.weight", np.array(f, np.float32)) for name, f in (("short", short), ("long", long))]
    add_tensors(writer, [*tensors.items(), *pair])
    assert_equal(path, folder)


def copied(old: Path, path: Path, leave: str = "", **changed: Any) -> GGUFWriter:
    """A writer with the metadata of another file."""
    reader = GGUFReader(old)
    writer = GGUFWriter(path, reader.fields["general.architecture"].contents())
    for key, item in reader.fields.items():
        if key not in ("general.architecture", leave) and not key.startswith("GGUF."):
            kind = item.types[0]
            writer.add_key_value(
                key, changed.pop(key, item.contents()), kind, item.types[1] if item.types[1:] else None
            )
    for key, value in changed.items():
        writer.add_string(key, value)
    return writer


def random_blocks(kind: str, rows: int, width: int) -> np.ndarray:
    """Bytes of blocks whose scales are ordinary numbers."""
    rng = np.random.default_rng(0)
    values, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (rows, width // values, size), np.uint8)
    halves = rng.uniform(0.01, 1, (rows, width // values, 2)).astype("<f2").view(np.uint8)
    if kind == "MXFP4":  # whose scale is an exponent
        blocks[..., 0] = rng.integers(120, 130, blocks.shape[:-1])
        return blocks.reshape(rows, -1)
    places = {"Q4_K": 0, "Q5_K": 0, "Q2_K": size - 4, "Q4_1": 0, "Q5_1": 0, "Q6_K": size - 2, "Q3_K": size - 2}
    at, count = places.get(kind, 0), 4 if kind in ("Q4_K", "Q5_K", "Q2_K", "Q4_1", "Q5_1") else 2
    blocks[..., at : at + count] = halves[..., :count]
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("kind", [*BLOCKS, "F16", "BF16", "F32", "F64"])
def test_any_slice_is_dequantised_as_gguf_and_transformers_do(kind: str, tmp_path: Path) -> None:
    rows, width = 12, 512
    stored = GGMLQuantizationType[kind]
    path, writer = tmp_path / "model.gguf", GGUFWriter(tmp_path / "model.gguf", "llama")
    if kind in BLOCKS:
        data = random_blocks(kind, rows, width)
        expected = gguf.dequantize(data, stored)
        assert np.abs(expected).max() < 1e5
        torch = pytest.importorskip("torch")
        from transformers.integrations.gguf.dequant import GGML_BLOCK
        from transformers.integrations.gguf.kernels import dequantize_blocks

        if stored.value in GGML_BLOCK:
            theirs = dequantize_blocks(torch.from_numpy(data), stored.value, rows, width, torch.float32)
            np.testing.assert_allclose(theirs.numpy(), expected, rtol=1e-5, atol=1e-5)
    else:
        values = np.random.default_rng(0).normal(size=(rows, width))
        data = {"F16": values.astype("<f2"), "F32": values.astype("<f4"), "F64": values}.get(kind)
        data = gguf.quantize(values.astype(np.float32), stored) if data is None else data
        expected = gguf.dequantize(data, stored) if kind == "BF16" else data
    writer.add_tensor("w", data, raw_dtype=stored)
    writer.add_tensor("stack", np.stack([data, data[::-1]]), raw_dtype=stored)
    writer.add_tensor("row", data[0], raw_dtype=stored)
    add_tensors(writer, [])
    entries = read_header(path).tensors
    w, stack, row = (_Stored(entries[name], 0, 0.0) for name in ("w", "stack", "row"))
    assert (w.get_shape(), stack.get_shape(), row.get_shape()) == ([rows, width], [2, rows, width], [width])
    np.testing.assert_array_equal(w[3:7, 37:300], expected[3:7, 37:300])
    np.testing.assert_array_equal(stack[1:2, 2:5, 7:9], expected[::-1][None, 2:5, 7:9])
    np.testing.assert_array_equal(row[5:400], expected[0, 5:400])
    paired = _Stored(entries["w"], 3, 1.0)  # rows 0, 2, 1, 3 of each of three heads
    order = np.arange(rows).reshape(3, 2, 2).swapaxes(1, 2).ravel()
    np.testing.assert_allclose(
        paired[1:11, 3:5], expected.astype(np.float32)[order][1:11, 3:5] - 1, rtol=1e-5, atol=1e-6
    )


@pytest.fixture
def with_tokenizer(save: Callable[..., Path], make_tokenizer: Callable[..., Any], tmp_path: Path) -> Path:
    """A file in Q8_0 with a tokenizer."""
    folder, path = (
        save("llama", vocab_size=288, hidden_size=64, intermediate_size=96, eos_token_id=2, num_hidden_layers=1),
        tmp_path / "m.gguf",
    )
    tokenizer = make_tokenizer(eos_token="</s>", bos_token="<s>", pad_token="<pad>")
    from tokenizers import pre_tokenizers

    digits, rest = pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    tokenizer.save_pretrained(folder)
    write_gguf(folder, path, "Q8_0", tokenizer=tokenizer)
    return path


def test_a_tokenizer_is_that_of_the_folder(with_tokenizer: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = lensjax.models.load(with_tokenizer).tokenizer
    original = lensjax.models.load(tmp_path / "llama-folder").tokenizer
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=with_tokenizer.name)
    for text in (*TEXTS, "one two</s> 1234 fours"):
        assert ours(text).input_ids == original(text).input_ids
        assert ours.decode(ours(text).input_ids) == text
        if not any(c.isdigit() for c in text):  # which transformers does not split
            assert theirs(text, add_special_tokens=False).input_ids == ours(text, add_special_tokens=False).input_ids
    assert (ours.eos_token_id, ours.bos_token_id, ours.pad_token_id) == (2, 1, 0)


def test_where_texts_begin_with_a_token(with_tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "again.gguf"
    add_tensors(
        copied(with_tokenizer, path, **{"tokenizer.ggml.pre": "llama-bpe"}),
        [("token_embd.weight", np.ones((288, 64), np.float32))],
    )
    made = tokenizer_of(path)
    assert made("one").input_ids[0] == 1
    assert made.backend_tokenizer.model.ignore_merges
    add_tensors(
        copied(with_tokenizer, path, **{"tokenizer.ggml.pre": "mine"}),
        [("token_embd.weight", np.ones((288, 64), np.float32))],
    )
    with pytest.raises(InputError, match=r"again\.gguf splits texts as mine does, which LensJAX does not know; take"):
        tokenizer_of(path)


def test_whether_texts_of_sentencepiece_begin_with_a_space(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "ab", "▁ab"]
    for prefix, expected in ((True, ["<s>", "▁ab", "▁a"]), (False, ["<s>", "ab", "▁a"])):
        path = tmp_path / f"{prefix}.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores([0.0, 0.0, 0.0, -5.0, -4.0, -4.0, -3.0, -2.0, -1.0])
        writer.add_token_types([2, 3, 3, 1, 1, 1, 1, 1, 1])
        writer.add_bos_token_id(1)
        writer.add_add_space_prefix(prefix)
        add_tensors(writer, [])
        made = tokenizer_of(path)
        assert made.convert_ids_to_tokens(made("ab a").input_ids) == expected


def test_a_file_is_found_by_its_path_and_its_folder(with_tokenizer: Path, tmp_path: Path) -> None:
    assert find_folder(with_tokenizer) == find_folder(tmp_path) == folder_here(str(tmp_path)) == with_tokenizer
    before = model_fingerprint(with_tokenizer)
    (tmp_path / "n.gguf").write_bytes(with_tokenizer.read_bytes()[:-1] + b"x")
    assert model_fingerprint(tmp_path / "n.gguf") != before
    with pytest.raises(InputError, match=r"has 2 GGUF files; give one of them, such as .*m\.gguf"):
        find_folder(tmp_path)
    assert find_folder(with_tokenizer) == with_tokenizer  # which that says to do


def test_a_candidate_is_a_file_beside_the_study(
    with_tokenizer: Path, save_sums: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_sums()
    content = {"candidates": ["m.gguf", "pocket:gpt2-0.2m"], "task": "sums.yaml", "budget": 400}
    (tmp_path / "study.yaml").write_text(json.dumps(content))
    assert read_study(tmp_path / "study.yaml").candidates[0].source == str(with_tokenizer)
    _check_model("m.gguf", tmp_path)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"m\.gguf is no file beside the study's file; give \.\./m\.gguf, its path"):
        _check_model("m.gguf", tmp_path / "other")
    _check_model("../m.gguf", tmp_path / "other")


def test_what_is_made_of_it_says_so(with_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "export", str(with_tokenizer), str(tmp_path / "made")])
    said = "the weights are those of m.gguf, in Q8_0, dequantised: not those that were trained."
    assert said in capsys.readouterr().out
    assert f"Before any fine-tuning, {said}" in (tmp_path / "made" / "README.md").read_text()
    assert_equal(with_tokenizer, tmp_path / "made")
    assert lensjax.models.load(tmp_path / "made").tokenizer("one 12").input_ids
    main(["models", "show", str(with_tokenizer)])
    assert said in capsys.readouterr().out


def test_results_say_so(with_tokenizer: Path, save_sums: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    spec = save_sums(training={"learning_rate": 1e-3, "batch_size": 8})
    main(["finetune", str(spec), "--model", str(with_tokenizer), "--examples", "0", "--out", str(out)])
    result = json.loads(next(out.rglob("result.json")).read_text())
    assert "m.gguf, in Q8_0, dequantised" in str(result)


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "no architecture": ({"general.architecture": "mamba"}, "architecture is mamba, which LensJAX does not read from"),
    "a setting unknown": (
        {"llama.attention.clamp_kqv": "8"},
        r"sets llama\.attention\.clamp_kqv, which LensJAX does not",
    ),
    "text for a number": (
        {"llama.rope.freq_base": "x"},
        r"says x for llama\.rope\.freq_base, which has to be a number",
    ),
    "an unknown scaling": (
        {"llama.rope.scaling.type": "ntk"},
        "scales its rotary embedding by ntk, which LensJAX does",
    ),
    "a part": ({"split.count": "4"}, "part 0, from 0 on, of 4 of a model by its metadata, and by its name 0 of 1"),
}


@pytest.mark.parametrize("kind", LIES)
def test_what_a_file_says_and_is_not_known_is_refused(kind: str, with_tokenizer: Path, tmp_path: Path) -> None:
    changes, message = LIES[kind]
    path = tmp_path / "lie.gguf"
    architecture = changes.get("general.architecture")
    leave = next(iter(changes))
    writer = copied(with_tokenizer, path, leave, **{k: v for k, v in changes.items() if k != "general.architecture"})
    if architecture:
        writer.kv_data[0]["general.architecture"].value = architecture
    add_tensors(writer, [("token_embd.weight", np.ones((288, 64), np.float32))])
    with pytest.raises(InputError, match=message):
        read_config(path)


def test_weights_that_do_not_fit_the_metadata(with_tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "lie.gguf"
    add_tensors(
        copied(with_tokenizer, path),
        [("token_embd.weight", np.ones((280, 64), np.float32)), ("odd.weight", np.ones(3, np.float32))],
    )
    with pytest.raises(
        InputError, match=r"are not those that its metadata describes: .*unexpected \(odd\.weight\).*mis"
    ):
        lensjax.models.load(path)
    writer = copied(with_tokenizer, path)
    writer.add_tensor("token_embd.weight", np.zeros((288, 66), np.uint8), raw_dtype=GGMLQuantizationType.IQ2_XXS)
    add_tensors(writer, [])
    with pytest.raises(
        InputError, match=r"holds token_embd\.weight as IQ2_XXS, which LensJAX does not read; take a file"
    ):
        lensjax.models.load(path)


@settings(max_examples=200)
@given(st.data())
def test_damage_is_one_sentence_or_harmless(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever bytes of a header are changed, or wherever the file ends."""
    content = bytearray(small)
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        at = data.draw(st.integers(0, 700))
        piece = data.draw(st.sampled_from([b"\xff" * 8, b"\x00" * 8, struct.pack("<Q", 2**40), b"\x09", b"\x01"]))
        content[at : at + len(piece)] = piece
    path = tmp_path_factory.mktemp("damage") / "m.gguf"
    path.write_bytes(bytes(content))
    said = ""
    try:
        read_config(path)
    except InputError as error:
        said = str(error)
    assert not said or re.fullmatch(rf"(config\.json|{path}|\w+ is .* in config\.json)[^\n]+\.", said)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of one tensor."""
    path = tmp_path_factory.mktemp("small") / "m.gguf"
    writer = GGUFWriter(path, "llama")
    for key, value in (
        ("context_length", 64),
        ("embedding_length", 32),
        ("block_count", 1),
        ("feed_forward_length", 48),
    ):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.attention.head_count", 4)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_array("tokenizer.ggml.token_type", [1, 1])
    add_tensors(writer, [("token_embd.weight", np.ones((96, 32), np.float32))])
    return path.read_bytes()


def test_values_that_are_not_numbers_are_named_as_the_file_names_them(with_tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "nan.gguf"
    norm = np.ones(64, np.float32)
    norm[5] = np.nan
    add_tensors(
        copied(with_tokenizer, path), [("token_embd.weight", np.ones((288, 64), np.float32)), ("blk.0.norm", norm)]
    )
    with pytest.raises(InputError, match=r"nan\.gguf holds NaN or infinity in the tensor blk\.0\.norm; fetch it"):
        check_finite_weights(path)
