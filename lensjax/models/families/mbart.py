"""mBART (arXiv 2001.08210, 2008.00401): BART with norms before attention and MLPs, and a last one.

A target ends in the code of its language, which starts the decoder too.
"""

from dataclasses import replace
from functools import partial

from lensjax.models.families.bart import FAMILY, module
from lensjax.models.family import register

register(
    replace(
        FAMILY,
        model_type="mbart",
        architecture="MBartForConditionalGeneration",
        module=partial(module, before=True),
        starts_with_last=True,
        examples=("facebook/mbart-large-cc25", "facebook/mbart-large-50"),
    )
)
