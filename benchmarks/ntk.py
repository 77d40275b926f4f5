"""How fast exact neural tangent kernels are, beside the least they could take and beside other ways to compute them.

    python benchmarks/ntk.py [--parts floor peers cost gpu] [--quick] [--out FILE] [--peers-env FOLDER]

Every part runs in a fresh process, all but `gpu` on the CPU. Only the parts named are measured anew; the others stay
in the file, each with the machine and the versions that it was measured with. Contenders of `peers` have a process
each and take turns. neural-tangents needs an old JAX, so it is installed into an environment of its own, once.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ntk_peers
import numpy as np
import tyro
from figures import panels
from machine import peak_memory_gb, refuse_unless_idle
from ntk_peers import Case
from ntk_processes import NEURAL_TANGENTS, STRUCTURED, contender, install_neural_tangents
from parts import RATIO, Json, Promise, compared, run_parts, summary, timed, use_cpu, warm
from transformers import GPT2Config

import lensjax.models
from lensjax.curvature.ntk.ntk import ntk, ntk_flops
from lensjax.measure.functionals.label_logits import label_logits
from lensjax.measure.functionals.loss import loss

Part = Literal["floor", "peers", "cost", "gpu"]
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "transformers", "lensjax")
COLUMNS = {
    "median s": "median_s",
    "ratio": "ratio_within_turns",
    "over the floor": "over_floor",
    "peak GB": "peak_gb",
}
AGREE = 1e-4  # relative difference between kernels that count as the same, at most

NOTES = {
    "times": "wall seconds of a call, warm: another was made before; float32",
    "ratio": RATIO,
    "floor": "GPT-2's `loss`; the least time is that of the gradients of all examples, each once, from a compiled "
    "program for one or for several at a time, whichever is faster, and half of that of X Xᵀ, X being the gradients "
    "[examples, parameters], measured of some columns and scaled; `flops` are those of lensjax's matrix products, and "
    "`verified_s` is the part of its time that checking took",
    "peers": "a plain GPT-2 or MLP in JAX and in torch, of the same weights, trace over outputs; without the packages "
    "`missing`. `peak_gb` is resident memory at its highest, over that before anything was compiled. Vector "
    "products, which grow with the square of the examples, are of `few` of them; their times are scaled to all, their "
    "memory is not. `max_relative_difference` is that from lensjax's kernel over its largest entry; one that differs "
    "by more than 1e-4, while most do not, is `wrong` and cannot be the best. `max_s` is the longest of its `turns`, "
    "which come after one that does not count. torch.func, chunked, computes the Jacobians of 8 examples together. The "
    "promise: half of the best peer's time for transformers, a tenth for the MLP",
    "neural-tangents": "in environments of its own, an older one for its structured derivatives, which are of the MLP "
    "alone: of a transformer they take far longer than contraction, or terabytes",
    "cost": "around `base`, one thing at a time; `exponent` is the slope in log–log between the last two",
    "gpu": "as `floor`, the model's products in JAX's default precision; `large` is one call, compilation included, "
    "with peak memory on the device; that of the smaller kernel has no limit set",
}


@dataclass(frozen=True)
class Plan:
    """How much is measured, of models of which size."""

    gpt2: Mapping[str, Any]
    shape: tuple[int, int]  # examples and tokens of `floor`
    batches: tuple[int, ...]  # numbers of gradients that are tried at a time
    columns: int  # parameters of the gradients that are contracted
    cases: Mapping[str, Case]
    repeats: int
    cost_repeats: int
    base: Mapping[str, int]
    varied: Mapping[str, tuple[int, ...]]
    gpu_shape: tuple[int, int]
    gpu_large: int  # examples
    gpu_batches: tuple[int, ...]
    in_process: bool  # what contenders run in
    neural_tangents: str = ""  # Python that has it
    structured: str = ""  # Python that has it with structured derivatives
    fewer: Mapping[str, int] = field(default_factory=dict)  # turns of the cases that take long
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # contenders, by case
    figure: Path = Path("ntk_cost.svg")


SMALL = {"width": 256, "layers": 4, "vocabulary": 2048}
FULL = Plan(
    gpt2={},
    shape=(64, 64),
    batches=(1, 4, 8),
    columns=4 * 2**20,
    cases={
        "transformer, loss": Case("loss", 64, 4, 64, **SMALL),
        "transformer, 8 labels": Case("labels", 16, 4, 64, outputs=8, **SMALL),
        "transformer, loss of 16 tokens": Case("loss", 64, 8, 16, **SMALL),
        "transformer, loss of 512 examples": Case("loss", 512, 4, 32, **SMALL),
        "mlp": Case("mlp", 16, 4, 784, width=1024, layers=3, outputs=10),
    },
    repeats=3,
    cost_repeats=2,
    base={"examples": 32, "tokens": 32, "outputs": 1, **SMALL},
    varied={
        "examples": (16, 32, 64, 128),
        "tokens": (16, 32, 64, 128),
        "width": (64, 128, 256, 512),
        "outputs": (1, 2, 4, 8),
    },
    gpu_shape=(1024, 128),
    gpu_large=4096,
    gpu_batches=(1, 8, 32),
    in_process=False,
    fewer={"transformer, loss of 512 examples": 2},
    left_out={  # those that take minutes, most of them to compile
        "transformer, 8 labels": ("torch.func, compiled",),
        "transformer, loss of 512 examples": (
            "jax.jacrev, contraction",
            "torch.func, contraction",
            "torch.func, compiled",
        ),
    },
)
TINY = {"width": 16, "layers": 1, "vocabulary": 32}
QUICK = Plan(
    gpt2={"vocab_size": 32, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 4},  # that of `base`
    shape=(4, 8),
    batches=(2,),
    columns=2**10,
    cases={"transformer": Case("loss", 4, 2, 8, **TINY)},
    repeats=1,
    cost_repeats=1,
    base={"examples": 4, "tokens": 8, "outputs": 1, **TINY},
    varied={"examples": (4,), "tokens": (8,), "width": (16,), "outputs": (1,)},
    gpu_shape=(8, 8),
    gpu_large=16,
    gpu_batches=(1, 2),
    in_process=True,
    left_out={"transformer": ("torch.func, compiled",)},
)


def benchmark(
    parts: tuple[Part, ...] = ("floor", "peers", "cost", "gpu"),
    quick: bool = False,
    out: Path = Path("benchmarks/results/ntk.json"),
    peers_env: Path = Path("build/neural-tangents"),
) -> None:
    """Measure, print a table, and write JSON, and beside it a figure of what kernels cost.

    Args:
        parts: What is measured: floor, peers and cost on the CPU, and, where JAX has one, kernels on a GPU.
        quick: Only try the script on tiny models; one process does all parts, and the numbers mean nothing.
        out: File to write.
        peers_env: Folder of the environment that neural-tangents is installed into, unless quick.
    """
    plan = replace(QUICK if quick else FULL, figure=out.with_name("ntk_cost.svg"))
    if not quick:
        refuse_unless_idle()
    if "peers" in parts and not quick:
        older = peers_env.with_name(f"{peers_env.name}-structured")
        pythons = {
            "neural_tangents": install_neural_tangents(peers_env),
            "structured": install_neural_tangents(older, STRUCTURED),
        }
        plan = replace(plan, **pythons)
    run_parts(
        "ntk",
        MEASURES,
        plan,
        parts,
        out,
        quick=quick,
        notes=NOTES,
        packages=PACKAGES,
        targets=targets,
        columns=COLUMNS,
    )


def floor(plan: Plan) -> Json:
    """Times of GPT-2's kernel on the CPU, and of what it takes at least."""
    use_cpu()
    f, params, xs = gpt2_loss(plan, plan.shape)
    before = peak_memory_gb()
    call = partial(ntk, f, params, xs)
    call()
    seconds, theta = timed(call)
    ours = summary([seconds]) | {"peak_gb": peak_memory_gb() - before, "verified_s": theta.verified.seconds}
    return beside_floor(f, params, xs, plan, plan.batches, ours)


