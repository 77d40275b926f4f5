"""`lensjax ntk`: curvature of a model on examples of a task."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lensjax.cli_data import SpecFile

if TYPE_CHECKING:
    from lensjax.curvature.kernel import Kernel

FunctionalName = Literal["loss", "target_logprob", "label_logits", "fisher_sketch"]
DType = Literal["float32", "float64", "bfloat16"]


def ntk(
    spec: SpecFile,
    model: str,
    out: Path,
    examples: int = 128,
    functional: FunctionalName = "loss",
    seed: int = 0,
    dtype: DType = "float32",
    mesh: str | None = None,
    memory_limit: float | None = None,
) -> None:
    """Compute a model's exact empirical neural tangent kernel on examples of a task.

    Writes to the folder OUT: kernel.npz with the kernel, its eigenvalues and the residual F(t) of linearised training;
    kernel.html with figures of both; kernel.json with what it took and numbers that describe it.

    Worked examples

    $ lensjax ntk verses.yaml --model openai-community/gpt2 --out kernels/gpt2

    $ lensjax ntk topics.yaml --model path/to/model --examples 64 --functional label_logits --out kernels/mine

    Args:
        spec: YAML file of the task.
        model: Folder of a model, or its name on the Hugging Face hub.
        out: Folder of the results.
        examples: How many training examples; the first of a seed, the same ones for every model.
        functional: What the kernel is of: the loss of each example, the log-probabilities of its target tokens, the
            logits of the tokens that its targets begin with, or random projections of its logits.
        seed: Of which examples these are.
        dtype: Type of the model's numbers; kernels are summed in float32, or in float64.
        mesh: Devices along each axis (data, fsdp, tensor); all of them along fsdp by default.
        memory_limit: GB that the kernel may take on a device besides the model; by default half of the machine's
            memory, or 80 % of what is free on an accelerator.
    """
    import time

    import jax

    from lensjax.curvature.kernel import measure_kernel
    from lensjax.curvature.probes import probe_batch, probe_examples
    from lensjax.data.spec import TaskSpec, read_spec
    from lensjax.data.tasks import fingerprint
    from lensjax.train.distributed import is_first, start_processes
    from lensjax.train.spec import FinetuneSpec

    task: TaskSpec = read_spec(spec, FinetuneSpec)
    start_processes()
    from lensjax.cli import progress_bar
    from lensjax.files import make_folder
    from lensjax.models import load, make_mesh

    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    make_folder(out)
    rows = probe_examples(task, examples, seed)
    loaded = load(model, dtype=dtype, mesh=make_mesh(mesh or f"fsdp={jax.device_count()}"))
    batch = probe_batch(loaded, task, rows)
    began = time.perf_counter()
    with progress_bar("Measuring") as progress:
        limit = None if memory_limit is None else int(memory_limit * 1e9)
        kernel = measure_kernel(loaded, batch, functional, memory_limit=limit, progress=progress)
    about = {
        "task": task.name,
        "model": model,
        "family": loaded.family.model_type,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(loaded.params)),
        "examples": examples,
        "seed": seed,
        "data": fingerprint(rows),
        "tokens": {name: values.shape[1] for name, values in batch.items()},
        "dtype": dtype,
    }
    if is_first():
        _write(out, kernel, about | kernel.summary() | _cost(time.perf_counter() - began))


def _cost(seconds: float) -> dict[str, Any]:
    """What measuring took, on which device and with which versions."""
    import importlib.metadata
    import resource
    import sys

    import jax

    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return {
        "seconds": round(seconds, 3),
        "peak_memory_bytes": int(peak),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "lensjax": importlib.metadata.version("lensjax"),
        "jax": jax.__version__,
    }


def _write(out: Path, kernel: "Kernel", summary: dict[str, Any]) -> None:
    import io
    import json

    import numpy as np

    from lensjax.files import write_files
    from lensjax.report.kernel_page import render_kernel

    arrays = io.BytesIO()
    np.savez_compressed(arrays, **kernel.arrays())
    contents: dict[Path, str | bytes] = {
        out / "kernel.npz": arrays.getvalue(),
        out / "kernel.html": render_kernel(kernel, summary),
        out / "kernel.json": json.dumps(summary, indent=2, ensure_ascii=False) + "\n",
    }
    write_files(contents)
    rank, size = summary["effective_rank"], summary["size"]
    print(f"Effective rank {rank:.1f} of {size}, largest eigenvalue {summary['largest_eigenvalue']:.4g}.")
    for path in contents:
        print(f"Wrote {path}")
