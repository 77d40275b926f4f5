"""`lensjax ntk` and `lensjax hessian`: curvature of a model on examples of a task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lensjax.cli.arguments import SpecFile
from lensjax.cli.console import progress_bar
from lensjax.core.errors import InputError

if TYPE_CHECKING:
    from lensjax.measure.hessian import Hessian
    from lensjax.measure.kernel import MeasuredKernel
    from lensjax.measure.rungs import FinetuneRun
    from lensjax.models.model import Model
    from lensjax.tasks.spec import TaskSpec
    from lensjax.tasks.task import Example

FunctionalName = Literal["loss", "target_logprob", "label_logits", "fisher_sketch"]
DType = Literal["float32", "float64", "bfloat16"]
BlockName = Literal["diagonal", "joint"]


def ntk(
    spec: SpecFile,
    model: str,
    out: Path,
    finetuned: tuple[Path, ...] = (),
    examples: int = 128,
    functional: FunctionalName = "loss",
    seed: int = 0,
    dtype: DType = "float32",
    mesh: str | None = None,
    memory_limit: float | None = None,
) -> None:
    """Compute a model's exact empirical neural tangent kernel on examples of a task, and how far fine-tuning moves it.

    Writes to the folder OUT: kernel.npz with the kernel, its eigenvalues and the residual F(t) of linearised training;
    kernel.html with figures of both; kernel.json with what it took and numbers that describe it. With --finetuned also
    the kernels of these models on the same examples, and how far each has drifted from that of the model.

    Worked examples

    $ lensjax ntk verses.yaml --model openai-community/gpt2 --out kernels/gpt2

    $ lensjax ntk topics.yaml --model path/to/model --examples 64 --functional label_logits --out kernels/mine

    $ lensjax ntk verses.yaml --model openai-community/gpt2 --finetuned results/gpt2 --out kernels/gpt2

    Args:
        spec: YAML file of the task.
        model: Folder of a model, its name on the Hugging Face hub, or pocket:NAME, which is part of LensJAX.
        out: Folder of the results.
        finetuned: Folders of runs as `lensjax finetune` or `lensjax curve --save-models` writes them, or the model's
            folder that holds several.
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

    from lensjax.core.processes import is_first, start_processes
    from lensjax.measure.kernel import measure_kernel, moved
    from lensjax.measure.rungs import find_runs
    from lensjax.tasks.spec import TaskSpec, read_spec
    from lensjax.tasks.task import fingerprint
    from lensjax.train.runs import MODEL
    from lensjax.train.spec import FinetuneSpec

    task: TaskSpec = read_spec(spec, FinetuneSpec)
    start_processes()
    from lensjax.core.files import make_folder
    from lensjax.measure.probes import probe_batch
    from lensjax.models import load, make_mesh

    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    _check_seed(seed)
    if memory_limit is not None and not 0 < memory_limit < float("inf"):
        raise InputError(f"--memory-limit is {memory_limit}; give a number of GB above 0.")
    runs = find_runs(finetuned, model, seed)
    rows = _rows(task, runs, examples, seed)
    devices = make_mesh(mesh)
    limit = None if memory_limit is None else int(memory_limit * 1e9)
    # What fine-tuning adds to parameters is lost in bfloat16.
    held = "float32" if runs and dtype == "bfloat16" else dtype
    loaded = load(model, dtype=dtype, param_dtype=held, mesh=devices)
    batch = probe_batch(loaded, task, rows)
    make_folder(out)
    began = time.perf_counter()

    def measure(model: "Model", what: str) -> "MeasuredKernel":
        with progress_bar(what) as progress:
            return measure_kernel(model, batch, functional, memory_limit=limit, progress=progress)

    kernel = measure(loaded, "Measuring")
    about = _about(task.name, model, loaded, batch, seed) | {"data": fingerprint(rows), "dtype": dtype}
    ladder: list[dict[str, Any]] = []
    thetas = []
    del loaded  # for the room of the others
    for run in runs:
        tuned = load(run.folder / MODEL, dtype=dtype, param_dtype=held, mesh=devices)
        after = measure(tuned, f"Measuring, {run.result.examples:,} examples")
        del tuned
        ladder.append({"examples": run.result.examples, "test_loss": run.result.loss} | moved(kernel, after))
        thetas.append(after.theta)
    about |= kernel.summary() | ({"ladder": ladder} if ladder else {}) | _cost(time.perf_counter() - began)
    arrays = kernel.arrays() | ({"rung_theta": thetas} if thetas else {})
    if is_first():
        _write_kernel(out, kernel, arrays, about)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise InputError(f"--seed is {seed}; give 0 or more.")


