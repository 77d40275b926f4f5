"""Adapters train as PEFT trains them in torch, and are kept in its format."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.models import make_mesh
from lensjax.models.lora import add_lora, join, split_trainable
from lensjax.models.peft import load_adapters, save_adapters
from lensjax.models.torch_check import wide_torch
from lensjax.train.spec import TrainingSpec
from lensjax.train.step import make_programs

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

STEPS, RATE = 20, 1e-2
TRAINING = TrainingSpec(method="lora", weight_decay=0.1, clip=1e9)  # torch's clipping adds 1e-6 to the norm
LINEAR = {"llama": None, "gpt2": ["o", "up", "down"]}  # of GPT-2, modules that are one linear map here too
KINDS = {"lora": {}, "rslora": {"rslora": True}, "dora": {"dora": True}}


def batch_for(model: Any, rows: int = 3, time: int = 7, seed: int = 0) -> dict[str, Any]:
    ids = np.random.default_rng(seed).integers(3, model.config.vocab_size, (rows, time))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}


def with_random_adapters(model: Any) -> Any:
    trainable, frozen = split_trainable(model.params)
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape).astype(x.dtype), trainable)
    return model.with_params(join(noisy, frozen))


def in_torch(base: Path, folder: Path, architecture: str, dtype: str = "float64", **settings: Any) -> Any:
    """The adapters in a folder on their model, in PEFT."""
    import transformers

    model = getattr(transformers, architecture).from_pretrained(base).to(getattr(torch, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of keys that it misses or has no use for
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, at what PEFT calls
        return peft.PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False, **settings)


def logits_in_torch(model: Any, batch: dict[str, Any]) -> np.ndarray:
    with torch.no_grad():
        return model(**{key: torch.tensor(value) for key, value in batch.items()}).logits.numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", LINEAR)
def test_twenty_steps_as_in_torch(
    kind: str, model_type: str, tiny_config: Callable[..., Any], random_model: Callable[..., Any], tmp_path: Path
) -> None:
    own = {"ranks": {"mlp/.*": 5}, "alphas": {"o": 3.0}}
    with jax.enable_x64(True):
        plain = random_model(tiny_config(model_type), dtype="float64")
        plain.save(tmp_path / "base")
        start = add_lora(plain, 3, 8.0, LINEAR[model_type], **own, **KINDS[kind])
        save_adapters(start, tmp_path / "start")
        mesh = make_mesh("fsdp=1", jax.devices()[:1])
        programs = make_programs(start, TRAINING, mesh)
        trained, frozen = split_trainable(start.params)
        state, losses = programs.start(trained), []
        for step in range(STEPS):
            batch = {key: jax.numpy.asarray(value) for key, value in batch_for(start, seed=step % 2).items()}
            state, metrics = programs.step(state, frozen, batch, RATE)
            losses.append(float(metrics.loss))
        ours = start.with_params(join(state.params, frozen))
        expected = np.asarray(ours.apply(ours.params, batch_for(ours)))
        save_adapters(ours, tmp_path / "ours")
    with wide_torch():
        _train_in_torch(tmp_path, start, losses, expected, decays_all=kind != "dora")
        saved = in_torch(tmp_path / "base", tmp_path / "ours", plain.family.architecture)
        np.testing.assert_allclose(logits_in_torch(saved, batch_for(start)), expected, atol=1e-9)


def _train_in_torch(folder: Path, start: Any, losses: list[float], expected: np.ndarray, *, decays_all: bool) -> None:
    theirs = in_torch(folder / "base", folder / "start", start.family.architecture, is_trainable=True)
    groups: dict[float, list[Any]] = {0.0: [], TRAINING.weight_decay: []}
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            groups[0.0 if "magnitude" in name else TRAINING.weight_decay].append(parameter)
    assert bool(groups[0.0]) != decays_all
    optimiser = torch.optim.AdamW([{"params": of, "weight_decay": decay} for decay, of in groups.items()], lr=RATE)
    for step in range(STEPS):
        optimiser.zero_grad()
        loss = theirs(**{key: torch.tensor(value) for key, value in batch_for(start, seed=step % 2).items()}).loss
        assert float(loss.detach()) == pytest.approx(losses[step], abs=1e-9)
        loss.backward()
        optimiser.step()
    assert losses[0] - losses[-1] > 0.01
    np.testing.assert_allclose(logits_in_torch(theirs, batch_for(start)), expected, atol=1e-8)


def test_folders_are_read_by_both(
    distinct_type: str, tiny_config: Callable[..., Any], random_model: Callable[..., Any], tmp_path: Path
) -> None:
    plain = random_model(tiny_config(distinct_type))
    names = ["q", "v", "o", "down"]  # so that modules of several maps have some with an adapter, and some without
    own = {"ranks": {"v": 3}, "alphas": {"v": 1.0}, "rslora": distinct_type == "gpt2", "dora": True}
    model = with_random_adapters(add_lora(plain, 2, targets=names, **own))
    if any("experts" in one.path for one in model.options.lora.adapters):
        with pytest.raises(InputError, match="PEFT has no place for adapters of each expert"):
            save_adapters(model, tmp_path / "adapters")
        return
    batch = batch_for(model)
    expected = np.asarray(model.apply(model.params, batch))
    plain.save(tmp_path / "base")
    save_adapters(model, tmp_path / "adapters")
    theirs = in_torch(tmp_path / "base", tmp_path / "adapters", plain.family.architecture, "float32")
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits_in_torch(theirs, batch), expected, atol=2e-5 * scale)
    again = load_adapters(plain, tmp_path / "adapters")
    assert (again.options.lora.rslora, again.options.lora.dora) == (own["rslora"], True)
    np.testing.assert_allclose(again.apply(again.params, batch), expected, atol=2e-5 * scale)


@pytest.mark.eight_devices
def test_a_sharded_model_reads_them(
    tiny_config: Callable[..., Any], random_model: Callable[..., Any], tmp_path: Path
) -> None:
    config = tiny_config("llama")
    model = with_random_adapters(add_lora(random_model(config), 4))
    save_adapters(model, tmp_path / "adapters")
    mesh = make_mesh("fsdp=4,tensor=2")
    spread = load_adapters(random_model(config, mesh=mesh), tmp_path / "adapters")
    jax.tree.map(np.testing.assert_array_equal, spread.params, model.params)
    fresh = add_lora(random_model(config, mesh=mesh), 4)
    assert spread.shardings == fresh.shardings
    save_adapters(spread, tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapters" / name).read_bytes()


@pytest.fixture(scope="module")
def kept(tiny_config: Callable[..., Any], random_model: Callable[..., Any], tmp_path_factory: Any) -> tuple[Any, Path]:
    """A model, and a folder of adapters for it."""
    plain = random_model(tiny_config("llama"))
    folder = tmp_path_factory.mktemp("kept") / "adapters"
    save_adapters(with_random_adapters(add_lora(plain, 2)), folder)
    return plain, folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, r"is of peft_type IA3; LensJAX has LORA"),
        ({"r": 0}, r"ranks and alphas above 0"),
        ({"r": "many"}, r"adapter_config.json is not PEFT's"),
        ({"rank_pattern": {"(": 3}}, r"adapter_config.json is not PEFT's"),
        ({"bias": "all"}, r'has bias: "all", which LensJAX does not have; merge the adapters with PEFT'),
        ({"init_lora_weights": "pissa"}, r'has init_lora_weights: "pissa"'),
        ({"modules_to_save": ["lm_head"]}, r"has modules_to_save"),
        ({"lora_bias": True}, r"has lora_bias: true"),
        ({"r": 3}, r"lacks lora_a of model.layers.0.mlp.down_proj in the shape \[3, 48\]"),
        ({"use_dora": True}, r"lacks lora_m of model.layers.0"),
        ({"alpha_pattern": {"layers.0.mlp.up_proj": 3}}, r"mlp/up in some layers alone, or of several ranks"),
    ],
)
def test_settings_of_another_kind_are_refused(
    changes: dict[str, Any], message: str, kept: tuple[Any, Path], tmp_path: Path
) -> None:
    plain, folder = kept
    settings = json.loads((folder / "adapter_config.json").read_text()) | changes
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    with pytest.raises(InputError, match=message):
        load_adapters(plain, tmp_path)


def test_other_models_and_folders_are_refused(
    kept: tuple[Any, Path], tiny_config: Callable[..., Any], random_model: Callable[..., Any], tmp_path: Path
) -> None:
    plain, folder = kept
    other = random_model(tiny_config("gpt2"))
    with pytest.raises(InputError, match=r"mlp.down_proj.lora_A.weight, for which this gpt2 has no adapter"):
        load_adapters(other, folder)
    with pytest.raises(InputError, match=r"has no adapter_config.json; give a folder as PEFT or save_adapters"):
        load_adapters(plain, tmp_path)
    with pytest.raises(InputError, match="has LoRA adapters already"):
        load_adapters(add_lora(plain), folder)
    with pytest.raises(InputError, match="The model has no adapters to save; add them with add_lora"):
        save_adapters(plain, tmp_path / "new")
    with pytest.raises(InputError, match="is there already"):
        save_adapters(add_lora(plain), folder)
    with pytest.raises(InputError, match=r"holds adapters and not the model that they are for; load that model, then"):
        lensjax.models.load(folder)
