"""The study: from a list of candidates and a data set to a decision (LensLLM, arXiv 2505.03793, Algorithm 1)."""

from lensjax.core.lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "StudySpec": "spec",
        "read_study": "spec",
        "make_plan": "plan",
        "run_study": "runner",
        "collect": "report",
        "StudyReport": "schema",
    },
)