def gpu(plan: Plan) -> Json | None:
    """The same on a GPU, and a large kernel in limited memory; None without a GPU."""
    if jax.default_backend() != "gpu":
        return None
    f, params, xs = gpt2_loss(plan, (plan.gpu_large, plan.gpu_shape[1]))
    limit = 40_000_000_000
    seconds, _ = timed(lambda: ntk(f, params, xs, memory_limit=limit))
    large = {"batch": [plan.gpu_large, plan.gpu_shape[1]], "memory_limit": limit, "seconds": seconds}
    large["peak_gb"] = device_peak_gb()  # before anything takes more
    xs = {name: array[: plan.gpu_shape[0]] for name, array in xs.items()}
    call = partial(ntk, f, params, xs)
    call()
    ours = summary([timed(call)[0]]) | {"peak_gb": device_peak_gb()}
    known = {"device": jax.devices()[0].device_kind, "large": large}
    return known | beside_floor(f, params, xs, plan, plan.gpu_batches, ours)


def gpt2_loss(plan: Plan, shape: tuple[int, int]) -> tuple[Any, Any, Json]:
    """GPT-2's loss, its parameters, and examples."""
    config = GPT2Config(bos_token_id=0, eos_token_id=0, **plan.gpt2)
    model = lensjax.models.from_config(config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, shape)
    return loss(model), model.params, {"input_ids": ids}


