"""Operations, bytes and collectives of compiled programs equal what is worked out by hand."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec
from transformers import LlamaConfig, MixtralConfig, T5Config

from lensjax.core.devices import topology_devices
from lensjax.core.errors import InputError
from lensjax.core.flops import matmul_flops
from lensjax.core.roofline.chips import CHIPS
from lensjax.core.roofline.counters import Counts, count_program
from lensjax.core.roofline.estimate import Layout, estimate_step
from lensjax.core.roofline.groups import axes_of, replica_groups
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options
from lensjax.models.sharding import make_mesh
from lensjax.train.placement import BatchPlacement

ONE = {"data": 1}
SQUARE = jax.ShapeDtypeStruct((64, 64), jnp.float32)
PRODUCT = 2 * 64**3


def counted(function: Callable[..., Any], *arguments: Any) -> Counts:
    return count_program(jax.jit(function).lower(*arguments).compile().as_text(), ONE)


@pytest.mark.parametrize(
    ("function", "products", "endless"),
    [
        (lambda x: x @ x, 1, 0),
        (lambda x: lax.scan(lambda c, _: (jnp.sin(c @ c), None), x, None, length=7)[0], 7, 0),
        (lambda x: lax.fori_loop(0, 3, lambda _, y: lax.fori_loop(0, 5, lambda _, z: z @ z, y), x), 15, 0),
        (lambda x: lax.while_loop(lambda y: (y @ y)[0, 0] < 1, lambda y: y @ y, x), 2, 1),
        (lambda x: lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x), 2, 0),
        (lambda x: jax.vmap(lambda y: (x * y) @ x)(x), 64, 0),
    ],
)
def test_products_are_counted_as_often_as_they_run(function: Any, products: int, endless: int) -> None:
    found = counted(function, SQUARE)
    assert (found.flops, found.endless) == (products * PRODUCT, endless)
    assert sum(flops * runs for (flops, _), runs in found.work.items()) == found.flops
    assert sum(moved * runs for (_, moved), runs in found.work.items()) == found.memory_bytes


def test_a_convolution_counts_without_its_padding() -> None:
    x, kernel = jax.ShapeDtypeStruct((2, 6, 9, 10), jnp.float32), jax.ShapeDtypeStruct((12, 6, 3, 4), jnp.float32)

    def convolve(x: Any, kernel: Any, padding: str) -> Any:
        return lax.conv_general_dilated(x, kernel, (1, 1), padding)

    valid = counted(partial(convolve, padding="VALID"), x, kernel)
    assert valid.flops == 2 * (2 * 12 * 7 * 7) * (6 * 3 * 4)
    rows, columns = 3 * 9 - 2, 4 * 10 - (1 + 1 + 2)  # places of the window that lie on the input
    assert counted(partial(convolve, padding="SAME"), x, kernel).flops == 2 * 2 * 12 * 6 * rows * columns


def test_elementwise_work_and_bytes() -> None:
    found = counted(lambda x, y: jnp.sin(x) * y + 1, SQUARE, SQUARE)
    assert found.flops == 0
    assert found.other_flops == 3 * 64**2
    assert found.memory_bytes == 3 * 4 * 64**2


def test_a_slice_is_read_and_an_update_written_alone() -> None:
    large, row = jax.ShapeDtypeStruct((1000, 64), jnp.float32), 4 * 64

    def one(x: Any, i: Any) -> Any:
        return lax.dynamic_slice_in_dim(x, i, 1) * 2

    assert counted(one, large, jax.ShapeDtypeStruct((), jnp.int32)).memory_bytes <= 3 * row

    def stacked(x: Any) -> Any:
        return lax.scan(lambda c, y: (c, c * y), jnp.ones(64), x)[1]

    assert counted(stacked, large).memory_bytes <= 1000 * 6 * row


NESTED = """HloModule nested, is_scheduled=true

