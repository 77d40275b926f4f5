"""Language models in Flax that load Hugging Face checkpoints and compute as pure functions of their parameters.

model = lensjax.models.load("HuggingFaceTB/SmolLM2-135M", dtype="bfloat16", mesh=make_mesh("fsdp=8"))
logits = jax.jit(model.apply)(model.params, batch)
loss, gradient = jax.value_and_grad(model.loss)(model.params, batch)
"""

from lensjax.core.lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "load": "loading",
        "from_config": "loading",
        "make_mesh": "sharding",
        "Model": "model",
        "Batch": "model",
        "Params": "model",
        "Options": "options",
        "Family": "family",
        "family_of": "family",
        "supported": "family",
    },
)
