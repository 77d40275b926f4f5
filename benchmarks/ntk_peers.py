"""Contenders of `ntk.py`: ways to compute the same neural tangent kernel of the same function of the same weights.

    python benchmarks/ntk_peers.py CONTENDER FOLDER

computes the kernel of the case in FOLDER once for every line on its standard input, and answers each with seconds and
memory as JSON. It needs NumPy and what the contender needs; an old JAX will do.
"""

import contextlib
import importlib
import itertools
import json
import math
import os
import resource
import sys
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

Arrays = Mapping[str, np.ndarray]
Kernel = Callable[[], Any]

_AT_ONCE = 4  # vectors that are multiplied by a kernel together
_CHUNK = 8  # examples whose Jacobians are computed together


@dataclass(frozen=True)
class Case:
    """A function and examples to compute a kernel of, whose trace over outputs is wanted.

    Attributes:
      kind: Of a GPT-2, its loss or the logits of `outputs` labels; or an MLP.
      examples: How many, of `length` tokens, or numbers for an MLP.
      few: To how many of them those contenders are put that multiply by unit vectors.
    """

    kind: Literal["loss", "labels", "mlp"]
    examples: int
    few: int
    length: int
    width: int
    layers: int
    outputs: int = 1
    vocabulary: int = 0
    heads: int = 4


def write_case(case: Case, folder: Path) -> int:
    """Write a case, with random weights and examples, for contenders to read; the number of parameters."""
    weights, xs = _arrays(case, np.random.default_rng(0))
    (folder / "case.json").write_text(json.dumps(asdict(case)), encoding="utf-8")
    np.savez(folder / "weights.npz", **weights)
    np.save(folder / "xs.npy", xs)
    return sum(weight.size for weight in weights.values())


def prepare(name: str, folder: Path) -> Callable[[], dict[str, float]]:
    """What computes the kernel, writes it to the folder, and gives seconds and memory.

    That is the most memory that the process has had, over what it had when all was loaded and nothing compiled, and
    at least a megabyte.
    """
    case = Case(**json.loads((folder / "case.json").read_text(encoding="utf-8")))
    weights, xs = dict(np.load(folder / "weights.npz")), np.load(folder / "xs.npy")
    compute = CONTENDERS[name](case, weights, xs[: case.few] if name in VECTOR_PRODUCTS else xs)
    before = _peak_gb()

    def run() -> dict[str, float]:
        start = time.perf_counter()
        kernel = np.asarray(compute())
        seconds = time.perf_counter() - start
        np.save(kernel_file(name, folder), kernel)
        return {"seconds": seconds, "peak_gb": max(_peak_gb() - before, 1e-3)}

    return run


def kernel_file(name: str, folder: Path) -> Path:
    return folder / f"{name}.npy"


def _arrays(case: Case, rng: np.random.Generator) -> tuple[Arrays, np.ndarray]:
    def kernel(inputs: int, outputs: int) -> np.ndarray:
        return rng.normal(0, inputs**-0.5, (inputs, outputs)).astype(np.float32)

    width, weights = case.width, {}
    if case.kind == "mlp":
        sizes = [case.length, *[width] * (case.layers - 1), case.outputs]
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            weights |= {f"{i}.kernel": kernel(inputs, outputs), f"{i}.bias": np.zeros(outputs, np.float32)}
        return weights, rng.normal(size=(case.examples, case.length)).astype(np.float32)
    for name, rows in (("tokens", case.vocabulary), ("positions", case.length)):
        weights[name] = rng.normal(0, 0.02, (rows, width)).astype(np.float32)
    maps = {"qkv": (1, 3), "out": (1, 1), "up": (1, 4), "down": (4, 1)}
    for i in range(case.layers):
        for name, (inputs, outputs) in maps.items():
            weights[f"{i}.{name}.kernel"] = kernel(inputs * width, outputs * width)
            weights[f"{i}.{name}.bias"] = np.zeros(outputs * width, np.float32)
    for name in ["norm", *(f"{i}.norm{j}" for i in range(case.layers) for j in (1, 2))]:
        weights |= {f"{name}.scale": np.ones(width, np.float32), f"{name}.bias": np.zeros(width, np.float32)}
    return weights, rng.integers(0, case.vocabulary, (case.examples, case.length)).astype(np.int32)


