"""Fits of scaling laws: model by model, and jointly over all models."""

from lensjax.core.lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "fit_joint": "joint.fitting",
        "JointSettings": "joint.fitting",
        "fit_lensllm": "lensllm.fitting",
        "fit_per_model": "per_model",
        "fit_link": "link",
        "stack": "stacked.weights",
    },
)
