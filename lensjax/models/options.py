"""How a model computes, as opposed to what it is."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import DTypeLike

from lensjax.core.errors import InputError, shorten
from lensjax.models.sharding import platform_of

Remat = Literal["none", "cheap", "dots", "full"]
Quantisation = Literal["int8", "nf4"]
AttentionImplementation = Literal["xla", "cudnn", "splash"]

_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Adapter:
    """The low-rank adapter of one linear map.

    Attributes:
      path: The map's path among the parameters, such as "layers/blocks/attention/q".
      rank: Size between the two factors.
      alpha: Their product is multiplied by alpha / rank, or with rsLoRA by alpha / √rank.
    """

    path: str
    rank: int
    alpha: float

    @property
    def name(self) -> str:
        """The map's name within its block, such as "q"."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters beside frozen kernels (arXiv 2106.09685), as `lensjax.models.lora.add_lora` makes them.

    Attributes:
      adapters: One for each of the linear maps that have one.
      rslora: Whether products are multiplied by alpha / √rank (arXiv 2312.03732).
      dora: Whether kernels are a direction, which has the adapters, times a magnitude (DoRA, arXiv 2402.09353).
    """

    adapters: tuple[Adapter, ...]
    rslora: bool = False
    dora: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the linear maps that have adapters, each once."""
        return tuple(dict.fromkeys(adapter.name for adapter in self.adapters))

    @property
    def scales(self) -> dict[str, float]:
        """Factors of lora_a @ lora_b, by the map's path."""
        power = 0.5 if self.rslora else 1.0
        return {adapter.path: adapter.alpha / adapter.rank**power for adapter in self.adapters}


@dataclass(frozen=True)
class Options:
    """How a model computes.

    Attributes:
      dtype: Floating-point type of activations and matrix products; norms, softmaxes and losses are at least float32.
      param_dtype: Type in which the parameters are held.
      remat: What the backward pass recomputes. "none" keeps every activation; "cheap" keeps the results of products
        with weights and of attention, and recomputes norms, activation functions and attention's scores; "dots"
        recomputes attention too; "full" keeps one activation per layer.
      attention: "xla" everywhere and wherever curvature is computed; for first-order training and evaluation alone,
        "splash" is the fused kernel of TPUs (`lensjax.models.fused`), for bfloat16 and float32 and rows of 128 tokens
        and more, and "cudnn" that of NVIDIA GPUs, for bfloat16 and float16. XLA computes what a kernel cannot, as
        capped scores (Gemma 2) on GPUs and biases of scores (T5) on TPUs, which a warning says.
      mesh: Devices that hold the parameters, with axes `data`, `fsdp` and `tensor`; None for one device.
      quantise: The type in which kernels are held, "int8" or "nf4" (`lensjax.models.quantised`), or None for
        `param_dtype`. Gradients do not reach such kernels, but the adapters beside them.
      lora: The adapters that the model has; None for none.
    """

    dtype: np.dtype[np.generic]
    param_dtype: np.dtype[np.generic]
    remat: Remat
    attention: AttentionImplementation
    mesh: Mesh | None
    quantise: Quantisation | None = None
    lora: LoRA | None = None

    @property
    def plain(self) -> "Options":
        """The same without adapters, and with all parameters in floating point."""
        return replace(self, quantise=None, lora=None)


def make_options(
    dtype: DTypeLike = "float32",
    param_dtype: DTypeLike | None = None,
    remat: Remat = "cheap",
    attention: AttentionImplementation | Literal["auto"] = "xla",
    mesh: Mesh | None = None,
    quantise: Quantisation | None = None,
) -> Options:
    """Make options, and check every value.

    Args:
      dtype, param_dtype, remat, attention, mesh, quantise: See `Options`; `param_dtype` is `dtype` where not given, and
        attention "auto" is "splash" on TPUs, if the types allow it, and else "xla".

    Raises:
      InputError: a value is not one of the choices, or JAX has float64 switched off, or the fused attention cannot run
        here.
    """
    for name, value, known in (
        ("remat", remat, get_args(Remat)),
        ("attention", attention, ("auto", *get_args(AttentionImplementation))),
        ("quantise", quantise, (None, *get_args(Quantisation))),
    ):
        if value not in known:
            raise InputError(f"{name} is '{shorten(value)}'; give one of {', '.join(map(str, known))}.")
    chosen = as_dtype(dtype)
    takes = chosen.name in ("bfloat16", "float32")
    if attention == "auto":
        attention = "splash" if takes and platform_of(mesh) == "tpu" else "xla"
    if attention == "splash" and not (takes and platform_of(mesh) == "tpu"):
        raise InputError(
            f"attention is 'splash', dtype {chosen} and the device a {platform_of(mesh)}; the fused kernel needs "
            "bfloat16 or float32 and a TPU, so choose 'xla' here, or 'auto'."
        )
    if attention == "cudnn" and (chosen.itemsize != 2 or jax.default_backend() != "gpu"):
        raise InputError(
            f"attention is 'cudnn', dtype {chosen} and the device a {jax.default_backend()}; the fused kernel needs "
            "bfloat16 or float16 and an NVIDIA GPU, so choose 'xla' here."
        )
    return Options(chosen, as_dtype(dtype if param_dtype is None else param_dtype), remat, attention, mesh, quantise)


def as_dtype(dtype: DTypeLike) -> np.dtype[np.generic]:
    """The floating-point type of that name.

    Raises:
      InputError: models have no such type, or it is float64 and JAX has 64 bits switched off.
    """
    try:
        known = jnp.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):  # NumPy parses text as a small language
        known = None
    if known is None or known.name not in _DTYPES:
        raise InputError(f"dtype is '{shorten(dtype)}'; give one of {', '.join(_DTYPES)}.")
    if known.name == "float64" and not jax.config.read("jax_enable_x64"):
        raise InputError("float64 needs 64-bit JAX; set JAX_ENABLE_X64=1 in the environment, or choose float32.")
    return known
