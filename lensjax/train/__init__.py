"""Fine-tuning: one point, or a whole ladder, of a curve of test loss against number of training examples."""

from lensjax.core.lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "FinetuneSpec": "spec",
        "rungs": "prepare",
        "Curve": "ladder",
        "measure_curve": "ladder",
        "Result": "results",
    },
)
