"""LensJAX: which of these language models should we fine-tune on our data?

    import lensjax

    table = lensjax.curves.read_curves("curves.csv")
    posterior = lensjax.fit.fit_joint(table, horizon=400_000)
    posterior.probability_best(400_000)
    lensjax.plot.curves(posterior)

Modules are imported when they are first used, so that `import lensjax` is immediate and ranking needs nothing of
measuring.
"""

from lensjax.core.lazy import lazy

_MODULES = ("study", "models", "data", "train", "curvature", "fit", "curves", "plot")
__getattr__, __dir__ = lazy(__name__, {**dict.fromkeys(_MODULES, ""), "__version__": "core.version"})
