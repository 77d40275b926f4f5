"""What a model's module takes of a batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.pytrees import Batch
from lensjax.models.encoder_decoder import start_and_padding
from lensjax.models.family import Family
from lensjax.models.losses import shift_right

_KEYS = ("input_ids", "attention_mask", "labels")
_DECODER_KEYS = (*_KEYS, "position_ids")
_ENCODER_DECODER_KEYS = (*_KEYS, "decoder_input_ids", "decoder_attention_mask")


def module_inputs(family: Family, config: Any, batch: Batch, *, segments: bool) -> dict[str, Array]:
    """The arrays of a batch, with a decoder's inputs made of labels where it holds none.

    Args:
      family, config: Of the model.
      batch: See `lensjax.models.model.Model`.
      segments: Whether `segment_ids` may number the examples of a row.

    Raises:
      InputError: the batch of an encoder–decoder has neither labels nor decoder_input_ids; the batch has a key that
        the model makes no use of; or its position_ids begin anew within a row, and nothing says what that means.
    """
    arrays = {key: jnp.asarray(value) for key, value in batch.items() if value is not None}
    keys = _ENCODER_DECODER_KEYS if family.encoder_decoder else _DECODER_KEYS
    keys = (*keys, "segment_ids") if segments else keys
    if unused := sorted(arrays.keys() - set(keys)):
        raise InputError(
            f"The batch has {shorten(unused[0])}, of which {family.model_type} makes no use; leave it out. It "
            f"takes {listing(keys)}."
        )
    _check_order(arrays)
    if family.encoder_decoder and "decoder_input_ids" not in arrays:
        if "labels" not in arrays:
            raise InputError(f"A batch for {family.model_type} needs labels or decoder_input_ids; it has neither.")
        arrays["decoder_input_ids"] = shift_right(arrays["labels"], *start_and_padding(family, config))
    return arrays


def _check_order(arrays: dict[str, Array]) -> None:
    """Refuse position_ids that begin anew, which `transformers` takes for another example if there is no mask.

    Where they are being traced nobody knows, and a row is one example.
    """
    places = arrays.get("position_ids")
    if places is None or isinstance(places, jax.core.Tracer) or {"attention_mask", "segment_ids"} & arrays.keys():
        return
    back = np.argwhere(np.diff(np.asarray(places), axis=1) <= 0)
    if len(back):
        row, token = back[0]
        raise InputError(
            f"position_ids begin anew in row {row} at token {token + 1}; number the examples of a row by segment_ids, "
            "or give an attention_mask if they are one."
        )
