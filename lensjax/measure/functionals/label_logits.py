"""The functional "label_logits"."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lensjax.core.errors import InputError
from lensjax.measure.functionals import FUNCTIONALS, Batch, Example, Functional, OfModel
from lensjax.models.losses import IGNORED
from lensjax.models.model import Model, Params

CLASSES = 16  # at most


def label_logits(model: Model, labels: Sequence[int]) -> OfModel:
    """Logits of some tokens where the first target token is predicted: [labels] (Malladi et al., arXiv 2210.05643).

    Args:
      labels: Ids of the tokens that stand for the classes.
    """
    columns = jnp.asarray(labels, jnp.int32)

    def f(params: Params, example: Example) -> Float[Array, " labels"]:
        logits = model.apply(params, example)
        first = jnp.argmax(jnp.asarray(example["labels"]) != IGNORED)
        predicts = first if model.family.encoder_decoder else jnp.maximum(first - 1, 0)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))[predicts][columns]

    return f


def first_target_tokens(batch: Batch) -> tuple[int, ...]:
    """The tokens that targets begin with, in ascending order.

    Raises:
      InputError: there are more than 16.
    """
    classes = np.unique(_first_targets(batch))
    if len(classes) > CLASSES:
        raise InputError(
            f"The targets begin with {len(classes)} different tokens, and label_logits is for {CLASSES} classes at "
            "most; take another functional, such as loss."
        )
    return tuple(int(token) for token in classes)


def one_hot(batch: Batch, classes: tuple[int, ...]) -> Float[np.ndarray, "N classes"]:
    """1 for the class of an example's target, and 0 for the others."""
    return np.eye(len(classes))[np.searchsorted(classes, _first_targets(batch))]


def _first_targets(batch: Batch) -> Int[np.ndarray, " N"]:
    labels: np.ndarray[Any, Any] = np.asarray(batch["labels"])
    return labels[np.arange(len(labels)), (labels != IGNORED).argmax(axis=1)]


FUNCTIONALS.register("label_logits")(
    Functional(
        description="Of the logits of the tokens that targets begin with",
        make=lambda model, classes, samples: label_logits(model, classes),
        output="full",
        classes=first_target_tokens,
        targets=one_hot,
    )
)
