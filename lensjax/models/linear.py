"""The linear map that models are built of, with what fine-tuning may add to it."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from numpy.typing import DTypeLike

from lensjax.models.options import Options, Quantisation
from lensjax.models.quantised import Held, dequantised
from lensjax.models.remat import costly, recomputed


class Linear(nnx.Module):
    """x @ kernel + bias, with kernel [inputs, outputs].

    With adapters lora_a [inputs, rank] and lora_b [rank, outputs], which `lensjax.models.lora` adds, the kernel is
    kernel + lora_scale · lora_a @ lora_b, which is never formed. With lora_m [outputs] (DoRA, arXiv 2402.09353) each
    column of that has the norm that lora_m says. `held` says how kernel and kernel_scales stand for a kernel that is
    quantised (see `lensjax.models.quantised`).
    """

    def __init__(
        self, inputs: int, outputs: int, options: Options, rngs: nnx.Rngs, *, bias: bool = False, std: float = 0.02
    ) -> None:
        self.dtype = options.dtype
        self.kernel = normal(rngs, (inputs, outputs), std, options)
        self.bias = nnx.Param(jnp.zeros(outputs, options.param_dtype)) if bias else None
        self.lora_a: nnx.Param[Array] | None = None
        self.lora_b: nnx.Param[Array] | None = None
        self.lora_m: nnx.Param[Array] | None = None
        self.kernel_scales: nnx.Param[Array] | None = None
        self.held: Held | None = None
        self.lora_scale = 1.0
        self.constant_norms = False

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        x = x.astype(self.dtype)
        y = x @ self.weights(self.dtype) if self.held is None else recomputed(self._of_quantised)(x)
        if self.lora_a is not None and self.lora_b is not None:
            low = costly(x @ self.lora_a[...].astype(self.dtype))
            y = y + self.lora_scale * (low @ self.lora_b[...].astype(self.dtype))
        if self.lora_m is not None:
            y = y * self.magnification().astype(self.dtype)
        return costly(y if self.bias is None else y + self.bias[...].astype(self.dtype))

    def _of_quantised(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        """The product alone, of which backward passes keep no kernel in floating point."""
        return x @ self.weights(self.dtype)

    def weights(self, dtype: DTypeLike) -> Float[Array, "*stacked inputs outputs"]:
        """The kernel in floating point."""
        if self.held is None or self.kernel_scales is None:
            return self.kernel[...].astype(jnp.dtype(dtype))
        return dequantised(self.kernel[...], self.kernel_scales[...], self.held, dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel in floating point, [*stacked, inputs, outputs]."""
        *stacked, rows, outputs = self.kernel.shape
        return (*stacked, rows if self.held is None else self.held.inputs, outputs)

    def magnification(self) -> Float[Array, "*stacked outputs"]:
        """lora_m by the norm of each column of the kernel with its adapter.

        With `constant_norms`, derivatives take the norms for constants, as DoRA is trained (section 4.3 there).
        """
        assert self.lora_a is not None
        assert self.lora_b is not None
        assert self.lora_m is not None

        wide = jnp.promote_types(self.lora_a[...].dtype, jnp.float32)

        def norms(a: Array, b: Array) -> Array:
            return column_norms(adapted(self.weights(wide), a, b, self.lora_scale))

        found = recomputed(norms)(self.lora_a[...], self.lora_b[...])
        return self.lora_m[...] / (jax.lax.stop_gradient(found) if self.constant_norms else found)


def adaptable(module: nnx.Module) -> Iterator[tuple[str, Linear]]:
    """The linear maps that may have adapters, and be quantised, by path: all but heads and routers."""
    for path, node in nnx.iter_graph(module):
        if isinstance(node, Linear) and path[-1] not in ("head", "router"):
            yield "/".join(map(str, path)), node


def abstract_param(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """A parameter's shape and type in its place."""
    values: Any = jax.ShapeDtypeStruct(shape, dtype)
    return nnx.data(nnx.Param(values))


def hold_quantised(module: nnx.Module, kind: Quantisation) -> None:
    """Change the shapes of a module's parameters to those with quantised kernels."""
    for _, linear in adaptable(module):
        held = Held(kind, linear.kernel.shape[-2])
        codes, scales = held.shapes(linear.kernel.shape)
        linear.kernel = abstract_param(codes.shape, codes.dtype)
        linear.kernel_scales = abstract_param(scales.shape, scales.dtype)
        linear.held = held


def adapted(
    kernel: Float[Array, "*stacked inputs outputs"],
    a: Float[Array, "*stacked inputs rank"],
    b: Float[Array, "*stacked rank outputs"],
    scale: float,
) -> Float[Array, "*stacked inputs outputs"]:
    """kernel + scale · a @ b, in float32 or wider."""
    wide = jnp.promote_types(jnp.promote_types(kernel.dtype, a.dtype), jnp.float32)
    product = jnp.matmul(a.astype(wide), b.astype(wide), precision=jax.lax.Precision.HIGHEST)
    return kernel.astype(wide) + scale * product


def column_norms(kernel: Float[Array, "*stacked inputs outputs"]) -> Float[Array, "*stacked outputs"]:
    """The norm of what each output is made of, above 0 also where all of that is 0."""
    squares = jnp.square(kernel).sum(axis=-2)
    return jnp.sqrt(jnp.maximum(squares, jnp.finfo(squares.dtype).tiny))


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float, options: Options) -> nnx.Param[Array]:
    """A parameter that starts as Gaussian noise."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, options.param_dtype))