def jax_function(case: Case) -> Callable[[Any, Any], Any]:
    """(parameters, example or examples) → [outputs] or [examples, outputs], in JAX of any version."""
    import jax
    import jax.numpy as jnp

    def linear(p: Any, name: str, x: Any) -> Any:
        return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]

    def norm(p: Any, name: str, x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
        return scaled * p[f"{name}.scale"] + p[f"{name}.bias"]

    def attention(p: Any, i: int, x: Any) -> Any:
        qkv = linear(p, f"{i}.qkv", x)
        q, k, v = (y.reshape(*y.shape[:-1], case.heads, -1) for y in jnp.split(qkv, 3, axis=-1))
        scores = jnp.einsum("...qhd,...khd->...hqk", q, k) / math.sqrt(q.shape[-1])
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        return linear(p, f"{i}.out", jnp.einsum("...hqk,...khd->...qhd", weights, v).reshape(x.shape))

    def gpt2(p: Any, ids: Any) -> Any:
        x = p["tokens"][ids] + p["positions"][: ids.shape[-1]]
        for i in range(case.layers):
            x = x + attention(p, i, norm(p, f"{i}.norm1", x))
            x = x + linear(p, f"{i}.down", jax.nn.gelu(linear(p, f"{i}.up", norm(p, f"{i}.norm2", x))))
        logits = norm(p, "norm", x) @ p["tokens"].T
        if case.kind == "labels":
            return logits[..., -1, : case.outputs]
        found = jax.nn.log_softmax(logits[..., :-1, :])
        return -jnp.take_along_axis(found, ids[..., 1:, None], axis=-1).mean(-2)

    def mlp(p: Any, x: Any) -> Any:
        for i in range(case.layers):
            x = linear(p, str(i), jax.nn.relu(x) if i else x)
        return x

    return mlp if case.kind == "mlp" else gpt2


def torch_function(case: Case) -> Callable[[Any, Any], Any]:
    """The same in torch, of one example."""
    import torch
    from torch.nn.functional import gelu, layer_norm, log_softmax

    def linear(p: Any, name: str, x: Any) -> Any:
        return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]

    def norm(p: Any, name: str, x: Any) -> Any:
        return layer_norm(x, x.shape[-1:], p[f"{name}.scale"], p[f"{name}.bias"], 1e-5)

    def attention(p: Any, i: int, x: Any) -> Any:
        time, width = x.shape
        q, k, v = (y.reshape(time, case.heads, -1) for y in linear(p, f"{i}.qkv", x).chunk(3, -1))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        hidden = torch.ones(time, time, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        return linear(p, f"{i}.out", torch.einsum("hqk,khd->qhd", weights, v).reshape(time, width))

    def gpt2(p: Any, ids: Any) -> Any:
        x = p["tokens"][ids] + p["positions"][: len(ids)]
        for i in range(case.layers):
            x = x + attention(p, i, norm(p, f"{i}.norm1", x))
            up = linear(p, f"{i}.up", norm(p, f"{i}.norm2", x))
            x = x + linear(p, f"{i}.down", gelu(up, approximate="tanh"))
        logits = norm(p, "norm", x) @ p["tokens"].T
        if case.kind == "labels":
            return logits[-1, : case.outputs]
        found = log_softmax(logits[:-1], -1)
        return -found.gather(-1, ids[1:, None]).mean(-2)

    def mlp(p: Any, x: Any) -> Any:
        for i in range(case.layers):
            x = linear(p, str(i), torch.relu(x) if i else x)
        return x

    return mlp if case.kind == "mlp" else gpt2


def _lensjax(case: Case, weights: Arrays, xs: np.ndarray) -> Kernel:
    import jax

    from lensjax.curvature.ntk.ntk import ntk

    f, params = jax_function(case), jax.device_put(weights)
    return lambda: ntk(f, params, xs)


def _jacrev(case: Case, weights: Arrays, xs: np.ndarray) -> Kernel:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def kernel(params: Any, xs: Any) -> Any:
        jacobians = jax.tree_util.tree_leaves(jax.vmap(jax.jacrev(jax_function(case)), (None, 0))(params, xs))
        flat = [jacobian.reshape(*jacobian.shape[:2], -1) for jacobian in jacobians]
        return sum(jnp.einsum("nkp,mkp->nm", jacobian, jacobian) for jacobian in flat)

    params = jax.device_put(weights)
    return lambda: kernel(params, xs)


def _vector_products(case: Case, weights: Arrays, xs: np.ndarray) -> Kernel:
    import jax
    import jax.numpy as jnp

    from lensjax.curvature.ntk import ntk_vp

    shape = len(xs), case.outputs

    @jax.jit
    def kernel(params: Any) -> Any:
        units = jnp.eye(math.prod(shape)).reshape(-1, *shape)
        columns = jax.lax.map(ntk_vp(jax_function(case), params, xs), units, batch_size=_AT_ONCE)
        return jnp.einsum("mknk->mn", columns.reshape(*shape, *shape))

    params = jax.device_put(weights)
    return lambda: kernel(params)


def _torch_contraction(*, chunk: int | None = None, compiled: bool = False) -> Callable[..., Kernel]:
    def make(case: Case, weights: Arrays, xs: np.ndarray) -> Kernel:
        import torch

        f, params, xs = torch_function(case), *_torch_arrays(weights, xs)

        def kernel(params: Any, xs: Any) -> Any:
            jacobians = torch.func.vmap(torch.func.jacrev(f), (None, 0), chunk_size=chunk)(params, xs)
            flat = [jacobian.flatten(2) for jacobian in jacobians.values()]
            return sum(torch.einsum("nkp,mkp->nm", jacobian, jacobian) for jacobian in flat)

        fast = torch.compile(kernel, dynamic=False) if compiled else kernel
        return lambda: fast(params, xs)

    return make


def _torch_vector_products(case: Case, weights: Arrays, xs: np.ndarray) -> Kernel:
    import torch
    from torch.func import jvp, vjp, vmap

    f, params, xs = torch_function(case), *_torch_arrays(weights, xs)

    def pair(one: Any, other: Any) -> Any:
        value, pull = vjp(lambda p: f(p, one), params)

        def column(unit: Any) -> Any:
            return jvp(lambda p: f(p, other), (params,), pull(unit))[1]

        return vmap(column)(torch.eye(value.numel())).diagonal().sum()

    return lambda: vmap(vmap(pair, (None, 0)), (0, None))(xs, xs)


def _torch_arrays(weights: Arrays, xs: np.ndarray) -> tuple[Any, Any]:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    examples = torch.from_numpy(xs)
    params = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    return params, examples if examples.is_floating_point() else examples.long()


def _neural_tangents(implementation: str) -> Callable[[Case, Arrays, np.ndarray], Kernel]:
    def make(case: Case, weights: Arrays, xs: np.ndarray) -> Kernel:
        import jax

        neural_tangents = import_neural_tangents()
        kind = neural_tangents.NtkImplementation[implementation]
        made = neural_tangents.empirical_ntk_fn(jax_function(case), trace_axes=(-1,), vmap_axes=0, implementation=kind)
        kernel = jax.jit(lambda xs, params: made(xs, None, params) * case.outputs)  # it gives the mean over outputs
        params = jax.device_put(weights)
        return lambda: kernel(xs, params)

    return make


def import_neural_tangents() -> Any:
    """The package, without a part of it that imports TensorFlow."""
    experimental = "neural_tangents.experimental"
    sys.modules[experimental] = types.ModuleType(experimental)
    return importlib.import_module("neural_tangents")


JAX = {"lensjax": _lensjax, "jax.jacrev, contraction": _jacrev, "ntk_vp, vector products": _vector_products}
TORCH = {
    "torch.func, contraction": _torch_contraction(),
    "torch.func, chunked": _torch_contraction(chunk=_CHUNK),
    "torch.func, compiled": _torch_contraction(compiled=True),
    "torch.func, vector products": _torch_vector_products,
}
STRUCTURED = {"neural-tangents, structured derivatives": _neural_tangents("STRUCTURED_DERIVATIVES")}
NEURAL_TANGENTS = {
    "neural-tangents, contraction": _neural_tangents("JACOBIAN_CONTRACTION"),
    "neural-tangents, vector products": _neural_tangents("NTK_VECTOR_PRODUCTS"),
}
CONTENDERS = JAX | TORCH | NEURAL_TANGENTS | STRUCTURED
VECTOR_PRODUCTS = [name for name in CONTENDERS if name.endswith("vector products")]


def _peak_gb() -> float:
    """Most resident memory of this program; getrusage would count that of the process which started it."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _serve(name: str, folder: Path) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print
        run = prepare(name, folder)
        for _ in sys.stdin:
            print(json.dumps(run()), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]))
