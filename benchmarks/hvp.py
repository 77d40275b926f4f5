"""What products with the Hessian and its kin cost, in gradients of the same model, beside curvlinops and PyHessian.

    python benchmarks/hvp.py [--parts gpt2 t5 cost lanczos gpu] [--quick] [--out FILE]

Only the parts named are measured anew; the others stay in the file, each with the machine and the versions that it was
measured with. Every row of `gpt2` and `t5` has its contenders in processes of their own, which take turns, all but
`gpu` on the CPU. The peers need torch (`lensjax[peers]`), the figure matplotlib.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import hvp_peers
import jax
import numpy as np
import tyro
from figures import panels
from hvp_peers import ROWS, Case, Row, random_batch, random_vector
from machine import peak_memory_gb
from parts import RATIO, Json, Promise, compared, run_parts, timed, use_cpu, warm

from lensjax.curvature.hvp import ggn_vp_fn, hvp_fn, quadratic_form
from lensjax.curvature.spectrum import top_eigenpairs
from lensjax.measure.model_losses import token_cross_entropy

Part = Literal["gpt2", "t5", "cost", "lanczos", "gpu"]
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "transformers", "lensjax")
COLUMNS = {
    "median s": "median_s",
    "gradients": "gradients",
    "ratio": "ratio_within_turns",
    "peak GB": "peak_gb",
    "ratio of memory": "ratio_of_memory",
}
LIMITS: tuple[tuple[Row, float], ...] = (  # gradients of a product, of a vector, or of a layer
    ("hvp", 2.5),
    ("linearised", 2.0),
    ("ggn_vp", 1.8),
    ("quadratic_form", 2.3),
    ("joint", 2.5),
    ("diagonal", 1.6),
)
AGREE = 1e-3  # relative difference between what contenders compute, at most
PEER_PACKAGES = ("torch", "curvlinops-for-pytorch", "pyhessian")

NOTES = {
    "times": "wall seconds of a call, warm: another was made before; float32",
    "gradients": "time over that of the gradient of the same loss in lensjax, compiled, which takes its turn among the "
    "contenders of the row: the median of the ratios within each turn",
    "ratio": RATIO,
    "memory": "`peak_gb` is the most resident memory during a warm call, over that when weights, vectors and examples "
    "were loaded and nothing compiled; `ratio_of_memory` is that of the peer over that of lensjax",
    "rows": "`gradient` of the mean loss; `hvp` and `ggn_vp` one product from scratch; `linearised` several vectors, "
    "one after the other, after one linearisation that is not counted, in gradients per vector; `fisher_vp` of the "
    "losses of tokens; `quadratic_form` of the mean loss; `joint` v_i·(H v)_i of all layers; `diagonal` v_i·H_ii v_i "
    "of all layers, on `few` examples, in gradients per layer",
    "peers": "the same weights, vectors and examples in torch, of transformers' model with eager attention, as others "
    "have no forward derivative; threads of torch wait without spinning, as the machine has other work. curvlinops "
    "linearises nothing, and multiplies by the vectors of `linearised` one after the other: three together took more "
    "than 11 GB for GPT-2. `compiled` is torch.compile of a product, where it works; that of curvlinops' Hessian "
    "breaks its graph before anything is computed, and is as good as eager. `failed` says what did not run. Peers' "
    "`diagonal` is of every `stride`-th parameter, its time scaled to all, and without GPT-2's fused queries, keys and "
    "values. PyHessian keeps the gradient's graph in `linearised` and `diagonal`. `difference` is the largest from "
    "lensjax's numbers over the largest of them; those that differ by more than 1e-3 are `wrong`: so is, for the scale "
    "of a layer norm, torch 2.13's `jvp` of `jacrev`, by which curvlinops multiplies, and not `autograd.grad` of "
    "`autograd.grad`",
    "cost": "GPT-2s around `base`, one thing at a time; seconds of one product, of `vectors` many with all that comes "
    "before them",
    "lanczos": "largest eigenvalues of GPT-2's Hessian by Lanczos steps, with a basis of so many vectors in bfloat16; "
    "`peak_gb` is all memory that the process has had at its highest",
    "gpu": "as `gpt2`, without peers, on the device, with memory there",
}


@dataclass(frozen=True)
class Plan:
    """How much is measured, of models of which size."""

    cases: Mapping[str, Case]  # of parts
    repeats: int
    diagonal_repeats: int
    base: Mapping[str, int]
    varied: Mapping[str, tuple[int, ...]]
    cost_repeats: int
    lanczos: Case
    steps: int
    basis: int
    eigenvalues: int
    in_process: bool  # what contenders run in; nothing in torch is compiled then
    rows: tuple[Row, ...] = ROWS
    figure: Path = Path("hvp_cost.svg")


FULL = Plan(
    cases={
        "gpt2": Case("gpt2", {}, examples=4, tokens=64, vectors=3, few=1, stride=13),
        "t5": Case("t5", {}, examples=4, tokens=64, vectors=3, few=1, stride=13),
        "gpu": Case("gpt2", {}, examples=16, tokens=512, vectors=3, few=4),
    },
    repeats=3,
    diagonal_repeats=1,
    base={"width": 256, "tokens": 64, "examples": 4, "vectors": 1, "layers": 4, "vocabulary": 2048},
    varied={
        "width": (64, 128, 256, 512),
        "tokens": (32, 64, 128, 256),
        "examples": (2, 4, 8, 16),
        "vectors": (1, 2, 4, 8),
    },
    cost_repeats=3,
    lanczos=Case("gpt2", {}, examples=1, tokens=32, vectors=0, few=0),
    steps=100,
    basis=20,
    eigenvalues=3,
    in_process=False,
)
TINY = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 8}
QUICK = Plan(
    cases={name: Case("gpt2", TINY, examples=2, tokens=8, vectors=1, few=1) for name in ("gpt2", "gpu")},
    repeats=1,
    diagonal_repeats=1,
    base={"width": 16, "tokens": 8, "examples": 2, "vectors": 1, "layers": 1, "vocabulary": 32},  # as TINY
    varied={"width": (16,), "tokens": (8,), "examples": (2,), "vectors": (1,)},
    cost_repeats=1,
    lanczos=Case("gpt2", TINY, examples=2, tokens=8, vectors=0, few=0),
    steps=6,
    basis=5,
    eigenvalues=1,
    in_process=True,
    rows=("gradient", "hvp", "quadratic_form"),
)


def benchmark(
    parts: tuple[Part, ...] = ("gpt2", "t5", "cost", "lanczos", "gpu"),
    quick: bool = False,
    out: Path = Path("benchmarks/results/hvp.json"),
) -> None:
    """Measure, print a table, and write JSON, and beside it a figure of what products cost.

    Args:
        parts: What is measured: GPT-2, T5, cost and Lanczos' method on the CPU, and, where JAX has one, on a GPU.
        quick: Only try the script on one tiny model; one process does all parts, and the numbers mean nothing.
        out: File to write.
    """
    plan = replace(QUICK if quick else FULL, figure=out.with_name("hvp_cost.svg"))
    run_parts(
        "hvp",
        MEASURES,
        plan,
        [part for part in parts if part in plan.cases or part in ("cost", "lanczos")],
        out,
        quick=quick,
        notes=NOTES,
        packages=PACKAGES,
        targets=targets,
        columns=COLUMNS,
    )


def on_cpu(part: Part, plan: Plan) -> Json:
    """All rows of a model, beside its peers."""
    use_cpu()
    os.environ["OMP_WAIT_POLICY"] = "passive"  # contenders inherit it
    peers = [name for name in hvp_peers.installed() if "compiled" not in name or not plan.in_process]
    known = {package: version(package) for package in PEER_PACKAGES} if "PyHessian" in peers else {}
    return {"threads": os.cpu_count(), "peers": known} | rows(plan.cases[part], peers, plan)


def gpu(plan: Plan) -> Json | None:
    """All rows on a GPU, without peers; None without a GPU."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # contenders share the device
    if jax.default_backend() != "gpu":
        return None
    return {"device": jax.devices()[0].device_kind} | rows(plan.cases["gpu"], [], plan, cpu=False)


