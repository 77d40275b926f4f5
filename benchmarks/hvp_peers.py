"""Contenders of `hvp.py`: ways to compute the same product with a curvature matrix of the same model and weights.

A contender is given a folder with a model, vectors and token ids (`write_case`), and runs in a process of its own.
"""

import contextlib
import ctypes
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from machine import peak_memory_gb
from parts import Json, timed, use_cpu

import lensjax.models
from lensjax.curvature import hvp as curvature
from lensjax.measure.model_losses import token_cross_entropy
from lensjax.models.model import Batch, Model

Row = Literal["gradient", "hvp", "linearised", "ggn_vp", "fisher_vp", "quadratic_form", "joint", "diagonal"]
ROWS: tuple[Row, ...] = (
    "gradient",
    "hvp",
    "linearised",
    "ggn_vp",
    "fisher_vp",
    "quadratic_form",
    "joint",
    "diagonal",
)
Compute = Callable[[], Any]
_CONFIGS = {"gpt2": transformers.GPT2Config, "t5": transformers.T5Config}
_FUSED = "c_attn"  # queries, keys and values of torch's GPT-2 as one parameter, which lensjax has apart


@dataclass(frozen=True)
class Case:
    """A model and examples.

    Attributes:
      kind, config: Of the model: its family, and what its configuration has otherwise than by default.
      examples, tokens: Of a batch; an encoder–decoder has as many targets as tokens.
      vectors: How many are multiplied one after the other, or together, by what is linearised once.
      few: Examples that diagonal blocks are measured on.
      stride: Of the parameters of peers, each so many-th has its diagonal block measured.
    """

    kind: Literal["gpt2", "t5"]
    config: Mapping[str, Any]
    examples: int
    tokens: int
    vectors: int
    few: int
    stride: int = 1

    def make(self) -> Model:
        """The model, with random weights."""
        special = {"bos_token_id": 0, "eos_token_id": 0} if self.kind == "gpt2" else {"decoder_start_token_id": 0}
        return lensjax.models.from_config(_CONFIGS[self.kind](**special, **self.config))


def random_batch(model: Model, examples: int, tokens: int) -> dict[str, Any]:
    """Examples of random tokens; of an encoder–decoder, with as many targets."""
    random = np.random.default_rng(0)
    names = ["input_ids", "labels"] if model.family.encoder_decoder else ["input_ids"]
    return {name: random.integers(1, model.config.vocab_size, (examples, tokens), np.int32) for name in names}


def random_vector(params: Any, seed: int) -> Any:
    """Normal numbers of standard deviation 0.01, in the shapes of the parameters."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        structure, [0.01 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


def write_case(case: Case, folder: Path) -> Json:
    """Write a case for contenders to read; vectors are models too, so that all read them as they read weights."""
    model = case.make()
    model.save(folder / "model")
    for number in range(case.vectors):
        model.with_params(random_vector(model.params, number)).save(folder / f"vector-{number}")
    np.savez(folder / "batch.npz", **random_batch(model, case.examples, case.tokens))
    (folder / "case.json").write_text(json.dumps(asdict(case)), encoding="utf-8")
    leaves = jax.tree.leaves(model.params)
    layers = curvature.scanned_layers(model.loss, model.params, random_batch(model, 1, case.tokens))
    return {"parameters": sum(leaf.size for leaf in leaves), "layers": sum(length or 1 for length in layers)}


def prepare(row: Row, name: str, folder: Path, cpu: bool = True) -> Callable[[], Json]:
    """What computes a row's product once, and gives seconds, memory, and numbers that should be those of others.

    Memory is the most that the process has during a call, over what it has when weights, vectors and examples are
    loaded and nothing is compiled; that of the device, if this is a GPU. "gradient" stands for lensjax's gradient on
    the row's examples.
    """
    if cpu:
        use_cpu()
    warnings.filterwarnings("ignore")  # of torch, that graphs of gradients are kept
    case = Case(**json.loads((folder / "case.json").read_text(encoding="utf-8")))
    examples = case.few if row == "diagonal" else case.examples
    batch = {key: array[:examples] for key, array in np.load(folder / "batch.npz").items()}
    row = "gradient" if name == "gradient" else row
    vectors = {"gradient": 0, "linearised": case.vectors}.get(row, 1)
    folders = [folder / "model", *(folder / f"vector-{number}" for number in range(vectors))]
    scale, make = _torch(row, name, case, folders, batch) if name in PEERS else (1.0, _lensjax(row, folders, batch))
    before = _memory_gb(cpu)
    computes: list[Compute] = []

    def run() -> Json:
        computes[:] = computes or [make()]
        _forget_peak()
        seconds, numbers = timed(computes[0])
        peak_gb = max(_peak_gb(cpu) - before, 1e-3)
        return {"seconds": scale * seconds, "peak_gb": peak_gb, "numbers": [float(x) for x in numbers()]}

    return run


_runs: list[Callable[[], Json]] = []


def start(*arguments: Any) -> None:
    """`prepare`, in a process that has this one contender."""
    _runs.append(prepare(*arguments))


def again() -> Json:
    """What was prepared, once more."""
    return _runs[0]()


def _lensjax(row: Row, folders: list[Path], batch: Batch) -> Callable[[], Compute]:
    """lensjax's row; the model and the vectors are read now, and all else is done later."""
    model, *vectors = (lensjax.models.load(folder) for folder in folders)
    params, vs = model.params, [vector.params for vector in vectors]
    batch = jax.device_put(batch)
    jax.block_until_ready((params, vs, batch))

    def tokens(params: Any, batch: Batch) -> jax.Array:
        losses, _ = model.token_losses(params, batch)
        return (losses if model.family.encoder_decoder else losses[:, :-1]).ravel()

    def make() -> Compute:
        # Held, as a bound method is made anew wherever it is named, and what is new is compiled anew.
        loss, apply, outputs = model.loss, model.apply, token_cross_entropy(model)
        gradient = jax.jit(jax.grad(loss))
        kept = curvature.hvp_fn(loss, params, batch) if row == "linearised" else None
        products: dict[Row, Callable[[Any], Any] | None] = {
            "gradient": lambda _: gradient(params, batch),
            "hvp": curvature.hvp_fn(loss, params, batch, mode="direct"),
            "linearised": kept,
            "ggn_vp": curvature.ggn_vp_fn(apply, outputs, params, batch, mode="direct"),
            "fisher_vp": curvature.empirical_fisher_vp_fn(tokens, params, batch, mode="direct"),
            "quadratic_form": partial(curvature.quadratic_form, loss, params, batch),
            "joint": partial(curvature.layer_forms, loss, params, batch, block="joint"),
            "diagonal": partial(curvature.layer_forms, loss, params, batch, block="diagonal"),
        }
        product = products[row]
        assert product is not None

        def compute() -> Any:
            for v in vs or [params]:
                found = jax.block_until_ready(product(v))
            return partial(_numbers, row, found, v)

        return compute

    return make


