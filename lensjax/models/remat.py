"""What backward passes keep of a forward pass, and what they compute again."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from lensjax.models.options import Remat

COSTLY = "costly"  # name of arrays that cheap backward passes keep


def _is_fused_attention(primitive: Any, *_: Any, **params: Any) -> bool:
    return str(primitive.name).startswith("dot_product_attention")


_POLICIES = jax.checkpoint_policies
_KEPT = {  # by backward passes
    "dots": _POLICIES.dots_with_no_batch_dims_saveable,
    "cheap": _POLICIES.save_from_both_policies(_POLICIES.save_only_these_names(COSTLY), _is_fused_attention),
}


def rematerialised(step: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """A step of a scan over layers whose backward pass keeps what `remat` says; see `lensjax.models.Options`."""
    if remat == "none":
        return step
    return jax.checkpoint(step, prevent_cse=False, policy=_KEPT.get(remat))


def costly(x: Array) -> Array:
    """The same array, marked as one that takes longer to compute than to keep."""
    marked: Array = checkpoint_name(x, COSTLY)
    return marked


def recomputed(function: Callable[..., Array]) -> Callable[..., Array]:
    """The same function, whose backward pass keeps the arguments and recomputes everything else.

    For elementwise functions and norms, whose intermediate results take longer to store than to compute.
    """
    return jax.checkpoint(function, prevent_cse=False)