def rows(case: Case, peers: list[str], plan: Plan, *, cpu: bool = True) -> Json:
    """Times and memory of every contender in every row."""
    with tempfile.TemporaryDirectory() as folder:
        known = hvp_peers.write_case(case, Path(folder))
        found: Json = {"repeats": plan.repeats, "model": asdict(case), **known}
        for row in plan.rows:
            names = [name for name in peers if row in hvp_peers.PEERS[name]]
            found[row] = measured_row(row, names, Path(folder), plan, cpu)
    layers, gradient = found["layers"], found["gradient"]["lensjax"]["peak_gb"]
    for row in plan.rows[1:]:
        ours = found[row]["lensjax"]
        each = case.vectors if row == "linearised" else layers if row == "diagonal" else 1
        ours["gradients"] = 1 / (found[row]["gradient"]["ratio_within_turns"] * each)
        if row != "diagonal":
            ours["memory_over_gradient"] = ours["peak_gb"] / gradient
    return found


def measured_row(row: Row, peers: list[str], folder: Path, plan: Plan, cpu: bool) -> Json:
    """Times and memory of the contenders of a row, with the gradient beside them."""
    runs: dict[str, Callable[[], Json]] = {}
    last: dict[str, Json] = {}
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for name in ("lensjax", *(["gradient"] if row != "gradient" else []), *peers):
            run = stack.enter_context(contender(row, name, folder, plan, cpu))
            try:
                run()
                runs[name] = run
            except Exception as error:
                if "compiled" not in name:
                    raise
                failed[name] = str(error).strip().splitlines()[0]

        def seconds(name: str) -> float:
            last[name] = runs[name]()
            return float(last[name]["seconds"])

        repeats = plan.diagonal_repeats if row == "diagonal" else plan.repeats
        found = compared({name: partial(seconds, name) for name in runs}, repeats)
    ours = last["lensjax"]
    for name in runs:
        found[name]["peak_gb"] = last[name]["peak_gb"]
        if name in peers:
            found[name]["ratio_of_memory"] = last[name]["peak_gb"] / ours["peak_gb"]
            found[name]["difference"] = difference(ours["numbers"], last[name]["numbers"])
    wrong = [name for name in peers if name in runs and found[name]["difference"] > AGREE]
    return found | {"wrong": wrong, "failed": failed}


