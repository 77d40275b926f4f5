"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864) and how they are scaled to longer sequences."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from lensjax.core.errors import InputError, shorten

Frequencies = NDArray[np.float64]

# Kinds of scaling, and the settings that each needs.
_KINDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
    "proportional": (),
}
_BY_LENGTH = ("dynamic", "longrope")  # whose frequencies depend on the length of the sequence


@dataclass(frozen=True)
class Rotary:
    """The rotary embedding of a model: frequencies theta^(-2i/dim), scaled in one of several ways.

    Attributes:
      dim: Number of leading dimensions of each head that are rotated.
      kind: "default" or a scaling: "linear", "dynamic", "yarn" (arXiv 2309.00071), "llama3", "longrope" (arXiv
        2402.13753), or "proportional", which leaves all but a share of the frequencies 0 (Gemma 4).
      theta: Base of the frequencies.
      length: Longest sequence the configuration declares.
      settings: The other values of the configuration's `rope_parameters`, as sorted pairs.
    """

    dim: int
    kind: str
    theta: float
    length: int
    settings: tuple[tuple[str, Any], ...]

    def __call__(
        self, positions: Int[Array, "batch time"], length: int | None = None
    ) -> tuple[Float[Array, "..."], ...]:
        """Cosines and sines, [batch, time, dim / 2], of the angles at these positions, in float32 or wider.

        Args:
          positions: Of the tokens.
          length: One more than the largest of them, where that is known; some scalings depend on it.
        """
        wide = jnp.zeros(()).dtype
        if length is not None or self.kind not in _BY_LENGTH:
            frequencies = jnp.asarray(self.frequencies(length or 1), wide)
        elif self.kind == "longrope":
            original = int(dict(self.settings)["original_max_position_embeddings"])
            short, long = (jnp.asarray(self.frequencies(length), wide) for length in (original, original + 1))
            frequencies = jnp.where(positions.max() + 1 > original, long, short)
        else:
            stretch = self._stretch(jnp.maximum(positions.max() + 1, self.length).astype(wide))
            powers = np.arange(0, self.dim, 2) / self.dim
            frequencies = (self.theta * stretch ** (self.dim / (self.dim - 2))) ** -jnp.asarray(powers, wide)
        angles = positions[..., None] * frequencies
        scale = self.magnitude()
        return jnp.cos(angles) * scale, jnp.sin(angles) * scale

    def _stretch(self, length: Any) -> Any:
        """Growth of theta^((dim − 2) / dim) at a length of at least `self.length`, under "dynamic" scaling."""
        factor = dict(self.settings)["factor"]
        return factor * length / self.length - (factor - 1)

    def frequencies(self, length: int) -> Frequencies:
        """Radians per position, [dim / 2], for a sequence of `length` tokens."""
        settings = dict(self.settings)
        theta, factor = self.theta, settings.get("factor") or 1.0
        if self.kind == "dynamic":
            theta *= math.pow(self._stretch(max(length, self.length)), self.dim / (self.dim - 2))
        plain = np.power(theta, -np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)
        if self.kind == "linear":
            return plain / factor
        if self.kind == "proportional":
            turning = int(settings.get("partial_rotary_factor", 1.0) * self.dim // 2)
            return np.where(np.arange(self.dim // 2) < turning, plain / factor, 0.0)
        if self.kind == "longrope":
            beyond = length > settings["original_max_position_embeddings"]
            return plain / np.asarray(settings["long_factor" if beyond else "short_factor"])
        if self.kind == "llama3":
            return _llama3(plain, factor, settings)
        if self.kind == "yarn":
            return _yarn(plain, self.dim, theta, self.length, settings)
        return plain

    def magnitude(self) -> float:
        """The factor of cosines and sines; 1 for all kinds but yarn (its equation 22) and longrope."""
        settings = dict(self.settings)
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if settings.get("attention_factor") is not None:
            return float(settings["attention_factor"])
        if self.kind == "longrope":
            original = settings["original_max_position_embeddings"]
            factor = settings["factor"] if "factor" in settings else self.length / original
            return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))

        def log_scale(weight: float = 1.0) -> float:
            return 1.0 if settings["factor"] <= 1 else 0.1 * weight * math.log(settings["factor"]) + 1.0

        if settings.get("mscale") and settings.get("mscale_all_dim"):
            return log_scale(settings["mscale"]) / log_scale(settings["mscale_all_dim"])
        return log_scale()


def rotary_from_config(
    config: Any, head_dim: int, parameters: Mapping[str, Any] | None = None, *, partial: bool = False
) -> Rotary:
    """The rotary embedding that a Hugging Face configuration describes.

    Args:
      config: Hugging Face configuration.
      head_dim: Size of a head.
      parameters: `config.rope_parameters` by default; models with an embedding per kind of layer pass one of them.
      partial: Whether the family rotates only the share `partial_rotary_factor` of a head. Others ignore that field
        where rope is not scaled, as `transformers` does.

    Raises:
      InputError: the kind of scaling is not known, one of its settings is missing, an odd number of dimensions is to be
        rotated, or a family that rotates whole heads is to scale a share of them, for which `transformers` has no
        meaning either.
    """
    settings = dict(config.rope_parameters if parameters is None else parameters)
    kind = settings.pop("rope_type", "default")
    if kind not in _KINDS:
        raise InputError(f"rope_type is '{shorten(kind)}' in config.json; LensJAX knows {', '.join(_KINDS)}.")
    if settings.get("rope_theta") is None:
        raise InputError("rope_parameters lacks rope_theta in config.json, or all of a type of layers; give it.")
    theta = settings.pop("rope_theta")
    share = settings.pop("partial_rotary_factor", None)
    if kind == "proportional":  # heads are rotated whole, some of their dimensions by nothing
        settings |= {} if share is None else {"partial_rotary_factor": share}
        share = None
    if not partial:
        if kind != "default" and share not in (None, 1):
            raise InputError(
                f"partial_rotary_factor is {shorten(share)} beside rope_type '{kind}' in config.json, and "
                f"{config.model_type} rotates whole heads; remove the factor."
            )
        share = None
    dim = int(head_dim * (1.0 if share is None else share))
    if dim < 2 or dim % 2:
        raise InputError(
            f"partial_rotary_factor or head_dim has {dim} dimensions of each head rotated in config.json, and they are "
            "rotated in pairs; give an even number of them."
        )
    lists = {key: tuple(value) for key, value in settings.items() if isinstance(value, list | tuple)}
    numbers: dict[str, Any] = {key: value for key, value in settings.items() if isinstance(value, int | float)} | lists
    missing = [key for key in _KINDS[kind] if key not in numbers]
    if missing:
        raise InputError(f"rope_parameters lacks {missing[0]} in config.json, which rope_type '{kind}' needs; give it.")
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            if len(numbers[name]) != dim // 2:
                raise InputError(
                    f"{name} has {len(numbers[name])} numbers in config.json, and {dim} dimensions of each head are "
                    f"rotated; give {dim // 2}."
                )
    return Rotary(dim, kind, float(theta), config.max_position_embeddings, tuple(sorted(numbers.items())))


def rotate(
    x: Float[Array, "batch time heads dim"], angles: tuple[Float[Array, "..."], ...]
) -> Float[Array, "batch time heads dim"]:
    """Rotate pairs (i, i + dim/2) of the leading dimensions of every head, and leave the other dimensions alone."""
    cos, sin = (table[:, :, None, :].astype(x.dtype) for table in angles[:2])
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def _llama3(plain: Frequencies, factor: float, settings: Mapping[str, float]) -> Frequencies:
    """Long wavelengths are divided by `factor`, short ones kept, those between interpolated (Llama 3.1)."""
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    turns = settings["original_max_position_embeddings"] * plain / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * plain + (1 - kept) * plain / factor


def _yarn(plain: Frequencies, dim: int, theta: float, length: int, settings: Mapping[str, float]) -> Frequencies:
    """Interpolated and plain frequencies blended by a ramp over dimensions (arXiv 2309.00071, section 3.2)."""
    original = settings.get("original_max_position_embeddings") or length

    def dimension(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low: float
    high: float
    low, high = dimension(settings.get("beta_fast") or 32), dimension(settings.get("beta_slow") or 1)
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, dim - 1.0)
    ramp: Frequencies = np.clip((np.arange(dim // 2) - low) / (high - low or 0.001), 0.0, 1.0)
    return plain * (1 - ramp) + plain / settings["factor"] * ramp
