"""Kernels held in 8 or 4 bits a value, under adapters (QLoRA, arXiv 2305.14314).

A kernel's inputs are cut into blocks of 64, each with a scale for every output: the block's largest absolute value.
In nf4 a value is the nearest of 16 quantiles of a normal distribution times the scale, two values to a byte; in int8 it
is a whole number from −127 to 127, times the scale by 127. With scales in float32 that is 4.5 and 8.5 bits a value.
Products take kernels back to floating point, one layer at a time, in the backward pass once more.
"""

from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8
from numpy.typing import DTypeLike

from lensjax.core.pytrees import Params
from lensjax.models.options import Quantisation

BLOCK = 64


def _normal_float() -> np.ndarray[Any, Any]:
    """The values of NF4 (section 3 and appendix E of the paper): normal quantiles, scaled to [−1, 1], with an exact 0.

    There are 8 quantiles below 0 and 7 above, evenly spaced in probability; the outermost probability is the mean of
    those that would split either half alone, 1 − 1/30 and 1 − 1/32.
    """
    outermost = 1 - (1 / 30 + 1 / 32) / 2
    below, above = (np.linspace(outermost, 0.5, count)[:-1] for count in (8, 9))
    quantile = NormalDist().inv_cdf
    values = np.array([*(-quantile(p) for p in below), 0.0, *(quantile(p) for p in reversed(above))])
    return (values / values.max()).astype(np.float32)


NF4 = _normal_float()


@dataclass(frozen=True)
class Held:
    """How a kernel is held.

    Attributes:
      kind: "int8" or "nf4".
      inputs: Number of its inputs; the last block may be padded.
    """

    kind: Quantisation
    inputs: int

    def shapes(self, kernel: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Shapes and types of the codes and scales of a kernel of that shape."""
        *stacked, inputs, outputs = kernel
        blocks = -(-inputs // BLOCK)
        rows = blocks * BLOCK // (2 if self.kind == "nf4" else 1)
        codes = jax.ShapeDtypeStruct((*stacked, rows, outputs), jnp.uint8 if self.kind == "nf4" else jnp.int8)
        return codes, jax.ShapeDtypeStruct((*stacked, blocks, outputs), jnp.float32)


def quantised(
    kernel: Float[Array, "*stacked inputs outputs"], kind: Quantisation
) -> tuple[Integer[Array, "*stacked rows outputs"], Float[Array, "*stacked blocks outputs"]]:
    """Codes and scales of a kernel; each depends on its block alone, and not on how arrays lie on devices."""
    if kernel.ndim > 2:  # one layer at a time, whose intermediate results take more room than the kernel
        return jax.lax.map(partial(quantised, kind=kind), kernel)
    inputs, outputs = kernel.shape
    padding = -inputs % BLOCK
    blocks = jnp.pad(kernel.astype(jnp.float32), ((0, padding), (0, 0))).reshape(-1, BLOCK, outputs)
    scales = jnp.abs(blocks).max(axis=1)
    shares = blocks / jnp.where(scales == 0, 1, scales)[:, None]
    if kind == "int8":
        return jnp.round(127 * shares).astype(jnp.int8).reshape(-1, outputs), scales
    codes = jnp.searchsorted(jnp.asarray((NF4[1:] + NF4[:-1]) / 2), shares).astype(jnp.uint8)
    pairs = codes.reshape(-1, 2, outputs)
    return pairs[:, 0] | (pairs[:, 1] << 4), scales


def dequantised(
    codes: Integer[Array, "*stacked rows outputs"],
    scales: Float[Array, "*stacked blocks outputs"],
    held: Held,
    dtype: DTypeLike,
) -> Float[Array, "*stacked inputs outputs"]:
    """The kernel that codes and scales stand for."""
    *stacked, blocks, outputs = scales.shape
    shares = codes.astype(jnp.float32) / 127 if held.kind == "int8" else _unpacked(codes)
    values = shares.reshape(*stacked, blocks, BLOCK, outputs) * scales[..., :, None, :]
    return values.reshape(*stacked, blocks * BLOCK, outputs)[..., : held.inputs, :].astype(jnp.dtype(dtype))


def kernel_of(part: Params, kind: Quantisation | None, inputs: int, dtype: DTypeLike) -> Float[Array, "..."]:
    """The kernel among the parameters of a linear map, in floating point.

    Args:
      part: The map's parameters.
      kind: How kernels are held that are quantised.
      inputs: Number of its inputs.
      dtype: Type of the result.
    """
    if "kernel_scales" not in part:
        return part["kernel"].astype(jnp.dtype(dtype))
    assert kind is not None
    return dequantised(part["kernel"], part["kernel_scales"], Held(kind, inputs), dtype)


def _unpacked(codes: UInt8[Array, "*stacked pairs outputs"]) -> Float[Array, "*stacked pairs 2 outputs"]:
    pairs = jnp.stack([codes & 15, codes >> 4], axis=-2)
    return jnp.asarray(NF4)[pairs]