%take (stack: f32[32,64,64], number: s32[]) -> f32[64,64] {
  %stack = f32[32,64,64]{2,1,0:T(8,128)} parameter(0)
  %number = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %slice = f32[1,64,64]{2,1,0:T(8,128)} dynamic-slice(%stack, %number, %zero, %zero), dynamic_slice_sizes={1,64,64}
  ROOT %flat = f32[64,64]{1,0:T(8,128)} bitcast(%slice)
}

%put (into: f32[32,64,64], new: f32[1,64,64], at: s32[]) -> f32[32,64,64] {
  %into = f32[32,64,64]{2,1,0:T(8,128)} parameter(0)
  %new = f32[1,64,64]{2,1,0:T(8,128)} parameter(1)
  %at = s32[]{:T(128)S(6)} parameter(2)
  %none = s32[]{:T(128)} constant(0)
  ROOT %updated = f32[32,64,64]{2,1,0:T(8,128)} dynamic-update-slice(%into, %new, %at, %none, %none)
}

%outer (a: f32[32,64,64], b: s32[]) -> f32[32,64,64] {
  %a = f32[32,64,64]{2,1,0:T(8,128)} parameter(0)
  %b = s32[]{:T(128)S(6)} parameter(1)
  %one = f32[64,64]{1,0:T(8,128)} fusion(%a, %b), kind=kLoop, calls=%take
  %product = f32[64,64]{1,0:T(8,128)} convolution(%one, %one), dim_labels=bf_io->bf, operand_precision={highest,highest}
  %wide = f32[1,64,64]{2,1,0:T(8,128)} bitcast(%product)
  ROOT %all = f32[32,64,64]{2,1,0:T(8,128)} fusion(%a, %wide, %b), kind=kLoop, calls=%put
}

ENTRY %main (x: f32[32,64,64], i: s32[]) -> f32[32,64,64] {
  %x = f32[32,64,64]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)S(6)} parameter(1)
  ROOT %made = f32[32,64,64]{2,1,0:T(8,128)} fusion(%x, %i), kind=kOutput, calls=%outer
}
"""


def test_slices_and_updates_of_fusions_within_fusions() -> None:
    found = count_program(NESTED, ONE)
    assert found.memory_bytes == 2 * 4 * 64**2  # a layer is read, and one written
    assert (found.flops, found.repeated) == (PRODUCT, 5 * PRODUCT)  # float32 by products of bfloat16
    assert found.work == {(6 * PRODUCT, 2 * 4 * 64**2): 1}
    elsewhere = count_program(NESTED.replace("T(8,128)", ""), ONE)
    assert (elsewhere.flops, elsewhere.repeated) == (PRODUCT, 0)


OFFLOADED = """HloModule offloaded, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)S(7)} parameter(0)
  %b = f32[]{:T(128)S(7)} parameter(1)
  ROOT %sum = f32[]{:T(128)S(7)} add(%a, %b)
}, execution_thread="sparsecore"

%scattered (table: f32[65536], ids: s32[1024], new: f32[1024]) -> f32[65536] {
  %table = f32[65536]{0:T(1024)} parameter(0)
  %ids = s32[1024]{0:T(1024)} parameter(1)
  %new = f32[1024]{0:T(1024)} parameter(2)
  ROOT %scatter = f32[65536]{0:T(1024)} scatter(%table, %ids, %new), update_window_dims={}, inserted_window_dims={0}, scatter_dims_to_operand_dims={0}, index_vector_dim=1, to_apply=%add
}, execution_thread="sparsecore"

%away (t: f32[65536], i: s32[1024], n: f32[1024]) -> f32[65536] {
  %t = f32[65536]{0:T(1024)} parameter(0)
  %i = s32[1024]{0:T(1024)} parameter(1)
  %n = f32[1024]{0:T(1024)} parameter(2)
  ROOT %done = f32[65536]{0:T(1024)} fusion(%t, %i, %n), kind=kCustom, calls=%scattered
}, execution_thread="sparsecore"

