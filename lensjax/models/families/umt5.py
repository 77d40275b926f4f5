"""umT5 (arXiv 2304.09151): mT5 in which every layer has a relative bias of its own."""

from dataclasses import replace
from functools import partial
from typing import Any

from lensjax.models.families.t5 import FAMILY, module
from lensjax.models.family import register
from lensjax.models.weights import ParameterNames


def parameter_names(config: Any) -> ParameterNames:
    names = dict(FAMILY.parameter_names(config))
    for side in ("encoder", "decoder"):
        del names[f"{side}/bias"]
        names[f"{side}/layers/blocks/bias"] = f"{side}.block.{{layer}}.layer.0.SelfAttention.relative_attention_bias"
    return names


register(
    replace(
        FAMILY,
        model_type="umt5",
        architecture="UMT5ForConditionalGeneration",
        module=partial(module, shared_bias=False),
        parameter_names=parameter_names,
        examples=("google/umt5-small", "google/umt5-base"),
    )
)
