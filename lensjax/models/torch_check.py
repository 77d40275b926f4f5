"""Checks that a checkpoint computes here what it computes in torch."""

import importlib.util
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import DTypeLike, NDArray

from lensjax.core.errors import InputError, shorten
from lensjax.models.gguf.header import is_gguf
from lensjax.models.hub import has_tokenizer, read_config
from lensjax.models.loading import load
from lensjax.models.losses import IGNORED
from lensjax.models.model import Model

# Largest relative difference of a logit, and of the loss. In float64 and float32, correct models of the sizes of GPT-2
# and SmolLM2-135M are at most 5e-15 and 2e-6 off, tiny ones 1e-14 and 8e-6. The smallest of faults make more: tanh for
# erf in GELU 3e-4, and 1e-6 for 1e-5 as a norm's epsilon 3e-3.
_TOLERANCES = {"float64": 1e-9, "float32": 1e-4}
_SLACK = 3.0  # rounding in half precision depends on the model, so we may be this many times as far off as torch itself

_TIME = 24
_TEXTS = ("Which of these language models should we fine-tune on our data?", "The cat sat on the mat, and slept.")

Arrays = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Comparison:
    """What LensJAX and torch compute for one batch.

    Attributes:
      batch: Its name.
      tokens: Number of tokens whose logits are compared.
      error: Largest difference of a logit, divided by the largest logit.
      loss, torch_loss: Nats per target token.
      allowed: Largest error that rounding explains, also as a difference of the losses divided by torch's.
    """

    batch: str
    tokens: int
    error: float
    loss: float
    torch_loss: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether rounding explains every difference; NaN is never explained."""
        return self.error <= self.allowed and abs(self.loss - self.torch_loss) <= self.allowed * self.torch_loss


def compare_with_torch(folder: Path, dtype: DTypeLike = "float32") -> list[Comparison]:
    """Compare our logits and loss with those of `transformers` on small batches.

    One batch has random tokens, and another has text where the model has a tokenizer; both have padding on either side.
    Torch runs eagerly on the CPU, in float64 if `dtype` is float64, else in float32. Where `dtype` is a half precision,
    torch's own rounding in it decides how much is allowed. One model is in memory at a time.

    Args:
      folder: Folder with config.json and safetensors, or a GGUF file.
      dtype: Type that our model computes in.

    Returns:
      A comparison for each batch.

    Raises:
      InputError: torch is not installed, or the model cannot be loaded.
    """
    if importlib.util.find_spec("torch") is None:
        raise InputError("Comparing with torch needs torch, which is not installed; run `pip install torch`.")
    model = load(folder, dtype=dtype)
    family, name = model.family, model.options.dtype.name
    batches = make_batches(model)
    with jax.default_matmul_precision("highest"):
        ours = {key: _compute(model, batch) for key, batch in batches.items()}
    del model
    exact = "float64" if name == "float64" else "float32"
    theirs = torch_outputs(folder, family.architecture, batches, exact)
    rounded = theirs if name == exact else torch_outputs(folder, family.architecture, batches, name)
    comparisons = []
    for key, batch in batches.items():
        counted = batch["labels"] != IGNORED if family.encoder_decoder else batch["attention_mask"] == 1
        error = _error(ours[key], theirs[key], counted)  # nothing depends on logits at padding
        allowed = _TOLERANCES.get(name, _SLACK * _error(rounded[key], theirs[key], counted))
        comparisons.append(Comparison(key, int(counted.sum()), error, ours[key][1], theirs[key][1], allowed))
    return comparisons


def make_batches(model: Model) -> dict[str, Arrays]:
    """A batch of random token ids from a fixed seed and, where the model has a tokenizer, one of two sentences."""
    time = min(_TIME, getattr(model.config, "max_position_embeddings", None) or _TIME)
    rng = np.random.default_rng(0)
    rows = [list(rng.integers(0, model.config.vocab_size, size)) for size in (time, time - time // 4, time - 1)]
    batches = {"random": _batch(rows, model)}
    if model.folder is not None and has_tokenizer(model.folder):
        batches["text"] = _batch([model.tokenizer(text)["input_ids"][:time] for text in _TEXTS], model)
    return batches


def torch_outputs(
    folder: Path, architecture: str, batches: Mapping[str, Arrays], dtype: str
) -> dict[str, tuple[NDArray[Any], float]]:
    """Logits and mean loss of the `transformers` class of that name, in the torch type of that name."""
    import torch
    import transformers

    kind, wide = getattr(transformers, architecture), dtype == "float64"
    settings = {"dtype": getattr(torch, dtype), "attn_implementation": "eager", "experts_implementation": "eager"}
    if is_gguf(folder):  # transformers finds and dequantises the weights by itself, but passes settings over
        try:
            model = kind.from_pretrained(
                folder.parent, gguf_file=folder.name, config=read_config(folder), local_files_only=True, **settings
            )
        except (ValueError, NotImplementedError) as error:
            raise InputError(
                f"transformers does not read {folder} ({shorten(error, 100).rstrip('.')}); run `lensjax models export` "
                "with it, and check the folder that this writes."
            ) from error
    else:
        model = kind.from_pretrained(folder, use_safetensors=True, **settings)
    outputs = {}
    with wide_torch(wide), torch.no_grad():
        if wide:  # made again from the configuration, so that its tables are float64 too
            model = kind.from_pretrained(None, config=model.config, state_dict=model.state_dict(), **settings)
        model.eval()
        for name, batch in batches.items():
            output = model(**{key: torch.from_numpy(value) for key, value in batch.items()}, use_cache=False)
            outputs[name] = output.logits.double().numpy(), float(output.loss)
    return outputs


@contextmanager
def wide_torch(wide: bool = True) -> Iterator[None]:
    """Make torch's float32 mean float64, if `wide`: `transformers` asks for float32 by name in norms and softmaxes."""
    import torch

    saved = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    if wide:
        torch.float32 = torch.float = torch.float64
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float, default = saved  # type: ignore[method-assign]
        torch.set_default_dtype(default)


def _batch(rows: list[list[int]], model: Model) -> Arrays:
    """Rows padded to the longest, the last of them on the left, with a label for every token that has one before it."""
    time = max(map(len, rows))
    padding = max(getattr(model.config, "pad_token_id", None) or 0, 0)  # the first Llamas say -1
    ids = np.full((len(rows), time), padding, np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(time - len(row), time) if i == len(rows) - 1 else slice(len(row))
        ids[i, place], mask[i, place] = row, 1
    if model.family.encoder_decoder:  # the targets are the rows in reverse order, without their padding
        return {"input_ids": ids, "attention_mask": mask, "labels": np.where(mask == 1, ids, IGNORED)[::-1].copy()}
    follows = mask * np.roll(mask, 1, axis=1)
    return {"input_ids": ids, "attention_mask": mask, "labels": np.where(follows == 1, ids, IGNORED)}


def _compute(model: Model, batch: Arrays) -> tuple[NDArray[Any], float]:
    logits, loss = jax.jit(lambda params: (model.apply(params, batch), model.loss(params, batch)))(model.params)
    return np.asarray(logits, np.float64), float(loss)


def _error(ours: tuple[NDArray[Any], float], expected: tuple[NDArray[Any], float], counted: NDArray[np.bool_]) -> float:
    """Largest difference of a counted logit, divided by the largest."""
    if ours[0].shape != expected[0].shape:
        return math.inf
    difference = np.abs(ours[0] - expected[0])[counted].max()
    return float(difference / np.abs(expected[0][counted]).max())
