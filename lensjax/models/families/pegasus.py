"""Pegasus (arXiv 1912.08777): BART with norms before attention and MLPs, a last one, and sinusoidal positions."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensjax.models.families import bart
from lensjax.models.family import register


def constants(config: Any) -> Mapping[str, NDArray[np.float32]]:
    table = bart.sinusoids(config.max_position_embeddings, config.d_model)
    return {f"model.{side}.embed_positions.weight": table for side in ("encoder", "decoder")}


register(
    replace(
        bart.FAMILY,
        model_type="pegasus",
        architecture="PegasusForConditionalGeneration",
        module=partial(bart.module, before=True, sinusoids=True),
        constants=constants,
        examples=("google/pegasus-xsum", "google/pegasus-large"),
    )
)