def device_peak_gb() -> float:
    return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9


def beside_floor(f: Any, params: Any, xs: Any, plan: Plan, batches: tuple[int, ...], ours: Json) -> Json:
    """The kernel's time beside those of its floor."""
    shape, size = xs["input_ids"].shape, parameters(params)
    gradients = gradient_times(f, params, xs, batches)
    contraction = contraction_times(shape[0], min(size, plan.columns), plan.repeats)
    least = min(times["median_s"] for times in contraction.values()) * size / min(size, plan.columns) / 2
    floor_s = gradients["median_s"] + least
    flops = ntk_flops(f, params, xs)
    return {
        "batch": list(shape),
        "parameters": size,
        "lensjax": ours | {"over_floor": ours["median_s"] / floor_s, "flops": float(flops)},
        "floor_s": floor_s,
        "gradients": gradients,
        "contraction_s": least,
        "contraction": {"columns": min(size, plan.columns), **contraction},
    }


def gradient_times(f: Any, params: Any, xs: Any, batches: tuple[int, ...]) -> Json:
    """Seconds of the gradients of all examples, so many at a time as are the fastest."""
    programs = {batch: jax.jit(jax.vmap(jax.grad(f), (None, 0)) if batch > 1 else jax.grad(f)) for batch in batches}
    examples = len(xs["input_ids"])

    def some(batch: int, start: int = 0) -> None:
        rows = slice(start, start + batch) if batch > 1 else start
        jax.block_until_ready(programs[batch](params, {name: array[rows] for name, array in xs.items()}))

    for batch in batches:
        some(batch)  # compile
    each = {batch: timed(partial(some, batch))[0] / batch for batch in batches}
    best = min(each, key=lambda batch: each[batch])
    assert examples % best == 0, f"{examples} examples are not batches of {best}"
    seconds, _ = timed(lambda: [some(best, start) for start in range(0, examples, best)])
    return summary([seconds]) | {"at_a_time": best, "each_s": {str(batch): each[batch] for batch in batches}}