ENTRY %main (x: f32[65536], y: s32[1024], z: f32[1024]) -> f32[65536] {
  %x = f32[65536]{0:T(8,128)} parameter(0)
  %y = s32[1024]{0:T(1024)} parameter(1)
  %z = f32[1024]{0:T(1024)} parameter(2)
  %prepared = token[] custom-call(), custom_call_target="PrepareAsyncCallStart"
  %start = ((f32[65536]{0:T(1024)}, s32[1024]{0:T(1024)}, f32[1024]{0:T(1024)}), f32[65536]{0:T(1024)}, u32[]{:S(8)}) call-start(%x, %y, %z), async_execution_thread="sparsecore", to_apply=%away
  ROOT %end = f32[65536]{0:T(1024)} call-done(%start)
}
"""  # noqa: E501


def test_work_on_the_sparse_cores_of_a_tpu() -> None:
    found = count_program(OFFLOADED, ONE)
    assert found.memory_bytes == 3 * 4096  # indices and updates are read, and entries written
    assert not found.kernels


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    ("kind", "function", "whole", "sent"),
    [
        ("all-gather", lambda x: lax.all_gather(x, "fsdp", tiled=True), 4, 3),
        ("all-reduce", lambda x: lax.psum(x, "fsdp"), 1, 2 * 3 / 4),
        ("reduce-scatter", lambda x: lax.psum_scatter(x, "fsdp", tiled=True), 1, 3 / 4),
        ("all-to-all", lambda x: lax.all_to_all(x, "fsdp", 0, 1, tiled=True), 1, 3 / 4),
        ("collective-permute", lambda x: lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]), 1, 1),
    ],
)
def test_bytes_of_collectives(kind: str, function: Any, whole: float, sent: float) -> None:
    mesh = make_mesh("fsdp=4,tensor=2")
    spec = PartitionSpec("tensor")

    def steps(x: Any) -> Any:  # three runs, whose results depend on each other
        return lax.scan(lambda c, _: (c + function(c).sum(), None), x, None, length=3)[0]

    mapped = jax.shard_map(steps, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    text = jax.jit(mapped).lower(jax.ShapeDtypeStruct((32, 12), jnp.float32)).compile().as_text()
    (found,) = count_program(text, dict(mesh.shape)).collectives
    local = 16 * 12 * 4
    assert (found.kind, found.axes, found.runs) == (kind, ("fsdp",), 3)
    assert (found.bytes, found.sent) == (3 * whole * local, 3 * sent * local)
    assert len(found.groups) == (8 if kind == "collective-permute" else 2)


@pytest.mark.parametrize(
    ("text", "groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", [[0, 1], [2, 3], [4, 5], [6, 7]], ("tensor",)),
        ("replica_groups=[2,4]<=[8], use_global_device_ids=true", [[0, 1, 2, 3], [4, 5, 6, 7]], ("fsdp", "tensor")),
        ("replica_groups=[4,2]<=[4,2]T(1,0), dimensions={0}", [[0, 2], [4, 6], [1, 3], [5, 7]], None),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]], ("data",)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add", [[0, 2, 4, 6], [1, 3, 5, 7]], ("data", "fsdp")),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'a'}", [[0, 2], [4, 6], [1, 3], [5, 7]], None),
        ("replica_groups={}, to_apply=%add", [[0, 1, 2, 3, 4, 5, 6, 7]], ("data", "fsdp", "tensor")),
    ],
)
def test_groups_of_chips(text: str, groups: list[list[int]], axes: tuple[str, ...] | None) -> None:
    found = replica_groups(f", channel_id=1, {text}, metadata={{}}", 8)
    assert sorted(map(sorted, found.tolist())) == sorted(map(sorted, groups))
    expected = ("fsdp",) if axes is None else axes
    assert axes_of(found, ("data", "fsdp", "tensor"), (2, 2, 2)) == expected


SCHEDULED = """HloModule step, is_scheduled=true

