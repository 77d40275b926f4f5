"""mT5 (arXiv 2010.11934): T5 in many languages."""

from dataclasses import replace

from lensjax.models.families.t5 import FAMILY
from lensjax.models.family import register

register(replace(FAMILY, model_type="mt5", architecture="MT5ForConditionalGeneration", examples=("google/mt5-base",)))