def contraction_times(examples: int, columns: int, repeats: int) -> Json:
    """Seconds of X Xᵀ as one product, and as the sum of products of a few columns."""
    x = jax.random.normal(jax.random.key(0), (examples, columns))

    @jax.jit
    def one(x: jax.Array) -> jax.Array:
        return jnp.matmul(x, x.T, precision="highest")

    @jax.jit
    def several(x: jax.Array) -> jax.Array:
        short = x.reshape(examples, -1, math.gcd(columns, 4096))
        return jnp.einsum("npc,mpc->pnm", short, short, precision="highest").sum(0)

    contenders = {"one": partial(one, x), "several": partial(several, x)}
    return warm({name: lambda call=call: jax.block_until_ready(call()) for name, call in contenders.items()}, repeats)


def peers(plan: Plan) -> Json:
    """Times and memory of every contender in every case."""
    use_cpu()
    names, installed, missing = [*ntk_peers.JAX], {}, []
    if find_spec("torch"):
        names += ntk_peers.TORCH
        installed["torch"] = {"torch": version("torch")}
    else:
        missing.append("torch")
    if plan.neural_tangents:
        names += ntk_peers.NEURAL_TANGENTS
        installed["neural-tangents"] = dict(package.split("==") for package in NEURAL_TANGENTS)
    else:
        missing.append("neural-tangents")
    if plan.structured:
        installed["neural-tangents, structured derivatives"] = dict(package.split("==") for package in STRUCTURED)
    else:
        missing.append("neural-tangents, structured derivatives")

    def contenders(title: str, case: Case) -> list[str]:
        structured = [*ntk_peers.STRUCTURED] if plan.structured and case.kind == "mlp" else []
        return [name for name in [*names, *structured] if name not in plan.left_out.get(title, ())]

    found = {
        title: peers_case(case, contenders(title, case), plan, plan.fewer.get(title, plan.repeats))
        for title, case in plan.cases.items()
    }
    known = {"repeats": plan.repeats, "threads": os.cpu_count()}
    return known | {"peers": installed, "missing": missing, **found}


def peers_case(case: Case, names: list[str], plan: Plan, repeats: int) -> Json:
    """Times, their spread, and memory of every contender; most must have the kernel that lensjax has."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        size = ntk_peers.write_case(case, folder)

        def compute(name: str) -> Callable[[], Json]:
            if plan.in_process:
                return ntk_peers.prepare(name, folder)
            return stack.enter_context(contender(name, folder, plan.neural_tangents, plan.structured))

        runs = {name: compute(name) for name in names}
        last: dict[str, Json] = {}
        measured: dict[str, list[float]] = {name: [] for name in names}

        def seconds(name: str) -> float:
            last[name] = runs[name]()
            scale = (case.examples / case.few) ** 2 if name in ntk_peers.VECTOR_PRODUCTS else 1.0
            measured[name].append(last[name]["seconds"] * scale)
            return measured[name][-1]

        failed: dict[str, str] = {}
        for name in names:  # a turn that does not count
            try:
                runs[name]()
            except RuntimeError as error:
                failed[name] = str(error).strip().splitlines()[-1]
        names = [name for name in names if name not in failed]
        times = compared({name: partial(seconds, name) for name in names}, repeats)
        kernels = {name: np.load(ntk_peers.kernel_file(name, folder)) for name in names}
    ours, *others = names
    for name in names:
        times[name] |= {"peak_gb": last[name]["peak_gb"], "max_s": max(measured[name]), "turns": repeats}
    differences = {name: difference(kernels[ours], kernels[name]) for name in others}
    for name in others:
        times[name] |= {
            "ratio_of_memory": times[name]["peak_gb"] / times[ours]["peak_gb"],
            "max_relative_difference": differences[name],
        }
    agreeing = [name for name in others if differences[name] <= AGREE]
    assert len(agreeing) > len(others) / 2, f"the kernel is not that of most contenders: {differences}"
    found = {
        "parameters": size,
        "max_relative_difference": max(differences[name] for name in agreeing),
        "wrong": [name for name in others if name not in agreeing],
        "failed": failed,
        "best_peer": min(agreeing, key=lambda name: times[name]["median_s"]),
    }
    return asdict(case) | found | times


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference between a kernel and that of its first examples, over its largest entry."""
    ours = ours[: len(theirs), : len(theirs)]
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def cost(plan: Plan) -> Json:
    """Times of kernels of GPT-2s where examples, tokens, width and labels vary, each alone."""
    use_cpu()
    known: dict[str, Json] = {}

    def point(name: str, value: int) -> Json:
        sizes = {**plan.base, name: value}
        key = f"{sizes}, {name == 'outputs'}"
        if key not in known:
            known[key] = cost_point(sizes, labels=name == "outputs", repeats=plan.cost_repeats)
        return {"value": value, **known[key]}

    found: Json = {"repeats": plan.cost_repeats, "base": dict(plan.base)}
    for name, values in plan.varied.items():
        points = [point(name, value) for value in values]
        found[name] = {"exponent": slope(points[-2:]), "points": points}
    draw(found, plan)
    return found


