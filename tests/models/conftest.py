"""Parity with torch: a tiny random model of `transformers`, saved, loaded by us, and compared in every way."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import lensjax.models
from lensjax.models.family import family_of
from lensjax.models.torch_check import wide_torch
from lensjax.models.weights import checkpoint_tensors

BATCH, TIME, TARGET_TIME = 3, 13, 7  # odd on purpose


@dataclass(frozen=True)
class Reference:
    """What torch computes: logits, the loss of every example, and the gradient of their mean by tensor name."""

    logits: np.ndarray
    losses: np.ndarray
    gradients: dict[str, np.ndarray]


@pytest.fixture
def save_torch_model(tmp_path: Path) -> Callable[..., Path]:
    """Saves a random tiny model of a configuration, every parameter moved away from its default; returns the folder.

    `change` may change it further, in place.
    """

    def save(
        config: Any, seed: int = 0, dtype: str = "float32", change: Callable[[Any], None] = lambda model: None
    ) -> Path:
        torch = pytest.importorskip("torch")
        torch.manual_seed(seed)
        model = _torch_class(config)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            for name, buffer in model.named_buffers():
                if name.endswith("layer_scalar"):  # constants that checkpoints hold
                    buffer.add_(0.2 * torch.randn_like(buffer))
            change(model)
        folder = tmp_path / f"{config.model_type}-{seed}-{dtype}"
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def assert_parity() -> Callable[..., None]:
    """Checks logits, per-example losses and all gradients against torch in float64, and the round trip.

    In float32 logits and losses are checked, and gradients where asked for: compiling them takes most of a test's time.
    """

    def check(folder: Path, *, gradients: bool) -> None:
        from transformers import AutoConfig

        batch = make_batch(AutoConfig.from_pretrained(folder))
        for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-9)):
            expected = torch_reference(folder, batch, dtype)
            with jax.enable_x64(dtype == "float64"):
                model = lensjax.models.load(folder, dtype=dtype)
                compare(model, batch, expected, tolerance, gradients=gradients or dtype == "float64")
        assert_round_trip(folder, folder.with_name("round-trip"))

    return check


@pytest.fixture
def logits_of_torch() -> Callable[..., tuple[dict[str, np.ndarray], Reference]]:
    """Makes a batch for the model in a folder, and computes what torch does of it in float64."""

    def make(folder: Path) -> tuple[dict[str, np.ndarray], Reference]:
        from transformers import AutoConfig

        batch = make_batch(AutoConfig.from_pretrained(folder))
        return batch, torch_reference(folder, batch, "float64")

    return make


@pytest.fixture
def assert_equal_logits() -> Callable[..., None]:
    """Checks a model's logits and losses in float64 against those of torch."""

    def check(model: Any, batch: dict[str, np.ndarray], expected: Reference) -> None:
        compare(model, batch, expected, 1e-9, gradients=False)

    return check


def make_batch(config: Any) -> dict[str, np.ndarray]:
    """Random token ids, labels on most; the second example is padded by 4 on the right, the third by 1 on the left."""
    rng = np.random.default_rng(0)
    targets = TARGET_TIME if config.is_encoder_decoder else TIME
    batch = {
        "input_ids": rng.integers(3, config.vocab_size, (BATCH, TIME)),
        "labels": rng.integers(3, config.vocab_size, (BATCH, targets)),
        "attention_mask": np.ones((BATCH, TIME), np.int64),
    }
    batch["labels"][:, ::5] = -100
    batch["attention_mask"][1, -4:] = 0
    batch["attention_mask"][2, 0] = 0
    if config.is_encoder_decoder:
        batch["decoder_attention_mask"] = np.ones((BATCH, targets), np.int64)
        batch["decoder_attention_mask"][1, -2:] = 0
    else:
        batch["labels"][1, -4:] = -100
        batch["labels"][2, :2] = -100  # nothing precedes the first token
    return batch


