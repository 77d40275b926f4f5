"""What taking large vocabularies in chunks of tokens saves in memory, and costs in time.

    python benchmarks/vocabulary.py [--parts memory time gpu] [--quick] [--out FILE]

Every part runs in a fresh process, all but `gpu` on the CPU. Only the parts named are measured anew; the others stay
in the file, each with the machine and the versions that it was measured with. Contenders take turns.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from parts import RATIO, Json, Promise, run_parts, use_cpu, warm
from transformers import GPT2Config

import lensjax.models
from lensjax.curvature.hvp import hvp_fn, softmax_hessian
from lensjax.models import vocabulary
from lensjax.models.gradient import loss_and_gradient
from lensjax.models.losses import token_losses
from lensjax.models.model import Model, abstract_model
from lensjax.models.options import make_options

Part = Literal["memory", "time", "gpu"]
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "transformers", "lensjax")
COLUMNS = {"median s": "median_s", "least s": "min_s", "ratio": "ratio_within_turns"}
WAYS = ("lensjax", "whole")
PUBLISHED_S = 0.0145  # of `product` of `logits`, on an A100

NOTES = {
    "ways": "`lensjax` computes as models do by default: logits of a chunk of tokens at a time, and remat `cheap`; "
    "`whole` has all logits at a time, and keeps every activation (remat `none`)",
    "programs": "`gradient` of the mean loss; `step` the loss and gradient of a training step; `hvp` a product with "
    "the Hessian from scratch; `linearised` what is held for further products; `evaluation` losses and greedy hits",
    "memory": "bytes of temporaries of the compiled program, and of its results where these are held (`linearised`); "
    "parameters, vectors and gradients come on top; `ratio` is that of `whole` over that of lensjax",
    "time": "wall seconds, warm: everything was called once before; float32",
    "ratio": RATIO.replace("the peer", "`whole`"),
    "gpu": "`logits` is the Hessian of the mean cross-entropy in logits of that shape, in float32, times a vector: "
    "`product` by its formula, `differentiated` by jax.jvp of jax.grad; `step` and `hvp` are of GPT-2 small, as on the "
    "CPU, both in the default precision of products",
}


@dataclass(frozen=True)
class Plan:
    """How much is measured, of models of which size."""

    gpt2: Mapping[str, Any]
    memory: tuple[int, int]  # shapes of batches
    time: tuple[int, int]
    gpu: tuple[int, int]
    logits: tuple[int, int]  # tokens and words
    repeats: int
    held: int | None = None  # logits at a time, if not as many as usually


FULL = Plan({}, (8, 512), (4, 512), (16, 1024), (16_384, 50_304), repeats=3)
TINY = {"vocab_size": 96, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
QUICK = Plan(TINY, (2, 16), (2, 16), (2, 16), (32, 96), repeats=1, held=8 * 96)


def benchmark(
    parts: tuple[Part, ...] = ("memory", "time", "gpu"),
    quick: bool = False,
    out: Path = Path("benchmarks/results/vocabulary.json"),
) -> None:
    """Measure, print a table, and write JSON.

    Args:
        parts: What is measured: memory and time on the CPU, and, where JAX has one, on a GPU.
        quick: Only try the script on a tiny model; one process does all parts, and the numbers mean nothing.
        out: File to write.
    """
    run_parts(
        "vocabulary",
        MEASURES,
        QUICK if quick else FULL,
        parts,
        out,
        quick=quick,
        notes=NOTES,
        packages=PACKAGES,
        targets=targets,
        columns=COLUMNS,
    )


@contextlib.contextmanager
def computing(way: str, plan: Plan) -> Iterator[Model]:
    """GPT-2 without weights, which is traced in one of both ways within the context."""
    held = plan.held if way == "lensjax" else 2**62
    config = GPT2Config(bos_token_id=0, eos_token_id=0, **plan.gpt2)
    with contextlib.ExitStack() as stack:
        if held is not None:
            stack.enter_context(mock.patch.multiple(vocabulary, _HELD={}, _ACCELERATOR=held))
        yield abstract_model(config, make_options(remat="cheap" if way == "lensjax" else "none"))


def programs(model: Model) -> dict[str, Callable[..., Any]]:
    """Functions of parameters, a batch and a vector."""
    loss = model.loss
    return {
        "gradient": lambda p, b, v: jax.grad(loss)(p, b),
        "step": lambda p, b, v: loss_and_gradient(model, p, {}, b),
        "hvp": lambda p, b, v: hvp_fn(loss, p, b, mode="direct")(v),
        "linearised": lambda p, b, v: jax.tree.leaves(jax.linearize(lambda q: jax.grad(loss)(q, b), p)[1]),
        "evaluation": lambda p, b, v: model.token_scores(p, b),
    }


def batch_of(shape: tuple[int, int], plan: Plan) -> dict[str, Any]:
    words = plan.gpt2.get("vocab_size", 50_257)
    return {"input_ids": jnp.asarray(np.random.default_rng(0).integers(0, words, shape), jnp.int32)}


def memory(plan: Plan) -> Json:
    """Bytes of compiled programs, both ways."""
    use_cpu()
    found: Json = {"batch": list(plan.memory)}
    for way in WAYS:
        with computing(way, plan) as model:
            for name, program in programs(model).items():
                compiled = jax.jit(program).lower(model.params, batch_of(plan.memory, plan), model.params).compile()
                sizes = compiled.memory_analysis()
                held = sizes.output_size_in_bytes if name == "linearised" else 0
                found.setdefault(name, {})[way] = {"gb": (sizes.temp_size_in_bytes + held) / 1e9}
    for name in programs(model):
        found[name]["ratio"] = found[name]["whole"]["gb"] / found[name]["lensjax"]["gb"]
    return found


def times(plan: Plan, shape: tuple[int, int], names: tuple[str, ...]) -> Json:
    """Seconds of programs, both ways, and how far their results are apart."""
    batch = batch_of(shape, plan)
    found: Json = {"repeats": plan.repeats, "batch": list(shape)}
    params = v = None
    for name in names:
        calls: dict[str, Callable[[], Any]] = {}
        for way in WAYS:
            with computing(way, plan) as model:
                params = params or lensjax.models.from_config(model.config).params
                v = v or jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), params)
                compiled = jax.jit(programs(model)[name]).lower(params, batch, v).compile()
                calls[way] = partial(lambda run, *given: jax.block_until_ready(run(*given)), compiled, params, batch, v)
        sides = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(calls[way]())]) for way in WAYS]
        apart = float(np.linalg.norm(sides[0] - sides[1]) / np.linalg.norm(sides[1]))
        del sides
        found[name] = {**warm(calls, plan.repeats), "difference": apart}
    return found


def on_cpu(plan: Plan) -> Json:
    """Seconds on the CPU."""
    use_cpu()
    return times(plan, plan.time, ("evaluation", "step", "hvp"))


def gpu(plan: Plan) -> Json | None:
    """Seconds on a GPU, and of products with the Hessian in logits; None without a GPU."""
    if jax.default_backend() != "gpu":
        return None
    return {"device": jax.devices()[0].device_kind, **logits(plan), **times(plan, plan.gpu, ("step", "hvp"))}


def logits(plan: Plan) -> Json:
    """Seconds of a product with the Hessian of cross-entropy in logits."""
    tokens, words = plan.logits
    z, u = (jax.random.normal(jax.random.key(seed), plan.logits) for seed in (0, 1))
    labels = jax.random.randint(jax.random.key(2), (1, tokens), 0, words)

    def loss(z: jax.Array) -> jax.Array:
        return token_losses(z[None], labels)[0].mean()

    contenders = {
        "product": jax.jit(lambda z, u: softmax_hessian(z, jnp.full(tokens, 1 / tokens))(u)),
        "differentiated": jax.jit(lambda z, u: jax.jvp(jax.grad(loss), (z,), (u,))[1]),
    }
    one, other = (run(z, u) for run in contenders.values())
    assert np.allclose(one, other, rtol=1e-3, atol=1e-3 / tokens / words), "the two products differ"
    del one, other
    calls = {name: partial(lambda run: jax.block_until_ready(run(z, u)), run) for name, run in contenders.items()}
    return {"logits": {"shape": list(plan.logits), **warm(calls, plan.repeats)}}


def targets(parts: Mapping[str, Json]) -> list[Promise]:
    """What we promised ourselves, beside what was measured."""
    promised: list[Promise] = []
    if "memory" in parts:
        of = {"hvp": "a product", "step": "a training step"}
        promised += [(f"memory of {of[n]}, over that of whole", 1 / 3, 1 / parts["memory"][n]["ratio"]) for n in of]
    for part in ("time", "gpu"):
        for name in ("step", "hvp"):
            if part in parts:
                ratio = parts[part][name]["whole"]["ratio_within_turns"]
                promised.append((f"time of {name} ({part}), over that of whole", 1.0, 1 / ratio))
    if "gpu" in parts:
        seconds = parts["gpu"]["logits"]["product"]["median_s"]
        promised.append(("seconds of a product with the Hessian in logits", PUBLISHED_S, seconds))
    return promised


MEASURES: Mapping[Part, Callable[[Plan], Json | None]] = {"memory": memory, "time": on_cpu, "gpu": gpu}


if __name__ == "__main__":
    tyro.cli(benchmark)
