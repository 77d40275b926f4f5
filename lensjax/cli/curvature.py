"""`lensjax ntk` and `lensjax hessian`: curvature of a model on examples of a task."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lensjax.cli.arguments import (
    CandidateName,
    Examples,
    FinetunedFolders,
    FunctionalName,
    Mesh,
    ModelSource,
    Precision,
    PrecisionName,
    Settings,
    SpecFile,
)
from lensjax.cli.console import make_console, make_table, progress_bar
from lensjax.cli.outputs import write_all
from lensjax.cli.specs import read_subject
from lensjax.core.errors import InputError
from lensjax.core.terminal import say
from lensjax.core.text import json_text

if TYPE_CHECKING:
    import numpy as np

    from lensjax.cli.specs import Subject
    from lensjax.measure.approximate import ApproximateKernel
    from lensjax.measure.hessian import Hessian
    from lensjax.measure.kernel import MeasuredKernel
    from lensjax.measure.rungs import FinetuneRun
    from lensjax.models.model import Model

BlockName = Literal["diagonal", "joint"]
OnMismatch = Literal["raise", "dense"]


def ntk(
    spec: SpecFile,
    out: Path,
    model: ModelSource = None,
    candidate: CandidateName = None,
    finetuned: FinetunedFolders = (),
    examples: Examples = 128,
    functional: FunctionalName = "loss",
    sketch: Examples | None = None,
    rank: int | None = None,
    seed: int = 0,
    dtype: Precision = "float32",
    mesh: Mesh = None,
    settings: Settings = (),
    memory_limit: float | None = None,
    verify: bool = True,
    on_mismatch: OnMismatch = "raise",
    explain: bool = False,
) -> None:
    """Compute a model's exact empirical neural tangent kernel.

    It is that on examples of a task. Writes to the folder OUT: kernel.npz with the kernel, its eigenvalues and the
    residual F(t) of linearised training; kernel.html with figures of both; kernel.json with numbers that describe it,
    time and memory. With --finetuned also the kernels of these models on the same examples, and how far each has
    drifted from that of the model.

    Worked examples

    $ lensjax ntk verses.yaml --model openai-community/gpt2 --out kernels/gpt2

    $ lensjax ntk topics.yaml --model path/to/model --examples 64 --functional label_logits --out kernels/mine

    $ lensjax ntk verses.yaml --model openai-community/gpt2 --finetuned results/gpt2 --out kernels/gpt2

    $ lensjax ntk verses.yaml --model openai-community/gpt2 --examples 20000 --sketch 4096 --out kernels/gpt2

    Args:
        out: Folder of the results.
        examples: Number of training examples: the first of a seed, the same for every model.
        sketch: Number of random features of each example whose inner products estimate the kernel, in place of the
            kernel: memory and time then grow with the number of examples, not with its square.
        rank: Number of the kernel's largest eigenvalues and their vectors, in place of the kernel; each of about
            2 × rank + 18 products takes the gradients of all examples once more, and no more memory.
        functional: Function whose kernel this is: the loss of each example (loss), the log-probabilities of its target
            tokens (target_logprob), the logits of the tokens that targets begin with (label_logits), or random
            projections of its logits (fisher_sketch).
        seed: Seed of the choice of examples.
        dtype: Type of parameters and computation; kernels are summed in float32, or in float64.
        memory_limit: Memory in GB that the kernel may take on a device besides the model; by default half of the
            machine's memory, or 80 % of the free memory of an accelerator.
        verify: Compute entries of two or three examples a second time, from plain gradients, and compare them; with
            --sketch those of two examples, from the factors that features are made of.
        on_mismatch: What to do where they differ by more than rounding: raise an error that names the parameter, or
            compute its kernel from plain gradients (dense).
        explain: Say first how the kernel of each parameter is computed, why, and what it takes, and measure each way
            for about a second; with --sketch or --rank, how much memory and how many operations all of it takes.
    """
    if memory_limit is not None and not 0 < memory_limit < float("inf"):
        raise InputError(f"--memory-limit is {memory_limit}; give a number of GB above 0.")
    limit = None if memory_limit is None else int(memory_limit * 1e9)
    if sketch is not None and rank is not None:
        raise InputError("--sketch and --rank are two ways; give one of them.")
    approximate = sketch is not None or rank is not None
    if approximate and finetuned:
        raise InputError("Drifts are those of whole kernels; leave out --sketch and --rank, or --finetuned.")
    subject = read_subject(spec, settings, model=model, candidate=candidate)
    mesh = mesh or subject.mesh
    # bfloat16 would lose what fine-tuning adds to parameters.
    held: PrecisionName = "float32" if finetuned and dtype == "bfloat16" else dtype
    loaded, batch, runs, about = _prepare(subject, out, finetuned, examples, seed, dtype, held, mesh)
    from lensjax.measure.approximate import measure_approximate_kernel
    from lensjax.measure.kernel import measure_kernel, moved
    from lensjax.models.inputs import naming_weights
    from lensjax.models.loading import load
    from lensjax.models.sharding import make_mesh
    from lensjax.train.runs import MODEL

    began = time.perf_counter()

    how: Any = {"memory_limit": limit, "verify": verify, "on_mismatch": on_mismatch}

    def measure(model: "Model", what: str) -> "MeasuredKernel":
        with progress_bar(what) as progress:
            return measure_kernel(model, batch, functional, progress=progress, **how)

    if approximate:
        if explain:
            about["plan"] = _explained_approximate(loaded, batch, functional, sketch, rank, limit)
        with progress_bar("Measuring") as progress, naming_weights([loaded.folder]):
            found = measure_approximate_kernel(
                loaded,
                batch,
                functional,
                sketch=sketch,
                rank=rank,
                seed=seed,
                progress=progress,
                **how,
            )
        _write_kernel(out, found, found.arrays(), about | found.summary() | _cost(time.perf_counter() - began))
        return
    if explain:
        about["plan"] = _explained(loaded, batch, functional, limit)
    kernel = measure(loaded, "Measuring")
    ladder: list[dict[str, Any]] = []
    thetas = []
    del loaded  # makes room for the fine-tuned ones
    for run in runs:
        tuned = load(run.folder / MODEL, dtype=dtype, param_dtype=held, mesh=make_mesh(mesh))
        after = measure(tuned, f"Measuring, {run.result.examples:,} examples")
        del tuned
        ladder.append({"examples": run.result.examples, "test_loss": run.result.loss} | moved(kernel, after))
        thetas.append(after.theta)
    about |= kernel.summary() | ({"ladder": ladder} if ladder else {}) | _cost(time.perf_counter() - began)
    _write_kernel(out, kernel, kernel.arrays() | ({"rung_theta": thetas} if thetas else {}), about)


def hessian(
    spec: SpecFile,
    out: Path,
    model: ModelSource = None,
    candidate: CandidateName = None,
    finetuned: FinetunedFolders = (),
    examples: Examples = 64,
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
    dtype: Precision = "float32",
    mesh: Mesh = None,
    settings: Settings = (),
) -> None:
    """Measure the Hessian of a model's loss, and a bound's terms.

    Writes to the folder OUT: hessian.json with the largest eigenvalues, and the traces of the whole and of each layer
    with their standard errors; hessian.npz with these and the spectral density; hessian.html with figures. With
    --finetuned also the terms of the bound of Ju, Li & Zhang (ICML 2022) for each of these models; with three or more
    of different sizes, how the Hessian's term falls with the number of training examples, and in which phase each is.

    Worked examples

    $ lensjax hessian verses.yaml --model openai-community/gpt2 --out hessians/gpt2

    $ lensjax hessian verses.yaml --model openai-community/gpt2 --finetuned results/gpt2 --out hessians/gpt2

    Args:
        out: Folder of the results.
        examples: Number of training examples: the first of a seed, the same for every model.
        block: Part of the Hessian in each layer's quadratic form: diagonal, the layer's own block as in the theorem, or
            joint, with its couplings to other layers as in the authors' released code.
        positive_steps: Take the positive part of each block, as in the theorem, by Lanczos quadrature with this number
            of steps, each a product for every layer and example. By default the form itself is taken, from 0 up.
        loss_bound: Upper bound C of the loss of an example, in nats; by default the largest measured loss.
        epsilon: The bound's ε, any fixed number above 0.
        top: Number of eigenvalues.
        steps: Products for each random vector of the spectral density.
        samples: Number of these vectors.
        products: Products for the trace of the whole Hessian, and again for those of the layers.
        batch_size: Number of examples on the devices at a time.
        seed: Seed of the choice of examples, and of random vectors.
        dtype: Type of computation; parameters are float32 or float64, for fewer digits would lose what fine-tuning
            changed.
    """
    from lensjax.curvature.bound import check_constants

    if batch_size < 1:
        raise InputError(f"--batch-size is {batch_size}; give 1 or more.")
    check_constants(0.0 if loss_bound is None else loss_bound, epsilon)
    subject = read_subject(spec, settings, model=model, candidate=candidate)
    mesh = mesh or subject.mesh
    held: PrecisionName = "float64" if dtype == "float64" else "float32"
    loaded, batch, runs, about = _prepare(subject, out, finetuned, examples, seed, dtype, held, mesh)
    from lensjax.measure.hessian import measure_hessian
    from lensjax.measure.rungs import ladder_arrays, ladder_summary, measure_rungs

    batches = [{name: x[i : i + batch_size] for name, x in batch.items()} for i in range(0, examples, batch_size)]
    began = time.perf_counter()
    ladder: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    if runs:
        with progress_bar("Measuring fine-tuned models") as progress:
            rungs = measure_rungs(loaded, batches, runs, block=block, positive_steps=positive_steps, progress=progress)
        ladder = {"ladder": ladder_summary(rungs, loss_bound=loss_bound, epsilon=epsilon)}
        arrays = ladder_arrays(rungs)
    with progress_bar("Measuring the Hessian") as progress:
        measured = measure_hessian(
            loaded, batches, top=top, steps=steps, samples=samples, products=products, seed=seed, progress=progress
        )
    about |= measured.summary() | ladder | _cost(time.perf_counter() - began)
    _write_hessian(out, measured, measured.arrays() | arrays, about)


def _prepare(
    subject: "Subject",
    out: Path,
    finetuned: Sequence[Path],
    examples: Examples,
    seed: int,
    dtype: PrecisionName,
    held: PrecisionName,
    mesh: str | None,
) -> "tuple[Model, Mapping[str, np.ndarray], list[FinetuneRun], dict[str, Any]]":
    """A model, its batch of training examples, the runs that were fine-tuned from it, and facts about all of them."""
    import jax

    from lensjax.core.files import make_folder
    from lensjax.core.processes import start_processes

    task, source = subject.spec, str(subject.source)
    start_processes()
    from lensjax.measure.probes import probe_batch, probe_examples
    from lensjax.measure.rungs import find_runs, training_examples
    from lensjax.models.loading import load
    from lensjax.models.sharding import make_mesh
    from lensjax.tasks.task import fingerprint

    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if seed < 0:
        raise InputError(f"--seed is {seed}; give 0 or more.")
    runs = find_runs(finetuned, source, seed)
    common = runs and examples > 0  # the runs must have these examples in common
    rows = training_examples(task, runs, examples) if common else probe_examples(task, examples, seed)
    model = load(source, dtype=dtype, param_dtype=held, mesh=make_mesh(mesh))
    batch = probe_batch(model, task, rows)
    make_folder(out)
    about = {
        "task": task.name,
        "model": source,
        "family": model.family.model_type,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "examples": len(rows),
        "seed": seed,
        "tokens": {name: values.shape[1] for name, values in batch.items()},
        "data": fingerprint(rows),
        "dtype": dtype,
    }
    return model, batch, runs, about


def _cost(seconds: float) -> dict[str, Any]:
    """Time and memory of measuring, the device, and versions."""
    import resource
    import sys

    import jax

    from lensjax.core import devices
    from lensjax.core.version import __version__

    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return {
        "seconds": round(seconds, 3),
        "peak_memory_bytes": int(peak),
        "device": device.device_kind,
        "devices": len(devices.usable_devices()),
        "lensjax": __version__,
        "jax": jax.__version__,
    }


def _explained(model: "Model", batch: "Mapping[str, np.ndarray]", functional: str, limit: int | None) -> dict[str, Any]:
    """Show how the kernel will be computed."""
    from lensjax.core.processes import is_first
    from lensjax.curvature.ntk.explain import HEADINGS
    from lensjax.measure.kernel import explain_kernel

    plan = explain_kernel(model, batch, functional, memory_limit=limit, measure=True)
    if is_first():
        title = f"How the kernel of each parameter is computed, {plan.batch} examples at a time"
        make_console().print(make_table(title, HEADINGS, plan.rows(), words=("parameter", "way", "why")))
    return plan.as_json()


def _explained_approximate(
    model: "Model",
    batch: "Mapping[str, np.ndarray]",
    functional: str,
    sketch: int | None,
    rank: int | None,
    limit: int | None,
) -> dict[str, Any]:
    """Say what the kernel will take."""
    from dataclasses import asdict

    from lensjax.measure.approximate import plan_approximate_kernel

    plan = plan_approximate_kernel(model, batch, functional, sketch=sketch, rank=rank, memory_limit=limit)
    say(
        f"{plan.batch:,} examples at a time, at most {plan.device_bytes / 1e9:.2f} GB on a device besides the model, "
        f"{plan.host_bytes / 1e9:.2f} GB for the result, {plan.flops / 1e12:,.3g} TFLOP."
    )
    return asdict(plan)


def _write_kernel(
    out: Path, kernel: "MeasuredKernel | ApproximateKernel", arrays: dict[str, Any], summary: dict[str, Any]
) -> None:
    from lensjax.core.processes import is_first
    from lensjax.report.pages.kernel import render_kernel

    if not is_first():
        return
    sentence = kernel.sentence
    if "verified" in summary:
        sentence += f" Verified: {summary['verified']}."
    if ladder := summary.get("ladder"):
        drifts = (f"{rung['drift']:.3f} after {rung['examples']:,} examples" for rung in ladder)
        sentence += f" Drift: {', '.join(drifts)}."
    _write(out, "kernel", arrays, render_kernel(kernel, summary), summary, sentence)


def _write_hessian(out: Path, hessian: "Hessian", arrays: dict[str, Any], summary: dict[str, Any]) -> None:
    from lensjax.core.processes import is_first
    from lensjax.report.pages.hessian import render_hessian

    if not is_first():
        return
    sentence = (
        f"Largest eigenvalue {summary['eigenvalues'][0]:.4g}, trace {summary['trace']:.4g} "
        f"± {summary['trace_standard_error']:.2g}."
    )
    ladder = summary.get("ladder")
    if ladder is not None and ladder["decay"] is not None:
        low, high = ladder["decay"]["beta2_interval"]
        sentence += f" ΣH falls as n^(−β₂) with β₂ = {ladder['decay']['beta2']:.3f} ({low:.3f} to {high:.3f})."
    _write(out, "hessian", arrays, render_hessian(hessian, summary), summary, sentence)


def _write(
    out: Path, name: str, arrays: Mapping[str, Any], page: str, summary: Mapping[str, Any], sentence: str
) -> None:
    """Write arrays, page and numbers to the folder, and a sentence to the terminal."""
    import io

    import numpy as np

    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    say(sentence)
    write_all(
        {out / f"{name}.npz": packed.getvalue(), out / f"{name}.html": page, out / f"{name}.json": json_text(summary)}
    )