def _rows(task: "TaskSpec", runs: "Sequence[FinetuneRun]", examples: int, seed: int) -> "list[Example]":
    """Training examples of a seed, which all of the runs have in common."""
    from lensjax.measure.probes import probe_examples
    from lensjax.measure.rungs import training_examples

    return training_examples(task, runs, examples) if runs and examples > 0 else probe_examples(task, examples, seed)


def hessian(
    spec: SpecFile,
    model: str,
    out: Path,
    finetuned: tuple[Path, ...] = (),
    examples: int = 64,
    block: BlockName = "diagonal",
    positive_steps: int | None = None,
    loss_bound: float | None = None,
    epsilon: float = 0.01,
    top: int = 5,
    steps: int = 16,
    samples: int = 3,
    products: int = 10,
    batch_size: int = 16,
    seed: int = 0,
    dtype: DType = "float32",
    mesh: str | None = None,
) -> None:
    """Measure the Hessian of a model's loss on a task, and the PAC-Bayes bound of models fine-tuned from it.

    Writes to the folder OUT: hessian.json with the largest eigenvalues, and the traces of the whole and of each layer
    with their standard errors; hessian.npz with these and the spectral density; hessian.html with figures. With
    --finetuned also the terms of the bound of Ju, Li & Zhang (ICML 2022) for each of these models; with three or more
    of different sizes, how the Hessian's term falls with the number of training examples, and in which phase each is.

    Worked examples

    $ lensjax hessian verses.yaml --model openai-community/gpt2 --out hessians/gpt2

    $ lensjax hessian verses.yaml --model openai-community/gpt2 --finetuned results/gpt2 --out hessians/gpt2

    Args:
        spec: YAML file of the task.
        model: Folder of a model, its name on the Hugging Face hub, or pocket:NAME, which is part of LensJAX.
        out: Folder of the results.
        finetuned: Folders of runs as `lensjax finetune` or `lensjax curve --save-models` writes them, or the model's
            folder that holds several.
        examples: How many training examples; the first of a seed, the same ones for every model.
        block: Of each layer's quadratic form: diagonal, the layer's own block of the Hessian as in the theorem, or
            joint, with its couplings to other layers as in the authors' released code.
        positive_steps: Take the positive part of each block, as in the theorem, by Lanczos quadrature of so many steps;
            that is as many products for every layer and example. Without it the form itself is taken, from 0 up.
        loss_bound: What no example's loss exceeds, in nats; by default the largest that is measured.
        epsilon: The bound's, any fixed number above 0.
        top: How many eigenvalues.
        steps: Products for each random vector of the spectral density.
        samples: How many of these vectors.
        products: For the trace of the whole, and again for those of the layers.
        batch_size: Examples that are on the devices at a time.
        seed: Of which examples these are, and of random vectors.
        dtype: Type that the model computes in; parameters are held in float32 or float64, as what fine-tuning adds to
            them is lost in less.
        mesh: Devices along each axis (data, fsdp, tensor); all of them along fsdp by default.
    """
    import time

    import jax

    from lensjax.core.processes import is_first, start_processes
    from lensjax.curvature.bound import check_constants
    from lensjax.measure.hessian import measure_hessian
    from lensjax.measure.probes import probe_batch
    from lensjax.measure.rungs import find_runs, ladder_arrays, ladder_summary, measure_rungs
    from lensjax.tasks.spec import TaskSpec, read_spec
    from lensjax.tasks.task import fingerprint
    from lensjax.train.spec import FinetuneSpec

    task: TaskSpec = read_spec(spec, FinetuneSpec)
    start_processes()
    from lensjax.core.files import make_folder
    from lensjax.models import load, make_mesh

    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if batch_size < 1:
        raise InputError(f"--batch-size is {batch_size}; give 1 or more.")
    check_constants(0.0 if loss_bound is None else loss_bound, epsilon)
    _check_seed(seed)
    runs = find_runs(finetuned, model, seed)
    rows = _rows(task, runs, examples, seed)
    held = "float64" if dtype == "float64" else "float32"
    loaded = load(model, dtype=dtype, param_dtype=held, mesh=make_mesh(mesh))
    batch = probe_batch(loaded, task, rows)
    batches = [{name: x[i : i + batch_size] for name, x in batch.items()} for i in range(0, examples, batch_size)]
    about = _about(task.name, model, loaded, batch, seed) | {"data": fingerprint(rows), "dtype": dtype}
    make_folder(out)
    began = time.perf_counter()
    ladder: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    if runs:
        with progress_bar("Measuring fine-tuned models") as progress:
            rungs = measure_rungs(loaded, batches, runs, block=block, positive_steps=positive_steps, progress=progress)
        ladder = {"ladder": ladder_summary(rungs, loss_bound=loss_bound, epsilon=epsilon)}
        arrays = ladder_arrays(rungs)
    with progress_bar("Measuring the Hessian") as progress:
        found = measure_hessian(
            loaded, batches, top=top, steps=steps, samples=samples, products=products, seed=seed, progress=progress
        )
    about |= found.summary() | ladder | _cost(time.perf_counter() - began)
    if is_first():
        _write_hessian(out, found, found.arrays() | arrays, about)


