"""Attention by the TPU kernel that JAX has (Pallas, "splash"), which never holds the scores of all pairs.

Its derivative is a kernel too, and has none of its own, so that it serves first-order training and evaluation alone.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    FullMask,
    LocalMask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from lensjax.models.masks import Sight
from lensjax.models.remat import COSTLY
from lensjax.models.sharding import platform_of

BLOCK = 128  # tokens, of which rows are padded to a multiple
_BLOCKS = (512, 256, 128)


def fused_attention(
    q: Float[Array, "batch time heads dim"],
    k: Float[Array, "batch source kv_heads dim"],
    v: Float[Array, "batch source kv_heads dim"],
    sight: Sight,
    *,
    causal: bool,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Array, " heads"] | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "batch time heads dim"]:
    """softmax(q · k) v, where `sight` and causality allow.

    Rows are padded to whole blocks. On other platforms than TPUs the kernel is interpreted, which is slow.

    Args:
      q, k, v: Queries, and keys and values, of which several heads of queries may share one.
      sight: What positions may attend to besides causality.
      causal: Whether a position sees only itself and those before it.
      scale: Factor of q · k.
      softcap: Squash scores to ±softcap through tanh.
      sinks: A score of every head that takes part in softmaxes and adds nothing.
      mesh: The devices: `data` and `fsdp` split examples, `tensor` heads, where they divide them.
    """
    batch, time, heads = q.shape[:3]
    source = k.shape[1]
    after, beyond = -time % BLOCK, -source % BLOCK
    queries, keys = sight.queries, sight.keys
    if keys is None and beyond and not causal:  # so that nobody sees the padding
        keys = jnp.ones((batch, source), jnp.int32)
    if keys is not None:
        queries = jnp.ones((batch, time), jnp.int32) if queries is None else queries
        queries = jnp.pad(queries.astype(jnp.int32), ((0, 0), (0, after)), constant_values=-1)
        keys = jnp.pad(keys.astype(jnp.int32), ((0, 0), (0, beyond)), constant_values=-1)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q = _padded((q.astype(wide) * scale).astype(q.dtype), after)
    k, v = _padded(k, beyond), _padded(v, beyond)
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} if mesh is None else dict(mesh.shape)
    rows = ("data", "fsdp") if batch % (sizes["data"] * sizes["fsdp"]) == 0 else None
    split = "tensor" if heads % sizes["tensor"] == 0 else None
    if split is not None and k.shape[2] % sizes["tensor"]:
        k, v = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (k, v))
    interpret = platform_of(mesh) != "tpu"

    def attend(window: int | None, q: Array, k: Array, v: Array, *others: Array | None) -> Array:
        queries, keys, sinks = others
        shape = q.shape[1], k.shape[1]
        mask = (
            FullMask(shape)
            if not causal
            else CausalMask(shape)
            if window is None
            else LocalMask(shape, (window - 1, 0), 0)
        )
        kernel = make_splash_mha(
            MultiHeadMask([mask] * q.shape[2]),
            block_sizes=_blocks(*shape),
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=softcap,
            residual_checkpoint_name=COSTLY,
            interpret=interpret,
        )
        own = {} if sinks is None else {"sinks": sinks}

        def one(q: Array, k: Array, v: Array, *segments: Array) -> Array:
            found: Array = kernel(q, k, v, SegmentIds(*segments) if segments else None, **own)
            return found

        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        segments = () if queries is None or keys is None else (queries, keys)
        return jnp.swapaxes(jax.vmap(one)(q, k, v, *segments), 1, 2)

    def on_devices(window: int | None) -> Array:
        arguments = (q, k, v, queries, keys, sinks)
        if mesh is None or mesh.size == 1:
            return attend(window, *arguments)
        placed, of_rows = PartitionSpec(rows, None, split, None), PartitionSpec(rows, None)
        specs = (placed, placed, placed, of_rows, of_rows, PartitionSpec(split))
        mapped = jax.shard_map(
            lambda *local: attend(window, *local), mesh=mesh, in_specs=specs, out_specs=placed, check_vma=False
        )
        found: Array = mapped(*arguments)
        return found

    window = None if sight.window is None or sight.window >= source else sight.window
    if window is None or sight.sliding is None:
        y = on_devices(window)
    else:
        y = jax.lax.cond(sight.sliding, lambda: on_devices(window), lambda: on_devices(None))
    return y[:, :time]


def _padded(x: Float[Array, "batch time heads dim"], more: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) if more else x


def _blocks(time: int, source: int) -> BlockSizes:
    """The largest blocks that divide the rows."""
    q, kv = (next(size for size in _BLOCKS if length % size == 0) for length in (time, source))
    return BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