def cost_point(sizes: Mapping[str, int], *, labels: bool, repeats: int) -> Json:
    """Times of a kernel of the loss, or of the logits of labels."""
    config = GPT2Config(
        vocab_size=sizes["vocabulary"],
        n_positions=sizes["tokens"],
        n_embd=sizes["width"],
        n_layer=sizes["layers"],
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = lensjax.models.from_config(config)
    f = label_logits(model, range(sizes["outputs"])) if labels else loss(model)
    tokens = sizes["tokens"]
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (sizes["examples"], tokens))
    last = np.where(np.arange(tokens) == tokens - 1, ids, -100)  # the token that a label takes the place of
    xs = {"input_ids": ids} | ({"labels": last} if labels else {})
    times = warm({"ntk": partial(ntk, f, model.params, xs)}, repeats)["ntk"]
    return {"parameters": parameters(model.params), **times}


def slope(points: list[Json]) -> float | None:
    """Of seconds against values, in log–log; None of one point."""
    if len(points) < 2:
        return None
    (x, y), (u, v) = (np.log([point["value"], point["median_s"]]) for point in points)
    return float((v - y) / (u - x))


def draw(found: Json, plan: Plan) -> None:
    """A figure of seconds against what varies."""
    with panels(len(plan.varied), (9, 2.4), plan.figure) as axes:
        for axis, name in zip(axes, plan.varied, strict=True):
            points = found[name]["points"]
            axis.loglog([point["value"] for point in points], [point["median_s"] for point in points], "o-")
            axis.set_xticks(plan.varied[name], [str(value) for value in plan.varied[name]])
            axis.set_xlabel(name)


def parameters(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def targets(parts: Mapping[str, Json]) -> list[Promise]:
    """What we promised ourselves, beside what was measured."""
    promised: list[Promise] = []
    for part, limit in (("floor", 2.0), ("gpu", 1.5)):
        if part in parts:
            promised.append((f"time of {part}, over the least", limit, parts[part]["lensjax"]["over_floor"]))
    if "gpu" in parts:
        promised.append(("GB of a large kernel on a GPU", 40.0, parts["gpu"]["large"]["peak_gb"]))
    for title, case in parts.get("peers", {}).items():
        if title.startswith("transformer") or title == "mlp":
            best, limit = case[case["best_peer"]], 0.1 if title == "mlp" else 0.5
            promised.append((f"time of {title}, over the best peer's", limit, 1 / best["ratio_within_turns"]))
    return promised


MEASURES: Mapping[Part, Callable[[Plan], Json | None]] = {
    "floor": floor,
    "peers": peers,
    "cost": cost,
    "gpu": gpu,
}


if __name__ == "__main__":
    tyro.cli(benchmark)