def _about(task: str, model: str, loaded: "Model", batch: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What was measured on what."""
    import jax

    return {
        "task": task,
        "model": model,
        "family": loaded.family.model_type,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(loaded.params)),
        "examples": len(next(iter(batch.values()))),
        "seed": seed,
        "tokens": {name: values.shape[1] for name, values in batch.items()},
    }


def _cost(seconds: float) -> dict[str, Any]:
    """What measuring took, on which device and with which versions."""
    import importlib.metadata
    import resource
    import sys

    import jax

    from lensjax.core import devices

    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return {
        "seconds": round(seconds, 3),
        "peak_memory_bytes": int(peak),
        "device": device.device_kind,
        "devices": len(devices.usable_devices()),
        "lensjax": importlib.metadata.version("lensjax"),
        "jax": jax.__version__,
    }


def _write_kernel(out: Path, kernel: "MeasuredKernel", arrays: dict[str, Any], summary: dict[str, Any]) -> None:
    from lensjax.report.pages.kernel import render_kernel

    rank, size = summary["effective_rank"], summary["size"]
    said = f"Effective rank {rank:.1f} of {size}, largest eigenvalue {summary['largest_eigenvalue']:.4g}."
    if ladder := summary.get("ladder"):
        drifts = (f"{rung['drift']:.3f} after {rung['examples']:,} examples" for rung in ladder)
        said += f" Drift: {', '.join(drifts)}."
    _write(out, "kernel", arrays, render_kernel(kernel, summary), summary, said)


def _write_hessian(out: Path, found: "Hessian", arrays: dict[str, Any], summary: dict[str, Any]) -> None:
    from lensjax.report.pages.hessian import render_hessian

    said = (
        f"Largest eigenvalue {summary['eigenvalues'][0]:.4g}, trace {summary['trace']:.4g} "
        f"± {summary['trace_standard_error']:.2g}."
    )
    ladder = summary.get("ladder")
    if ladder is not None and ladder["decay"] is not None:
        low, high = ladder["decay"]["beta2_interval"]
        said += f" ΣH falls as n^(−β₂) with β₂ = {ladder['decay']['beta2']:.3f} ({low:.3f} to {high:.3f})."
    _write(out, "hessian", arrays, render_hessian(found, summary), summary, said)


def _write(out: Path, name: str, arrays: dict[str, Any], page: str, summary: dict[str, Any], said: str) -> None:
    """Arrays, page and numbers to the folder, and a sentence to the terminal."""
    import io
    import json

    import numpy as np

    from lensjax.core.files import write_files

    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    contents: dict[Path, str | bytes] = {
        out / f"{name}.npz": packed.getvalue(),
        out / f"{name}.html": page,
        out / f"{name}.json": json.dumps(summary, indent=2, ensure_ascii=False) + "\n",
    }
    write_files(contents)
    print(said)
    for path in contents:
        print(f"Wrote {path}")