def _numbers(row: Row, found: Any, v: Any) -> Any:
    """What can be compared with other contenders: a norm, forms, or the product of a vector and its product."""
    leaves = jax.tree.leaves(found)
    if row == "gradient":
        return [jnp.sqrt(sum(jnp.vdot(x, x) for x in leaves))]
    if row in ("quadratic_form", "joint", "diagonal"):
        forms = np.concatenate([np.ravel(leaf) for leaf in leaves])
        return [forms.sum()] if row == "joint" else forms
    return [sum(jnp.vdot(x, y) for x, y in zip(leaves, jax.tree.leaves(v), strict=True))]


def _torch(row: Row, name: str, case: Case, folders: list[Path], batch: Batch) -> tuple[float, Callable[[], Compute]]:
    """A contender's row in torch, and how many times the work of what it measures all of it is."""
    import torch

    net, criterion = _network(case, folders[0]), torch.nn.CrossEntropyLoss()
    params = dict(net.named_parameters())
    vectors = [_read(folder, params) for folder in folders[1:]]
    chosen = [n for n, name in enumerate(params) if row != "diagonal" or (n % case.stride == 0 and _FUSED not in name)]
    ids = torch.from_numpy(batch["input_ids"]).long()
    if case.kind == "t5":
        targets = torch.from_numpy(batch["labels"]).long()
        started = torch.cat([torch.zeros_like(targets[:, :1]), targets[:, :-1]], dim=1)
        data = torch.stack([ids, started], dim=1), targets.flatten()
    else:
        data = ids, ids[:, 1:].flatten()
    make = PEERS[name][row]
    return len(params) / len(chosen), partial(make, net, criterion, list(params.values()), chosen, vectors, data)


def _network(case: Case, folder: Path) -> Any:
    """Token ids → logits of all predicted tokens, one after the other, by the transformers library."""
    import torch
    from safetensors.torch import load_file

    kind = transformers.GPT2LMHeadModel if case.kind == "gpt2" else transformers.T5ForConditionalGeneration
    # Other implementations of attention have no forward derivative.
    model = kind._from_config(kind.config_class.from_pretrained(folder), attn_implementation="eager")
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)  # tied ones are stored once

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            if case.kind == "gpt2":
                return self.model(input_ids=x, use_cache=False).logits[:, :-1].flatten(0, 1)
            found = self.model(input_ids=x[:, 0], decoder_input_ids=x[:, 1], use_cache=False)
            return found.logits.flatten(0, 1)

    return Network().eval()


