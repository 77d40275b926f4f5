"""Do kernels and Hessians of large models fit the chips of a TPU pod, and how long do they take there at least?

    pip install 'jax[tpu]'
    python benchmarks/curvature_pods.py --out benchmarks/results/curvature_pods.json [--case 0 1]

Compiles for the pod's topology what `ntk`, a product of `hvp_fn` with `Batches`, and a step of Lanczos' method run;
no TPU is needed. Everything is in float32, and every layer is computed again in backward passes. Rows that are there
already stay, so that an interrupted run goes on; `--case` measures anew.

Memory is the compiler's own account of the program that takes most, with what is held beside it. Times are bounds from
below, of all programs as often as they run (see docs/pods.md); the kernel's own checks are not among them.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cases import parser_of, run_cases
from parts import rounded
from pods import LLAMA_7B, T5_11B, TINY

from lensjax.core.errors import InputError
from lensjax.core.pytrees import PyTree, device_bytes, path_name
from lensjax.core.roofline.counters import count_program
from lensjax.core.roofline.estimate import Layout, estimate_step
from lensjax.core.roofline.hlo import gathered
from lensjax.core.topologies import Topology, find_topology
from lensjax.curvature import hvp, lanczos
from lensjax.curvature.jaxpr.program import traced_program
from lensjax.curvature.ntk.ntk import _contract, _room_shapes
from lensjax.curvature.ntk.plan import Job, _fill, prepare, shared_out
from lensjax.curvature.streaming import layout
from lensjax.measure.functionals.loss import loss
from lensjax.models.model import Model, abstract_model
from lensjax.models.options import make_options
from lensjax.models.sharding import make_mesh
from lensjax.train.memory import NoRoom, compiled_from, program_bytes
from lensjax.train.placement import BatchPlacement

FILL = jax.jit(_fill, static_argnums=(0, 1, 2, 3), donate_argnums=4)  # as `ntk` compiles it for TPUs
FREE = 0.8  # share of a chip's memory, less the parameters, that a kernel may take, as `ntk` takes by default


@dataclass(frozen=True)
class Case:
    """What is compiled.

    Attributes:
      what: A kernel of `examples` examples, or of a loss on as many as there are shards of the batch, a product with
        its Hessian or a step of Lanczos' method with `examples` vectors in the basis.
    """

    what: Literal["kernel", "product", "lanczos"]
    model: str
    config: Any
    topology: str
    mesh: str
    lengths: tuple[int, ...]
    examples: int = 0

    @property
    def title(self) -> str:
        tokens = " + ".join(map(str, self.lengths))
        what = {
            "kernel": f"NTK of {self.examples:,} examples",
            "product": "product with the Hessian",
            "lanczos": f"Lanczos step with {self.examples} vectors",
        }[self.what]
        return f"{self.model}, {what}, {tokens} tokens, {self.topology}, {self.mesh}"


PODS = (("v5e:16x16", "fsdp=256"), ("v5p:8x8x8", "fsdp=512"))
CASES = [
    *(Case("kernel", "Llama 2 7B", LLAMA_7B, *pod, (512,), 1024) for pod in PODS),
    *(Case("product", "T5 11B", T5_11B, *pod, (512, 128)) for pod in PODS),
    *(Case("lanczos", "T5 11B", T5_11B, *pod, (512, 128), 28) for pod in PODS),
    Case("product", "T5 11B", T5_11B, "v5e:16x16:2", "data=2,fsdp=256", (512, 128)),
]
QUICK = [
    Case("kernel", "tiny", TINY, "v5e:2x2", "fsdp=4", (32,), 8),
    Case("product", "tiny", TINY, "v5e:2x2", "fsdp=2,tensor=2", (32,)),
    Case("lanczos", "tiny", TINY, "v5e:2x2", "fsdp=4", (32,), 4),
]


class Piece(NamedTuple):
    """A program, how often it runs, and bytes that are held on a chip beside what it takes."""

    name: str
    lowered: jax.stages.Lowered
    runs: int
    beside: int = 0


def abstract(case: Case, pod: Topology) -> Model:
    """The model without weights, on the pod."""
    mesh = make_mesh(case.mesh, pod.devices)
    return abstract_model(case.config, make_options("float32", remat="full", mesh=mesh))


def of_kernel(case: Case, model: Model, pod: Topology) -> Iterator[Piece]:
    """What `ntk` runs: factors of the gradients of a batch of examples, and their contraction."""
    ids = np.zeros((case.examples, *case.lengths), np.int32)
    weights = device_bytes(model.params)
    limit = int(FREE * (pod.chip.memory_gb * 1e9 - weights))
    job = prepare(loss(model), model.params, {"input_ids": ids, "labels": ids}, None, "exact", limit)
    some = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((job.batch, *x.shape[1:]), x.dtype, sharding=shared_out(job.mesh)), job.examples
    )
    zero = jax.ShapeDtypeStruct((), jnp.int32)
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(model.params)]
    for number, part in enumerate(job.parts):
        room = held_factors(job, part, model.params)
        held = None if job.batches == 1 else room
        arguments = job.plan, part, job.dtype, job.mesh, held, job.captured, model.params, some, zero, zero
        yield Piece(f"factors {number}", FILL.lower(*arguments), job.batches * part.pieces)
        whole = device_bytes(room)
        for leaf, factors in zip(part.leaves, room, strict=True):
            lowered = _contract.lower(factors, *job.contraction(part, leaf, factors, "trace"))
            beside = weights + whole - device_bytes(factors)
            yield Piece(f"contraction of {names[leaf.number]}", lowered, part.pieces, beside)


def held_factors(job: Job, part: Any, params: PyTree) -> PyTree:
    """Shapes of the factors of all batches, which the chips share."""
    where = shared_out(job.mesh)
    shapes = _room_shapes(job, part, params)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes)


def of_product(case: Case, model: Model, pod: Topology) -> Iterator[Piece]:
    """What a product of `hvp_fn` with a batch of `Batches` runs."""
    params, mesh = model.params, model.options.mesh
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    shapes = BatchPlacement(mesh, shards).shapes(case.lengths)
    batch = {name: leaf for name, leaf in shapes.items() if name not in ("position_ids", "segment_ids")}
    program, captured = traced_program(model.loss, params, batch, (0,))
    arguments = hvp._Hessian(), program, captured, params, batch, layout(params), params
    yield Piece("product", hvp._direct.lower(*arguments), 1)


def of_lanczos(case: Case, model: Model, pod: Topology) -> Iterator[Piece]:
    """What the last step before a restart runs: the product, and what makes the next vector of it."""
    params, size = model.params, case.examples
    like = jax.eval_shape(lambda: lanczos._zeros((None,) * len(layout(params)), size, lanczos._BITS, params))
    vectors = jax.tree.map(
        lambda x, leaf: jax.ShapeDtypeStruct(
            x.shape,
            x.dtype,
            sharding=jax.NamedSharding(leaf.sharding.mesh, jax.P(None, *leaf.sharding.spec)),
        ),
        like,
        params,
    )
    number, basis, one = jax.ShapeDtypeStruct((), jnp.int32), device_bytes(vectors), device_bytes(params)
    for piece in of_product(case, model, pod):
        yield piece._replace(beside=basis + 2 * one)  # the last two vectors, of which one is its argument
    yield Piece("append", lanczos._put.lower(vectors, number, params), 1, 3 * one)
    yield Piece("norm", lanczos._dot.lower(params, params), 3, basis + 3 * one)
    yield Piece("recursion", lanczos._recurred.lower(params, params, params, 0.0), 1, basis + one)
    whole = jax.jit(lambda vectors, v: lanczos._orthogonalized.__wrapped__(vectors, size, v), donate_argnums=1)
    yield Piece("orthogonalisation", whole.lower(vectors, params), 2, 3 * one)


PIECES = {"kernel": of_kernel, "product": of_product, "lanczos": of_lanczos}


def measure(case: Case) -> dict[str, Any]:
    """Compile all programs of a case, and add up what they take."""
    pod = find_topology(case.topology)
    model = abstract(case, pod)
    mesh = model.options.mesh
    where = Layout.of(list(mesh.devices.flat), pod.chip)
    stacked = {leaf.shape for leaf in jax.tree.leaves(model.params) if not leaf.sharding.is_fully_replicated}
    known: dict[str, tuple[int, str]] = {}
    programs: list[dict[str, Any]] = []
    sent: dict[str, float] = {}
    whole: set[tuple[int, ...]] = set()
    start = time.process_time()
    for piece in PIECES[case.what](case, model, pod):
        text = piece.lowered.as_text()
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in known:
            compiled = compiled_from(piece.lowered)
            known[key] = program_bytes(compiled), compiled.as_text() or ""
        memory, text = known[key]
        counts = count_program(text, dict(mesh.shape))
        found = estimate_step(counts, pod.chip, where)
        whole |= {shape for shape in gathered(text) if shape in stacked and len(shape) > 2}
        for one in counts.collectives:
            name = f"{one.kind} {'·'.join(one.axes)}"
            sent[name] = sent.get(name, 0.0) + piece.runs * one.sent / 1e9
        programs.append(
            {
                "name": piece.name,
                "runs": piece.runs,
                "memory_gb": (memory + piece.beside) / 1e9,
                "tflops": counts.flops / 1e12,
                "passes": 1 + counts.repeated / max(counts.flops, 1),
                "compute_s": found.compute,
                "memory_s": found.memory,
                "core_s": found.core,
                "networks_s": dict(found.networks),
                "exposed_s": found.exposed,
                "seconds": found.seconds,
                "binding": found.binding,
                "endless": counts.endless,
            }
        )
        print(piece.name, json.dumps(rounded(programs[-1])), flush=True)
    return {
        "chips": len(pod.devices),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "parameters_gb": device_bytes(model.params) / 1e9,
        "memory_gb": max(one["memory_gb"] for one in programs),
        "chip_gb": pod.chip.memory_gb,
        "seconds": sum(one["runs"] * one["seconds"] for one in programs),
        "sent_gb": sent,
        "stacked_parameters_gathered_whole": len(whole),
        "cpu_seconds": round(time.process_time() - start, 1),
        "programs": programs,
    }


def fitting(case: Case) -> dict[str, Any]:
    """What a case takes, or why it cannot be."""
    try:
        return measure(case)
    except NoRoom as error:
        problem = str(error) or "the compiler says that it does not fit"
    except InputError as error:
        problem = str(error)
    return {"chips": len(find_topology(case.topology).devices), "problem": problem}


if __name__ == "__main__":
    arguments = parser_of(__doc__).parse_args()
    packages = ("jax", "jaxlib", "libtpu", "flax")
    run_cases(arguments, QUICK if arguments.quick else CASES, fitting, packages, hidden=["programs"])