%start (p: f32[8,4]) -> (f32[8,4], f32[32,4]) {
  %p = f32[8,4]{1,0:S(1)} parameter(0)
  %ag = f32[32,4]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, SPREAD
  ROOT %c = (f32[8,4]{1,0:S(1)}, f32[32,4]{1,0}) custom-call(%ag), custom_call_target="AsyncCollectiveStart"
}

%step (p: f32[8,4], x: f32[64,64]) -> f32[64,64] {
  %p = f32[8,4]{1,0:S(1)} parameter(0)
  %x = f32[64,64]{1,0:S(1)} parameter(1)
  %ag = f32[32,4]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, SPREAD
  ROOT %d = f32[64,64]{1,0:S(1)} convolution(%x, %x), dim_labels=bf_io->bf
}

%done (p: f32[8,4]) -> f32[32,4] {
  %p = f32[8,4]{1,0:S(1)} parameter(0)
  %ag = f32[32,4]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, SPREAD
  ROOT %c = f32[32,4]{1,0} custom-call(%ag), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (p: bf16[8,4]) -> bf16[2,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  %r = bf16[8,4]{1,0} all-reduce(%p), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
  %z = s32[] constant(0)
  ROOT %s = bf16[2,4]{1,0} dynamic-slice(%r, %z, %z), dynamic_slice_sizes={2,4}
}

ENTRY %main (a: f32[8,4], x: f32[64,64], g: bf16[8,4]) -> f32[64,64] {
  %a = f32[8,4]{1,0} parameter(0)
  %x = f32[64,64]{1,0} parameter(1)
  %g = bf16[8,4]{1,0} parameter(2)
  %near = (f32[64,64]{1,0:S(1)}, f32[64,64]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %held = f32[64,64]{1,0:S(1)} copy-done(%near)
  %ps = (f32[8,4]{1,0}, f32[8,4]{1,0:S(1)}, u32[]{:S(2)}) collective-permute-start(%a), channel_id=2, RING
  %b = (f32[8,4]{1,0:S(1)}, f32[32,4]{1,0}) fusion(%a), kind=kCustom, calls=%start
  %one = f32[8,4]{1,0:S(1)} get-tuple-element(%b), index=0
  %d = f32[64,64]{1,0:S(1)} fusion(%one, %held), kind=kOutput, calls=%step
  %e = f32[32,4]{1,0} fusion(%one), kind=kCustom, calls=%done
  %pd = f32[8,4]{1,0:S(1)} collective-permute-done(%ps)
  %h = bf16[2,4]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %out = f32[64,64]{1,0} copy(%d)
}
""".replace("SPREAD", 'dimensions={0}, backend_config={"async_collective_fusion_config":{}}').replace(
    "RING", "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}"
)


def test_what_the_compiler_of_tpus_writes() -> None:
    found = count_program(SCHEDULED, {"fsdp": 4})
    assert found.flops == PRODUCT
    kinds = {one.kind: one for one in found.collectives}
    assert len(kinds) == len(found.collectives) == 3
    gather, scatter, permute = (kinds[kind] for kind in ("all-gather", "reduce-scatter", "collective-permute"))
    assert (gather.bytes, gather.sent, gather.asynchronous, gather.overlapped) == (512, 384, True, PRODUCT)
    assert (scatter.bytes, scatter.sent, scatter.asynchronous) == (64, 48, False)
    assert (permute.sent, permute.asynchronous, permute.overlapped) == (128, True, PRODUCT)
    assert found.memory_bytes < 3 * 4 * 64**2  # x is read, and the result written; what lies nearer does not count
    assert found.memory_bytes >= 2 * 4 * 64**2
    assert found.work[PRODUCT, 0] == 1  # both factors of the product lie nearer
    assert sum(runs for (_, moved), runs in found.work.items() if moved == 4 * 64**2) == 1  # the result is written


LLAMA = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=192, num_hidden_layers=3, head_dim=16, num_attention_heads=4
)
T5 = T5Config(vocab_size=256, d_model=64, d_kv=16, d_ff=192, num_layers=2, num_heads=4)


def gradient(
    config: Any, mesh_text: str, chips: Any, lengths: tuple[int, ...], remat: Any, dtype: str = "float32"
) -> tuple[Counts, int, Any]:
    """Counts of a gradient, the operations of its products by its jaxpr, and the model."""
    mesh = make_mesh(mesh_text, chips)
    model = abstract_model(config, make_options(dtype, remat=remat, mesh=mesh))
    batch = BatchPlacement(mesh, mesh.shape["data"] * mesh.shape["fsdp"]).shapes(lengths)
    unused = ("attention_mask",) if model.family.encoder_decoder else ("attention_mask", "labels")
    batch = {name: shape for name, shape in batch.items() if name not in unused}
    program = jax.jit(
        jax.value_and_grad(model.loss), out_shardings=(None, jax.tree.map(lambda leaf: leaf.sharding, model.params))
    )
    text = program.lower(model.params, batch).compile().as_text()
    return count_program(text, dict(mesh.shape)), matmul_flops(program, model.params, batch), model


def kernels(model: Any) -> int:
    """Values of the kernels of all layers."""
    return sum(leaf.size for leaf in jax.tree.leaves(model.params["layers"]) if leaf.ndim > 2)


@pytest.mark.eight_devices
def test_llama_split_by_fsdp() -> None:
    found, products, model = gradient(LLAMA, "fsdp=8", jax.devices(), (24,), "full")
    tokens, width, layers = 24, 64, 3
    kernel = kernels(model)
    assert kernel == layers * (4 * width**2 + 3 * width * 192)
    scores = 2 * 2 * tokens**2 * width * layers
    forward = 2 * tokens * (kernel + width * 256) + scores
    last = 2 * tokens * 192 * width * layers  # the last product of a layer is not computed again
    hand = 3 * forward + 2 * tokens * kernel + scores - last
    assert found.flops == pytest.approx(hand, rel=0.01)
    assert found.flops == pytest.approx(products / 8, rel=0.01)
    of_layers = [one for one in found.collectives if one.kind == "all-gather" and one.runs == layers]
    assert all(one.axes == ("fsdp",) and one.members == 8 for one in of_layers)
    assert sum(one.bytes for one in of_layers) == 2 * 4 * kernel  # forwards, and backwards
    assert sum(one.sent for one in of_layers) == 2 * 4 * kernel * 7 / 8
    summed = sum(one.bytes for one in found.collectives if one.kind == "all-reduce" and one.runs == layers)
    assert summed == 4 * (kernel + layers * 2 * width)  # gradients, which CPUs sum whole before they take their part


@pytest.mark.eight_devices
def test_llama_split_by_tensor() -> None:
    found, products, _ = gradient(LLAMA, "fsdp=2,tensor=4", jax.devices(), (24,), "none")
    assert found.flops == pytest.approx(products / 8, rel=0.01)
    layers, activations = 3, 24 * 64 * 4
    summed = [one for one in found.collectives if one.kind == "all-reduce" and one.axes == ("tensor",)]
    inside = [one for one in summed if one.runs == layers]
    sums = 2 + 5  # what o and down give, and the gradients that q, k, v, gate and up give to their inputs
    assert sum(one.bytes for one in inside) == layers * sums * activations
    assert sum(one.sent for one in inside) == layers * sums * activations * 2 * 3 / 4


@pytest.mark.eight_devices
def test_operations_of_t5() -> None:
    found, products, _ = gradient(T5, "fsdp=8", jax.devices(), (24, 10), "none")
    assert found.flops == pytest.approx(products / 8, rel=0.01)
    width, hidden, layers = 64, 192, 2
    encoder = 24 * (4 * width**2 + 2 * width * hidden) + 2 * 24**2 * width
    decoder = 10 * (4 * width**2 + 2 * width * hidden) + 2 * 10**2 * width
    across = (2 * 10 + 2 * 24) * width**2 + 2 * 10 * 24 * width
    hand = 3 * 2 * (layers * (encoder + decoder + across) + 10 * width * 256)
    assert found.flops == pytest.approx(hand, rel=0.01)


def needs_tpu_compiler(test: Any) -> Any:
    missing = importlib.util.find_spec("libtpu") is None
    return pytest.mark.skipif(missing, reason="compiling for a TPU that is not attached needs libtpu")(test)


@needs_tpu_compiler
def test_llama_on_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS")  # the TPU's compiler ends the process at flags that only others know
    chips = topology_devices("v5e:4x4")
    found, products, model = gradient(LLAMA, "fsdp=16", chips, (128,), "none", "bfloat16")
    assert (found.endless, found.kernels) == (0, {})
    assert found.flops == pytest.approx(products / 16, rel=0.01)
    layers, kernel = 3, kernels(model)
    of_layers = [one for one in found.collectives if one.runs >= layers]
    gathered = [one for one in of_layers if one.kind == "all-gather"]
    assert sum(one.bytes for one in gathered) == 2 * 2 * kernel  # forwards, and backwards
    assert sum(one.sent for one in gathered) == 2 * 2 * kernel * 15 / 16
    assert all(one.axes == ("fsdp",) for one in of_layers)
    summed = sum(one.bytes for one in of_layers if one.kind in ("all-reduce", "reduce-scatter"))
    assert summed == 2 * kernel


@needs_tpu_compiler
def test_slices_are_joined_by_data_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS")
    devices = topology_devices("v5e:2x2:2")
    found, _, model = gradient(LLAMA, "data=2,fsdp=4", devices, (128,), "none", "bfloat16")
    between = [one for one in found.collectives if "data" in one.axes]
    values = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert {(one.kind, one.axes, one.members) for one in between} == {("all-reduce", ("data",), 2)}
    assert all(one.asynchronous and one.groups.tolist() == [[chip, chip + 4] for chip in range(4)] for one in between)
    assert found.kernels == {}
    assert sum(one.bytes for one in between) >= 2 * values / 4  # a gradient of what each chip of a slice holds
    chip, mesh = CHIPS["v5e"], make_mesh("data=2,fsdp=4", devices)
    bounds = estimate_step(found, chip, Layout.of_torus(list(mesh.devices.flat), chip))
    assert bounds.bounds["network"] >= 2 * values / 4 / (chip.network_gbps * 1e9)
    with pytest.raises(InputError, match=r"2 slices, between which only data may run, and data is 1"):
        make_mesh("fsdp=8", devices)


MIXTRAL = MixtralConfig(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    head_dim=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=8,
    num_experts_per_tok=2,
)


@needs_tpu_compiler
def test_operations_of_experts_on_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS")
    tokens, width, layers, experts, rows = 128, 128, 2, 8, 2 * 128
    found, products, model = gradient(MIXTRAL, "fsdp=4", topology_devices("v5e:2x2"), (tokens,), "none", "bfloat16")
    assert (found.endless, found.kernels) == (0, {})
    of_expert = 3 * width * 256
    every = kernels(model) - layers * experts * of_expert
    assert every == layers * (2 * width**2 + 2 * width * 64 + width * experts)
    forward = 2 * tokens * (every + width * 256) + 2 * rows * layers * of_expert + 4 * tokens**2 * width * layers
    assert products / 4 == pytest.approx(3 * forward, rel=0.01)  # each token meets two experts
    # The TPU's compiler makes the gradients of experts of all rows for each of them.
    assert found.flops == pytest.approx(3 * forward + (experts - 1) * 2 * rows * layers * of_expert, rel=0.01)