def difference(ours: list[float], theirs: list[float]) -> float:
    """Largest distance of one of their numbers from the nearest of ours, over the largest of ours."""
    distances = np.abs(np.subtract.outer(theirs, ours)).min(axis=1)
    return float(distances.max() / np.abs(ours).max())


@contextlib.contextmanager
def contender(row: Row, name: str, folder: Path, plan: Plan, cpu: bool) -> Iterator[Callable[[], Json]]:
    """What computes a row's product in a process of its own, or in this one, and gives seconds, memory and numbers."""
    if plan.in_process:
        yield hvp_peers.prepare(row, name, folder, cpu)
        return
    with ProcessPoolExecutor(1, get_context("spawn")) as own:
        own.submit(hvp_peers.start, row, name, folder, cpu).result()
        yield lambda: own.submit(hvp_peers.again).result()


def cost(plan: Plan) -> Json:
    """Times of products of GPT-2s where width, tokens, examples and vectors vary, each alone."""
    use_cpu()
    known: dict[str, Json] = {}

    def point(name: str, value: int) -> Json:
        sizes = {**plan.base, name: value}
        if str(sizes) not in known:
            known[str(sizes)] = cost_point(sizes, plan.cost_repeats)
        return {"value": value, **known[str(sizes)]}

    found: Json = {"repeats": plan.cost_repeats, "base": dict(plan.base)}
    found |= {name: [point(name, value) for value in values] for name, values in plan.varied.items()}
    draw(found, plan)
    return found


