"""A training step: accumulation, sharding and adapters change how it is computed and not what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lensjax.models
from lensjax.models.lora import add_lora, split_trainable
from lensjax.models.model import abstract_model
from lensjax.models.options import make_options
from lensjax.tasks.packing import PackedShape, fill_rows
from lensjax.train.placement import BatchPlacement
from lensjax.train.spec import TrainingSpec
from lensjax.train.step import make_programs, masked_flops, program_flops, state_shapes

ROWS, TIME = 16, 12


def make_batch(config, seed=0):
    random = np.random.default_rng(seed)
    ids = random.integers(3, config.vocab_size, (ROWS, TIME)).astype(np.int32)
    lengths = random.integers(3, TIME + 1, ROWS)[:, None]
    seen = np.arange(TIME) < lengths
    labels = np.where(seen & (np.arange(TIME) >= 2), ids, -100).astype(np.int32)
    return {"input_ids": np.where(seen, ids, 0), "attention_mask": seen.astype(np.int32), "labels": labels}


def packed(batch):
    """The examples of a batch in rows of twice the length, and half as many."""
    tokens = batch["attention_mask"].sum(axis=1)
    made = {
        name: np.full((ROWS // 2, 2 * TIME), -100 * (name == "labels"), np.int32) for name in ("labels", "input_ids")
    }
    made["segment_ids"] = np.zeros_like(made["labels"])
    for row, held in enumerate(fill_rows(tokens, ROWS // 2, 2 * TIME)):
        start = 0
        for number, example in enumerate(held, 1):
            for name in ("labels", "input_ids"):
                made[name][row, start : start + tokens[example]] = batch[name][example, : tokens[example]]
            made["segment_ids"][row, start : start + tokens[example]] = number
            start += tokens[example]
    return made


def train(model, steps=3, lora=False, packing=False, **settings):
    """Parameters and losses after some steps at learning rate 0.01."""
    mesh = model.options.mesh
    model = add_lora(model, rank=2) if lora else model
    spec = TrainingSpec(batch_size=ROWS, epsilon=1e-3, **settings)  # Adam makes much of tiny differences
    programs = make_programs(model, spec, mesh)
    placement = BatchPlacement(mesh, ROWS, spec.accumulation)
    trained, frozen = split_trainable(model.params)
    state = programs.start(trained)
    losses = []
    for step in range(steps):
        batch = make_batch(model.config, step)
        batch, lies = (packed(batch), placement.of(PackedShape(ROWS // 2, 2 * TIME))) if packing else (batch, placement)
        local = {key: rows[lies.local_rows()] for key, rows in batch.items()}
        state, metrics = programs.step(state, frozen, lies.to_devices(local), 0.01)
        losses.append(float(metrics.loss))
    return state, losses, frozen


@pytest.fixture
def make_model(tiny_config, random_model):
    """A new model each time, as training takes over what its parameters are held in; the same for a family."""
    return lambda model_type, mesh: random_model(tiny_config(model_type), mesh=mesh)


def single():
    return lensjax.models.make_mesh("data=1", jax.devices()[:1])


def assert_same(found, expected, tolerance):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=tolerance, atol=tolerance)


def test_what_counting_traces_is_not_traced_again(make_model, traced):
    model, spec = make_model("gpt2", single()), TrainingSpec(batch_size=ROWS)
    programs, placement = make_programs(model, spec, model.options.mesh), BatchPlacement(model.options.mesh, ROWS, 1)
    of_step, of_losses = program_flops(model, spec, model.options.mesh, programs)
    counted = of_step(placement.shapes((TIME,))), of_losses(placement.shapes((TIME,)))
    assert counted[0] > 2 * counted[1]
    trained, frozen = split_trainable(model.params)
    rows = make_batch(model.config)
    batch = placement.to_devices({name: rows[name] for name in placement.shapes((TIME,))})
    programs.losses(trained, frozen, batch)
    programs.step(programs.start(trained), frozen, batch, 0.01)
    assert len(traced) == 2


def test_operations_do_not_depend_on_what_is_computed_again(distinct_type, tiny_config):
    mesh, batch = single(), {"input_ids": (ROWS, TIME), "labels": (ROWS, TIME + 3)}
    counts = {}
    for remat in ("none", "cheap", "full"):
        model = abstract_model(tiny_config(distinct_type), make_options(remat=remat, mesh=mesh))
        made = [model, add_lora(model, rank=2)] if distinct_type == "llama" else [model]
        lengths = batch if model.family.encoder_decoder else dict.fromkeys(batch, (ROWS, TIME))
        shapes = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in lengths.items()}
        spec = TrainingSpec(batch_size=ROWS)
        counts[remat] = [program_flops(one, spec, mesh, make_programs(one, spec, mesh))[0](shapes) for one in made]
        assert 0 < masked_flops(model, shapes) < counts[remat][0] / 4
    assert counts["cheap"] == counts["none"] == counts["full"]


@pytest.mark.parametrize("model_type", ["llama", "t5"])
def test_accumulation_computes_the_large_batch(make_model, model_type):
    expected, losses, _ = train(make_model(model_type, single()))
    found, accumulated, _ = train(make_model(model_type, single()), accumulation=4)
    np.testing.assert_allclose(accumulated, losses, rtol=1e-5)
    assert_same(found.params, expected.params, 2e-5)


@pytest.mark.eight_devices
def test_eight_devices_compute_what_one_does(make_model):
    expected, losses, _ = train(make_model("llama", single()))
    for axes, settings in (("data=2,fsdp=2,tensor=2", {"packing": True}), ("fsdp=8", {"accumulation": 2})):
        found, sharded, _ = train(make_model("llama", lensjax.models.make_mesh(axes)), **settings)
        np.testing.assert_allclose(sharded, losses, rtol=1e-5)
        assert_same(found.params, expected.params, 2e-5)


@pytest.mark.eight_devices
def test_the_state_lies_as_its_parameters_do(make_model):
    mesh = lensjax.models.make_mesh("fsdp=4,tensor=2")
    model = make_model("llama", mesh)
    spec = TrainingSpec(batch_size=ROWS)
    state = make_programs(model, spec, mesh).start(model.params)
    shapes = state_shapes(model, spec, mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, shapes)
    kernel = state.optimiser[0].mu["layers"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 8, 24)


def test_adapters_alone_are_trained(make_model):
    state, losses, frozen = train(make_model("llama", single()), steps=5, lora=True)
    assert_same(frozen, make_model("llama", single()).params, 0)
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(state.params)} == {"lora_a", "lora_b"}
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(state.params))
    assert losses[-1] != losses[0]


def test_losses_are_those_of_each_example(make_model):
    model = make_model("t5", single())
    programs = make_programs(model, TrainingSpec(), single())
    batch = make_batch(model.config)
    sums, counts, hits = programs.losses(model.params, {}, batch)
    np.testing.assert_allclose(sums / counts, model.loss(model.params, batch, reduction="example"), rtol=1e-5)
    np.testing.assert_array_equal(counts, (batch["labels"] != -100).sum(axis=1))
    best = np.argmax(model.apply(model.params, batch), axis=-1)
    np.testing.assert_array_equal(hits, (best == batch["labels"]).sum(axis=1))


@pytest.mark.eight_devices
def test_hits_are_the_same_where_the_vocabulary_is_divided(make_model):
    one = make_model("llama", single())
    batch = make_batch(one.config)
    best = np.roll(np.argmax(one.apply(one.params, batch), axis=-1), 1, axis=1)
    some = (np.arange(TIME) % 3 > 0) & (batch["labels"] != -100)
    batch["labels"] = np.where(some, best, batch["labels"]).astype(np.int32)
    expected = make_programs(one, TrainingSpec(), single()).losses(one.params, {}, batch)
    assert 0 < expected[2].sum() < expected[1].sum()
    mesh = lensjax.models.make_mesh("data=2,fsdp=2,tensor=2")
    model = make_model("llama", mesh)
    found = make_programs(model, TrainingSpec(), mesh).losses(
        model.params, {}, BatchPlacement(mesh, ROWS, 1).to_devices(batch)
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_array_equal(found[1:], expected[1:])