def compare(
    model: Any, batch: dict[str, np.ndarray], expected: Reference, tolerance: float, *, gradients: bool = True
) -> None:
    """Our logits, losses and, where asked for, gradients beside torch's; logits at padding are not compared."""

    def mean_loss(params: Any) -> tuple[Any, Any]:
        hidden = model.hidden(params, batch)
        known = copy.copy(model)
        object.__setattr__(known, "hidden", lambda *_: hidden)  # or else all of it would be compiled twice
        logits, losses = known.apply(params, batch), known.loss(params, batch, "example")
        return losses.mean(), (losses, logits)

    quick = {"xla_backend_optimization_level": 0}  # compiling takes most of a test's time
    step = jax.value_and_grad(mean_loss, has_aux=True) if gradients else lambda params: (mean_loss(params), {})
    ((_, (losses, logits)), slopes) = jax.jit(step, compiler_options=quick)(model.params)
    assert logits.dtype == model.options.dtype
    keep = np.full(logits.shape[:2], True)
    if not model.family.encoder_decoder:
        keep = batch["attention_mask"].astype(bool)
    assert_close(np.asarray(logits)[keep], expected.logits[keep], tolerance)
    assert_close(np.asarray(losses), expected.losses, tolerance)
    if not gradients:
        return
    found = by_name(model, slopes)
    scale = max(np.abs(value).max() for value in expected.gradients.values())
    for name, value in expected.gradients.items():
        # Rounding is in proportion to the terms summed, so that nearly cancelling gradients count against the largest.
        assert found[name].dtype == value.dtype
        error = np.abs(found.pop(name) - value).max()
        assert error <= tolerance * (np.abs(value).max() + scale), f"{name}: {error} beside {np.abs(value).max()}"
    assert not any(value.any() for value in found.values())  # torch gives none to what the loss does not depend on


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def by_name(model: Any, params: Any) -> dict[str, np.ndarray]:
    """Parameters, or their gradients, under the checkpoint's names."""
    wanted = model.family.tensors(model.config, params)
    return dict(checkpoint_tensors(zip(wanted, map(np.asarray, jax.tree.leaves(params)), strict=True)))


def assert_round_trip(folder: Path, target: Path) -> None:
    """What we load and save is what was saved before, to the bit."""
    lensjax.models.load(folder).save(target)
    before, after = (load_file(path / "model.safetensors") for path in (folder, target))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        np.testing.assert_array_equal(value, after[name])


def torch_reference(folder: Path, batch: dict[str, np.ndarray], dtype: str) -> Reference:
    """What torch computes for the model in a folder."""
    import torch
    from safetensors.torch import load_file as load_torch_file
    from transformers import AutoConfig
    from transformers.core_model_loading import revert_weight_conversion

    config = AutoConfig.from_pretrained(folder)
    config._attn_implementation = config._experts_implementation = "eager"
    stored = load_torch_file(folder / "model.safetensors")
    with wide_torch(dtype == "float64"):
        wanted = {"config": config, "state_dict": stored, "dtype": getattr(torch, dtype)}
        model = _torch_class(config).from_pretrained(None, **wanted).eval()
        for part in model.modules():
            if isinstance(part, torch.nn.Embedding):
                part.padding_idx = None  # for which torch leaves part of the gradient out
        inputs = {key: torch.from_numpy(value) for key, value in batch.items()}
        labels = inputs.pop("labels")
        if config.is_encoder_decoder:
            padded = torch.where(labels == -100, config.pad_token_id, labels)
            start = torch.full_like(padded[:, :1], config.decoder_start_token_id)
            if family_of(config.model_type).starts_with_last:
                from transformers.models.mbart.modeling_mbart import shift_tokens_right

                start = shift_tokens_right(padded, config.pad_token_id)[:, :1]
            inputs["decoder_input_ids"] = torch.cat([start, padded[:, :-1]], dim=1)
        logits = model(**inputs, use_cache=False).logits
        shifted = (logits, labels) if config.is_encoder_decoder else (logits[:, :-1], labels[:, 1:])
        tokens = torch.nn.functional.cross_entropy(
            shifted[0].transpose(1, 2), shifted[1], ignore_index=-100, reduction="none"
        )
        losses = tokens.sum(1) / (shifted[1] != -100).sum(1)
        losses.mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    named = revert_weight_conversion(model, gradients)  # as the checkpoint names them
    return Reference(
        logits.detach().numpy(), losses.detach().numpy(), {name: value.numpy() for name, value in named.items()}
    )


def _torch_class(config: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, family_of(config.model_type).architecture)
