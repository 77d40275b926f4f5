"""Tasks: rows of a source as prompts and targets, split, and as tokens and batches of a model.

    spec = lensjax.data.read_spec("verses.yaml", lensjax.data.TaskSpec)
    task = lensjax.data.load_task(spec)

The modules are those of `lensjax.tasks`.
"""

from lensjax.core.lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "TaskSpec": ".tasks.spec",
        "read_spec": ".tasks.spec",
        "Task": ".tasks.task",
        "Example": ".tasks.task",
        "load_task": ".tasks.task",
        "tokenise": ".tasks.tokens",
        "training_batches": ".tasks.batches",
        "evaluation_batches": ".tasks.batches",
        "write_rows": ".tasks.ready_made",
    },
)
