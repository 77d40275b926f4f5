"""Language models in Flax that load Hugging Face checkpoints and compute as pure functions of their parameters.

model = lensjax.models.load("HuggingFaceTB/SmolLM2-135M", dtype="bfloat16", mesh=make_mesh("fsdp=8"))
logits = jax.jit(model.apply)(model.params, batch)
loss, gradient = jax.value_and_grad(model.loss)(model.params, batch)
"""

from lensjax.models.family import Family, family_of, supported
from lensjax.models.loading import from_config, load
from lensjax.models.model import Batch, Model, Params
from lensjax.models.options import Options
from lensjax.models.sharding import make_mesh

__all__ = [
    "Batch",
    "Family",
    "Model",
    "Options",
    "Params",
    "family_of",
    "from_config",
    "load",
    "make_mesh",
    "supported",
]