def _read(folder: Path, params: Mapping[str, Any]) -> list[Any]:
    """A vector, in the order of the parameters."""
    from safetensors.torch import load_file

    stored = load_file(folder / "model.safetensors")
    return [stored[name.removeprefix("model.")].clone() for name in params]


def _dot(a: list[Any], b: list[Any]) -> Any:
    return sum((x * y).sum() for x, y in zip(a, b, strict=True))


def _torch_gradient(net: Any, criterion: Any, params: list[Any], chosen: Any, vectors: Any, data: Any) -> Compute:
    import torch

    def compute() -> Any:
        gradient = torch.autograd.grad(criterion(net(data[0]), data[1]), params)
        return lambda: [_dot(gradient, gradient).sqrt()]

    return compute


def _curvlinops(
    row: Row,
    compiled: bool,
    net: Any,
    criterion: Any,
    params: list[Any],
    chosen: list[int],
    vectors: list[list[Any]],
    data: Any,
) -> Compute:
    import curvlinops
    import torch

    kind = {"ggn_vp": "GGNLinearOperator", "fisher_vp": "EFLinearOperator"}.get(row, "HessianLinearOperator")
    settings: Json = {"num_data": len(data[0]), "check_deterministic": False}
    if row == "diagonal":
        settings["block_sizes"] = [1] * len(chosen)
    operator = getattr(curvlinops, kind)(net, criterion, [params[i] for i in chosen], [data], **settings)
    product = torch.compile(lambda v: operator @ v) if compiled else operator.__matmul__

    def compute() -> Any:
        for vector in vectors:  # together they would take as many times the memory
            v = [vector[i] for i in chosen]
            found = product(v)
        return _taken(row, found, v)

    return compute


def _pyhessian(
    row: Row,
    net: Any,
    criterion: Any,
    params: list[Any],
    chosen: list[int],
    vectors: list[list[Any]],
    data: Any,
) -> Compute:
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    if row not in ("linearised", "diagonal"):
        known = hessian(net, criterion, dataloader=[data], cuda=False)
        return lambda: _taken(row, known.dataloader_hv_product(vectors[0])[1], vectors[0])
    known = hessian(net, criterion, data=data, cuda=False)  # keeps the gradient's graph

    def several() -> Any:
        for v in vectors:
            found = hessian_vector_product(known.gradsH, known.params, v)
        return _taken(row, found, v)

    def blocks() -> Any:
        parts = [([known.gradsH[i]], [known.params[i]], [vectors[0][i]]) for i in chosen]
        found = [hessian_vector_product(*part)[0] for part in parts]
        return _taken(row, found, [vectors[0][i] for i in chosen])

    return several if row == "linearised" else blocks


def _taken(row: Row, found: list[Any], v: list[Any]) -> Callable[[], Any]:
    """What the row is about, taken of a product."""
    if row in ("joint", "diagonal"):
        forms = [(x * y).sum() for x, y in zip(found, v, strict=True)]
        return lambda: [sum(forms)] if row == "joint" else forms
    if row == "quadratic_form":
        form = _dot(found, v)
        return lambda: [form]
    return lambda: [_dot(found, v)]


_PRODUCTS: tuple[Row, ...] = ("hvp", "linearised", "quadratic_form", "joint", "diagonal")
_CURVLINOPS: tuple[Row, ...] = (*_PRODUCTS, "ggn_vp", "fisher_vp")
PEERS: Mapping[str, Mapping[Row, Callable[..., Compute]]] = {
    "torch": {"gradient": _torch_gradient},
    "curvlinops": {row: partial(_curvlinops, row, False) for row in _CURVLINOPS},
    "curvlinops, compiled": {row: partial(_curvlinops, row, True) for row in ("ggn_vp", "fisher_vp")},
    "PyHessian": {row: partial(_pyhessian, row) for row in _PRODUCTS},
}
_MODULES = {"torch": "torch", "curvlinops": "curvlinops", "PyHessian": "pyhessian"}


def installed() -> list[str]:
    """The peers whose packages there are."""
    return [name for name in PEERS if find_spec("torch") and find_spec(_MODULES[name.split(",")[0]])]


def _peak_gb(cpu: bool) -> float:
    """Most memory in use since it was last forgotten."""
    if not cpu:
        return float(jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]) / 1e9
    return _resident_gb("VmHWM")


def _memory_gb(cpu: bool) -> float:
    """Memory in use."""
    if not cpu:
        return float(jax.local_devices()[0].memory_stats()["bytes_in_use"]) / 1e9
    return _resident_gb("VmRSS")


def _resident_gb(which: str) -> float:
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(which)) * 1024 / 1e9
    return peak_memory_gb()


def _forget_peak() -> None:
    """So that what compiling took, and needs no more, does not count; where the system is not Linux, it does."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
