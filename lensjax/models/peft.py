"""Adapters as PEFT keeps them: a folder with adapter_config.json and adapter_model.safetensors, for LoRA and DoRA.

save_adapters(model, "adapter")  # `peft.PeftModel.from_pretrained(base, "adapter")` opens it
model = load_adapters(base, "adapter")
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from lensjax.core.errors import InputError, listing, shorten
from lensjax.core.files import check_new_folder, new_folder
from lensjax.core.pytrees import path_name
from lensjax.core.reading import read_text
from lensjax.models.adapters import at, join, split_trainable
from lensjax.models.linear import column_norms
from lensjax.models.lora import linear_maps, with_adapters
from lensjax.models.model import Model, abstract_model, whole
from lensjax.models.options import Adapter, LoRA
from lensjax.models.quantised import kernel_of
from lensjax.models.safetensors_files import TensorFiles, write_tensors
from lensjax.models.weights import Stored

CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model"
_PREFIX = "base_model.model."
_ENDS = {".lora_A.weight": "lora_a", ".lora_B.weight": "lora_b", ".lora_magnitude_vector": "lora_m"}
_READ = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")
_WITHOUT_EFFECT = (  # on what an adapter computes once its tensors are there
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),  # others change the base too
}


@dataclass(frozen=True)
class _Part:
    """One of our linear maps in a module of `transformers`.

    Attributes:
      path: The map's path.
      position: Its layer, on the leading axis of what is stacked.
      columns: Where its outputs are among those of the module.
      total: Number of outputs of the module.
    """

    path: str
    position: tuple[int, ...]
    columns: Int[np.ndarray, " outputs"]
    total: int


def save_adapters(model: Model, folder: str | Path, base: str | None = None) -> None:
    """Write the model's adapters as a folder that PEFT opens on the model they were added to.

    Where `transformers` keeps several of our linear maps in one module, as GPT-2 queries, keys and values, the adapter
    of that module has the sum of their ranks, and computes the same. Every process that holds the model must call this.

    Args:
      model: With adapters.
      folder: A folder that does not exist yet, or is empty.
      base: Name or folder of the model without them, which PEFT's `AutoPeftModel` opens; by default where this was
        loaded from.

    Raises:
      InputError: the model has no adapters, PEFT has no place for one of them (`unwritable`), or the folder cannot be
        written.
    """
    target, lora = Path(folder), model.options.lora
    check_new_folder(target)
    if lora is None:
        raise InputError("The model has no adapters to save; add them with add_lora, or save the model by its save().")
    if why := unwritable(model):
        raise InputError(why)
    values = {one.path: _arrays(model, one.path, ("lora_a", "lora_b", "lora_m")) for one in lora.adapters}
    every = _modules(model)
    written = {name: parts for name, parts in every.items() if any(part.path in values for part in parts)}
    beside = sorted({part.path for parts in written.values() for part in parts} - values.keys()) if lora.dora else []
    shapes, kind = linear_maps(model), model.options.quantise
    kernels = {path: whole(kernel_of(at(model.params, path), kind, shapes[path][-2], "float32")) for path in beside}
    if jax.process_index() != 0:
        return
    tensors: dict[str, NDArray[Any]] = {}
    sizes: dict[str, tuple[int, float]] = {}
    for name, parts in written.items():
        made, sizes[name] = _module(parts, values, kernels, lora)
        tensors |= {f"{_PREFIX}{name}{end}": made[leaf] for end, leaf in _ENDS.items() if leaf in made}
    (rank, alpha), _ = Counter(sizes.values()).most_common(1)[0]
    named = {name: _ending(name, {other: other in written for other in every}) for name in written}
    sized = {name: re.escape(_ending(name, sizes)) for name in written}
    content = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if model.family.encoder_decoder else "CAUSAL_LM",
        "base_model_name_or_path": base or (None if model.folder is None else str(model.folder)),
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(set(named.values())),
        "rank_pattern": {sized[name]: size for name, (size, _) in sizes.items() if size != rank},
        "alpha_pattern": {sized[name]: own for name, (_, own) in sizes.items() if own != alpha},
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "fan_in_fan_out": _keeps_inputs_first(model),
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    with new_folder(target) as staging:
        write_tensors(tensors.items(), staging, name=_WEIGHTS)
        (staging / CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def unwritable(model: Model) -> str:
    """Why adapters cannot be written in PEFT's format; "" if they can."""
    known = {part.path for parts in _modules(model).values() for part in parts}
    adapters = () if model.options.lora is None else model.options.lora.adapters
    if experts := [shorten(one.path) for one in adapters if one.path not in known]:
        return (
            f"PEFT has no place for adapters of each expert ({listing(experts)}); save the merged model, or choose "
            "targets outside experts."
        )
    return ""