def cost_point(sizes: Mapping[str, int], repeats: int) -> Json:
    """Times of the gradient and of products with so many vectors."""
    config = {
        "vocab_size": sizes["vocabulary"],
        "n_embd": sizes["width"],
        "n_layer": sizes["layers"],
        "n_head": 4,
        "n_positions": sizes["tokens"],
    }
    model = Case("gpt2", config, sizes["examples"], sizes["tokens"], sizes["vectors"], few=0).make()
    params, batch = model.params, jax.device_put(random_batch(model, sizes["examples"], sizes["tokens"]))
    vectors = [random_vector(params, number) for number in range(sizes["vectors"])]
    # Held, as a bound method is made anew wherever it is named, and what is new is compiled anew.
    loss, apply, outputs = model.loss, model.apply, token_cross_entropy(model)
    gradient = jax.jit(jax.grad(loss))
    products: dict[str, Callable[[], Callable[[Any], Any]]] = {
        "hvp": lambda: hvp_fn(loss, params, batch, mode="direct"),
        "linearised hvp": lambda: hvp_fn(loss, params, batch, mode="linearized"),
        "ggn_vp": lambda: ggn_vp_fn(apply, outputs, params, batch, mode="direct"),
        "quadratic_form": lambda: partial(quadratic_form, loss, params, batch),
    }

    def every(make: Callable[[], Callable[[Any], Any]]) -> None:
        product = make()
        for v in vectors:
            jax.block_until_ready(product(v))

    calls: dict[str, Callable[[], Any]] = {"gradient": lambda: jax.block_until_ready(gradient(params, batch))}
    calls |= {name: partial(every, make) for name, make in products.items()}
    times = warm(calls, repeats)
    return {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params)), **times}


def draw(found: Json, plan: Plan) -> None:
    """A figure of seconds against what varies."""
    with panels(len(plan.varied), (10, 2.8), plan.figure) as axes:
        for axis, (name, values) in zip(axes, plan.varied.items(), strict=True):
            points = found[name]
            across = [point["parameters"] for point in points] if name == "width" else list(values)
            for what in (key for key, value in points[0].items() if isinstance(value, dict)):
                axis.loglog(across, [point[what]["median_s"] for point in points], "o-", markersize=3, label=what)
            axis.set_xticks(across, [f"{x / 1e6:.2g} M" if name == "width" else str(x) for x in across])
            axis.set_xlabel("parameters" if name == "width" else name)
        axes[0].legend(fontsize=7)


def lanczos(plan: Plan) -> Json:
    """Time and memory of Lanczos steps with a basis in bfloat16."""
    use_cpu()
    case, model = plan.lanczos, plan.lanczos.make()
    product = hvp_fn(model.loss, model.params, random_batch(model, case.examples, case.tokens))
    seconds, pairs = timed(
        lambda: top_eigenpairs(
            product,
            plan.eigenvalues,
            products=plan.steps,
            basis=plan.basis,
            basis_dtype="bfloat16",
            tolerance=0.0,
        )
    )
    return {
        "model": asdict(case),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "steps": pairs.products,
        "basis": plan.basis,
        "eigenvalues": [float(value) for value in pairs.values],
        "residuals": [float(residual) for residual in pairs.residuals],
        "seconds": seconds,
        "peak_gb": peak_memory_gb(),
    }


def targets(parts: Mapping[str, Json]) -> list[Promise]:
    """What we promised ourselves, beside what was measured."""
    promised: list[Promise] = []
    for part in ("gpt2", "t5", "gpu"):
        found = parts.get(part)
        if found is None:
            continue
        promised += [
            (f"{row} of {part}, gradients", limit, found[row]["lensjax"]["gradients"])
            for row, limit in LIMITS
            if row in found
        ]
        memory = found["quadratic_form"]["lensjax"]["memory_over_gradient"]
        promised.append((f"memory of quadratic_form of {part}, over the gradient's", 1.0, memory))
        for row in ROWS[1:]:
            others = [found[row][name] for name in hvp_peers.PEERS if name in found.get(row, {})]
            if others:
                time, memory = (max(1 / o[key] for o in others) for key in ("ratio_within_turns", "ratio_of_memory"))
                promised.append((f"time of {row} of {part}, over the best peer's", 1.0, time))
                promised.append((f"memory of {row} of {part}, over the best peer's", 1.0, memory))
    if "lanczos" in parts:
        promised.append(("GB of Lanczos steps", 12.0, parts["lanczos"]["peak_gb"]))
    return promised


MEASURES: Mapping[Part, Callable[[Plan], Json | None]] = {
    "gpt2": partial(on_cpu, "gpt2"),
    "t5": partial(on_cpu, "t5"),
    "cost": cost,
    "lanczos": lanczos,
    "gpu": gpu,
}


if __name__ == "__main__":
    tyro.cli(benchmark)