def load_adapters(model: Model, folder: str | Path) -> Model:
    """The model with the adapters that PEFT, or `save_adapters`, wrote.

    An adapter of a module that is several linear maps here becomes one of each, with the rank of that module.

    Args:
      model: The model without adapters that they are for.
      folder: With adapter_config.json and adapter_model.safetensors.

    Raises:
      InputError: the folder does not hold such adapters, or they are of another model, of some layers alone, or of a
        kind that LensJAX does not have.
    """
    if model.options.lora is not None:
        raise InputError("The model has LoRA adapters already; merge them with its merged() before adding others.")
    folder = Path(folder)
    settings = _settings(folder)
    files = TensorFiles.of_folder(folder, _WEIGHTS)
    modules, shapes = _modules(model), linear_maps(model)
    found: dict[str, dict[str, str]] = {}
    for name in files.shapes:
        end = next((end for end in _ENDS if name.endswith(end)), "")
        module = name.removeprefix(_PREFIX).removesuffix(end)
        if not end or module not in modules:
            raise InputError(
                f"{folder} has the tensor {shorten(name)}, for which this {model.family.model_type} has no adapter; "
                "load the model that the adapters were trained on, or merge them with PEFT."
            )
        found.setdefault(module, {})[_ENDS[end]] = name
    leaves = ("lora_a", "lora_b", "lora_m") if settings.get("use_dora") else ("lora_a", "lora_b")
    values: dict[str, dict[tuple[int, ...], dict[str, NDArray[Any]]]] = {}
    sizes: dict[str, set[tuple[int, float]]] = {}
    for module, names in found.items():
        size = _size(settings, module)
        for part in modules[module]:
            inputs = shapes[part.path][-2]
            wanted = {"lora_a": (size[0], inputs), "lora_b": (part.total, size[0]), "lora_m": (part.total,)}
            for leaf in leaves:
                if leaf not in names or files.shapes[names[leaf]] != wanted[leaf]:
                    raise InputError(
                        f"{folder} lacks {leaf} of {shorten(module)} in the shape {list(wanted[leaf])} that "
                        f"{CONFIG} and the model say; take both files, and the model, from one training."
                    )
            values.setdefault(part.path, {})[part.position] = _read(files, names, leaves, wanted, part)
            sizes.setdefault(part.path, set()).add(size)
    adapters = []
    for path in (path for path in shapes if path in values):
        whole_stack = np.prod(shapes[path][:-2], dtype=int) == len(values[path])
        if not whole_stack or len(sizes[path]) > 1:
            raise InputError(
                f"{folder} has adapters of {shorten(path)} in some layers alone, or of several ranks; LensJAX has one "
                "for all layers, so merge them with PEFT and load the merged model."
            )
        adapters.append(Adapter(path, *next(iter(sizes[path]))))
    lora = LoRA(tuple(adapters), bool(settings.get("use_rslora")), bool(settings.get("use_dora")))
    shaped = with_adapters(model.without_params(), lora)

    def filled(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        of, _, name = path_name(path).rpartition("/")
        value = np.empty(leaf.shape, leaf.dtype)
        for position, own in values[of].items():
            value[position] = own[name]
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    trained = jax.tree_util.tree_map_with_path(filled, split_trainable(shaped.params)[0])
    return replace(shaped, params=join(trained, model.params))


def _modules(model: Model) -> dict[str, list[_Part]]:
    """The linear maps in each module of `transformers`; not those of experts, which PEFT does not tell apart."""
    shapes, found = linear_maps(model), dict[str, list[_Part]]()
    plain = abstract_model(model.config, model.options.plain).params
    for tensor in model.family.tensors(model.config, plain):
        path, _, leaf = tensor.path.rpartition("/")
        if leaf != "kernel" or path not in shapes or "{expert}" in tensor.stored.name:
            continue
        if tensor.names.ndim != len(tensor.shape) - 2:
            continue
        columns, total = _columns(tensor.stored, tensor.shape[-1])
        for position in np.ndindex(tensor.names.shape):
            name = str(tensor.names[position])
            if name.endswith(".weight"):
                found.setdefault(name.removesuffix(".weight"), []).append(_Part(path, position, columns, total))
    return found


def _columns(stored: Stored, outputs: int) -> tuple[Int[np.ndarray, " outputs"], int]:
    """Where outputs are among those of their module, and how many it has."""
    if stored.part is None:
        return np.arange(outputs), outputs
    index, shares, groups = stored.part
    unit = outputs // groups // shares[index]
    group, start = unit * sum(shares), unit * sum(shares[:index])
    own = start + np.arange(unit * shares[index])
    return (group * np.arange(groups)[:, None] + own).reshape(-1), group * groups


def _module(
    parts: Iterable[_Part],
    values: Mapping[str, Mapping[str, NDArray[Any]]],
    kernels: Mapping[str, NDArray[Any]],
    lora: LoRA,
) -> tuple[dict[str, NDArray[Any]], tuple[int, float]]:
    """A module's tensors, rank and alpha, from those of the linear maps in it."""
    adapters = {one.path: one for one in lora.adapters}
    own = [part for part in parts if part.path in values]
    rank, scale = sum(adapters[part.path].rank for part in own), lora.scales[own[0].path]
    arrays = [{leaf: value[part.position] for leaf, value in values[part.path].items()} for part in own]
    b = np.zeros((own[0].total, rank), arrays[0]["lora_b"].dtype)
    start = 0
    for part, array in zip(own, arrays, strict=True):
        stop = start + adapters[part.path].rank
        b[part.columns, start:stop] = array["lora_b"].T * (lora.scales[part.path] / scale)
        start = stop
    made = {"lora_a": np.concatenate([array["lora_a"].T for array in arrays]), "lora_b": b}
    if lora.dora:
        made["lora_m"] = m = np.empty(own[0].total, b.dtype)
        for part, array in zip(own, arrays, strict=True):
            m[part.columns] = array["lora_m"]
        for part in parts:
            if part.path in kernels:
                m[part.columns] = column_norms(kernels[part.path][part.position].astype(b.dtype))
    same = len(own) == 1
    return made, (rank, adapters[own[0].path].alpha if same else scale * rank ** (0.5 if lora.rslora else 1.0))


def _arrays(model: Model, path: str, leaves: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Some parameters of a linear map, on every process."""
    held = at(model.params, path)
    return {leaf: whole(held[leaf]) for leaf in leaves if leaf in held}


def _ending(name: str, values: Mapping[str, object]) -> str:
    """The last parts of a name that are enough to tell its value: all names that end so have the same."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if all(value == values[name] for other, value in values.items() if f".{other}".endswith(f".{end}")):
            return end
    return name


def _keeps_inputs_first(model: Model) -> bool:
    """Whether the modules are of `transformers`' Conv1D, which keeps weights [inputs, outputs]."""
    entries = model.family.parameter_names(model.config).values()
    return any(isinstance(entry, Stored) and not entry.transposed for entry in entries)


def _settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json, without settings that change what an adapter is."""
    path = folder / CONFIG
    if not path.exists():
        raise InputError(f"{folder} has no {CONFIG}; give a folder as PEFT or save_adapters writes it.")
    try:
        settings = json.loads(read_text(path, "fetch it again"))
        kind = settings.get("peft_type")
        rank, alpha = int(settings.get("r", 8)), float(settings.get("lora_alpha", 8))
        patterns = [dict(settings.get(name) or {}) for name in ("rank_pattern", "alpha_pattern")]
        settings |= {"r": rank, "lora_alpha": alpha, "rank_pattern": patterns[0], "alpha_pattern": patterns[1]}
        sizes = [rank, *map(int, patterns[0].values()), alpha, *map(float, patterns[1].values())]
        for pattern in (*patterns[0], *patterns[1]):
            re.compile(pattern)
    except (ValueError, TypeError, AttributeError, RecursionError, re.error) as error:
        raise InputError(f"{path} is not PEFT's ({shorten(error)}); fetch it again.") from error
    if kind != "LORA" or min(sizes) <= 0:
        raise InputError(f"{path} is of peft_type {shorten(kind)}; LensJAX has LORA, with ranks and alphas above 0.")
    for name, value in settings.items():
        neutral = value in _NEUTRAL[name] if name in _NEUTRAL and value else not value
        if name not in (*_READ, *_WITHOUT_EFFECT) and not neutral:
            raise InputError(
                f"{path} has {shorten(name)}: {shorten(json.dumps(value))}, which LensJAX does not have; merge the "
                "adapters with PEFT, and load the merged model."
            )
    return dict(settings)


def _size(settings: Mapping[str, Any], module: str) -> tuple[int, float]:
    """The rank and alpha of a module, by the first pattern that its name ends with, as PEFT has it."""

    def own(patterns: Mapping[str, Any], usual: Any) -> Any:
        return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), usual)

    return int(own(settings["rank_pattern"], settings["r"])), float(
        own(settings["alpha_pattern"], settings["lora_alpha"])
    )


def _read(
    files: TensorFiles,
    names: Mapping[str, str],
    leaves: Iterable[str],
    shapes: Mapping[str, tuple[int, ...]],
    part: _Part,
) -> dict[str, NDArray[Any]]:
    """What one linear map has of its module's tensors, in float32."""
    made = {}
    for leaf in leaves:
        value = np.empty(shapes[leaf], np.float32)
        files.copy(names[leaf], tuple((0, size) for size in shapes[leaf]), value, transposed=False)
        made[leaf] = (value if leaf == "lora_a" else value[part.columns]).T
    return made
