"""A model of every family is a pure function that all of JAX's transformations take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.models import Model, from_config, supported

QUICK = {"xla_backend_optimization_level": 0}
MakeConfig = Callable[[str], Any]
MakeModel = Callable[..., Model]


def batch_for(model: Model, rows: int = 2, time: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(3, model.config.vocab_size, (rows, time))
    mask = np.ones_like(ids)
    mask[0, -2:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": np.where(mask == 1, np.roll(ids, 1, axis=0), -100)}


def random_direction(params: Any, seed: int = 0) -> Any:
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        structure, [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    )


def inner(a: Any, b: Any) -> jax.Array:
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.vdot(x, y), a, b)))


# Tests of hvp have all families.
@pytest.mark.parametrize("model_type", ["gpt2", pytest.param("switch_transformers", marks=pytest.mark.long)])
def test_curvature_agrees_in_every_mode(model_type: str, tiny_config: MakeConfig, random_model: MakeModel) -> None:
    """vᵀHv by forward-over-forward is that by a linearised gradient; for one, also by every other nesting."""
    with jax.enable_x64(True):
        model = random_model(tiny_config(model_type), dtype="float64")
        batch, v = batch_for(model), random_direction(model.params)

        def f(params: Any) -> jax.Array:
            return model.loss(params, batch)

        def slope(params: Any) -> jax.Array:
            return jax.jvp(f, (params,), (v,))[1]

        def modes(params: Any) -> list[jax.Array]:
            found = [jax.jvp(slope, (params,), (v,))[1], inner(v, jax.linearize(jax.grad(f), params)[1](v))]
            if model_type == "gpt2":
                found.append(inner(v, jax.jvp(jax.grad(f), (params,), (v,))[1]))
                found.append(inner(v, jax.grad(slope)(params)))
                found.append(inner(v, jax.grad(lambda p: inner(v, jax.grad(f)(p)))(params)))
            return found

        first, *others = jax.jit(modes, compiler_options=QUICK)(model.params)
        np.testing.assert_allclose(others, np.full(len(others), first), rtol=1e-9)


@pytest.mark.parametrize("model_type", supported())
def test_examples_one_by_one_or_padded_equal_the_batch(
    model_type: str, tiny_config: MakeConfig, random_model: MakeModel
) -> None:
    model = random_model(tiny_config(model_type))
    batch = {key: jnp.asarray(value) for key, value in batch_for(model).items()}

    def losses(params: Any) -> tuple[Any, ...]:
        padded = {
            key: jnp.pad(v, ((0, 0), (0, 5)), constant_values=-100 * (key == "labels")) for key, v in batch.items()
        }
        one_by_one = jax.vmap(model.loss, in_axes=(None, 0))(params, batch)
        return one_by_one, model.loss(params, padded, "example"), *model.token_losses(params, batch)

    one_by_one, padded, tokens, weights = jax.jit(losses, compiler_options=QUICK)(model.params)
    together = tokens.sum(1) / weights.sum(1)
    np.testing.assert_allclose(one_by_one, together, rtol=2e-6)
    np.testing.assert_allclose(padded, together, rtol=2e-6)
    counted = np.asarray(batch["labels"] != -100)
    if not model.family.encoder_decoder:  # each position predicts the label after it
        counted = np.pad(counted[:, 1:], ((0, 0), (0, 1)))
    np.testing.assert_array_equal(weights, counted)


@pytest.mark.parametrize("model_type", ["llama"])
def test_rematerialisation_saves_memory_and_changes_no_gradient(model_type: str, tiny_config: MakeConfig) -> None:
    config = tiny_config(model_type)
    config.num_hidden_layers = 8
    models = [from_config(config, remat=remat) for remat in ("none", "cheap", "dots", "full")]
    batch = batch_for(models[0], rows=4, time=32)
    steps = [jax.jit(jax.grad(model.loss)).lower(model.params, batch).compile() for model in models]
    memory = [step.memory_analysis().temp_size_in_bytes for step in steps]
    assert memory[3] < memory[2] < memory[1] < memory[0]
    kept, *recomputed = (step(models[0].params, batch) for step in steps)
    for gradients in recomputed:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), kept, gradients)


def test_without_labels_tokens_predict_the_next(tiny_config: MakeConfig) -> None:
    model = from_config(tiny_config("gpt2"))
    ids = np.arange(1, 9).reshape(1, 8)
    logits = np.asarray(model.apply(model.params, {"input_ids": ids}), np.float64)[0]
    expected = [np.log(np.exp(logits[t]).sum()) - logits[t, ids[0, t + 1]] for t in range(7)]
    np.testing.assert_allclose(model.loss(model.params, {"input_ids": ids}), np.mean(expected), rtol=1e-6)
    left = {"input_ids": ids, "attention_mask": np.array([[0, 0, 1, 1, 1, 1, 1, 0]])}
    _, weights = model.token_losses(model.params, left)
    np.testing.assert_array_equal(weights, [[0, 0, 1, 1, 1, 1, 0, 0]])


def test_an_encoder_decoder_needs_targets(tiny_config: MakeConfig) -> None:
    model = from_config(tiny_config("t5"))
    with pytest.raises(InputError, match=r"needs labels or decoder_input_ids"):
        model.apply(model.params, {"input_ids": np.ones((1, 3), int)})


@pytest.mark.parametrize(
    ("model_type", "key"),
    [("gpt2", "token_type_ids"), ("gpt2", "decoder_input_ids"), ("t5", "position_ids"), ("llama", "inputs_embeds")],
)
def test_keys_of_batches_that_would_be_ignored_are_refused(model_type: str, key: str, tiny_config: MakeConfig) -> None:
    model = from_config(tiny_config(model_type)).without_params()
    batch = {"input_ids": np.ones((1, 3), int), "labels": np.ones((1, 3), int)}
    with pytest.raises(InputError, match=rf"^The batch has {key}, of which {model_type} makes no use; leave it out\."):
        jax.eval_shape(model.apply, model.params, batch | {key: np.ones((1, 3), int)})
    jax.eval_shape(model.apply, model.params, batch)


@pytest.mark.parametrize(
    ("model_type", "side"),
    [("gpt2", "input_ids"), ("opt", "input_ids"), ("bart", "input_ids"), ("bart", "labels"), ("pegasus", "input_ids")],
)
def test_sequences_beyond_learned_positions_are_refused(model_type: str, side: str, tiny_config: MakeConfig) -> None:
    model = from_config(tiny_config(model_type)).without_params()
    batch = {"input_ids": np.ones((1, 64), int), "labels": np.ones((1, 64), int)}
    jax.eval_shape(model.apply, model.params, batch)
    with pytest.raises(InputError, match=r"A sequence has 65 tokens, and the model has learned 64 positions; shorten"):
        jax.eval_shape(model.apply, model.params, batch | {side: np.ones((1, 65), int)})


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_positions_that_a_batch_gives_are_learned_ones(model_type: str, tiny_config: MakeConfig) -> None:
    model = from_config(tiny_config(model_type))
    batch = {"input_ids": np.ones((1, 3), int)}
    beyond = batch | {"position_ids": np.array([[62, 63, 64]])}
    with pytest.raises(InputError, match=r"at position 64, and the model has learned 64, .*; lower position_ids"):
        model.apply(model.params, beyond)
    long = {"input_ids": np.ones((1, 66), int), "segment_ids": np.repeat([[1, 2]], [65, 1], axis=1)}
    with pytest.raises(InputError, match=r"at position 64, .*; lower the length of segments"):
        model.apply(model.params, long)
    assert np.isnan(jax.jit(model.apply)(model.params, beyond)).any()  # where nobody can look
    assert np.isfinite(model.apply(model.params, batch | {"position_ids": np.array([[61, 62, 63]])})).all()


def test_positions_that_begin_anew_need_segments_or_a_mask(tiny_config: MakeConfig) -> None:
    model = from_config(tiny_config("llama"))
    batch = {"input_ids": np.arange(1, 6)[None], "position_ids": np.array([[0, 1, 2, 0, 1]])}
    with pytest.raises(InputError, match=r"position_ids begin anew in row 0 at token 3; number .* by segment_ids, or"):
        model.apply(model.params, batch)
    apart = model.apply(model.params, batch | {"segment_ids": np.array([[1, 1, 1, 2, 2]])})
    alone = model.apply(model.params, {"input_ids": batch["input_ids"][:, 3:]})
    np.testing.assert_allclose(apart[:, 3:], alone, atol=1e-5)
    together = model.apply(model.params, batch | {"attention_mask": np.ones((1, 5), int)})
    assert np.abs(together[:, 3:] - alone).max() > 1e-4


@pytest.mark.parametrize("token", [96, -1, -100])
def test_an_id_outside_the_vocabulary_is_loud(token: int, tiny_config: MakeConfig) -> None:
    model = from_config(tiny_config("gpt2"))
    batch = {"input_ids": np.array([[1, token, 2]])}
    assert np.isnan(model.apply(model.params, batch)).all()
    assert np.isnan(model.loss(model.params, batch))


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2", "switch_transformers"])
def test_save_and_load_is_the_same_model(model_type: str, tiny_config: MakeConfig, tmp_path: Path) -> None:
    model = from_config(tiny_config(model_type))
    model.save(tmp_path / "saved")
    again = lensjax.models.load(tmp_path / "saved")
    assert again.family is model.family
    jax.tree.map(np.testing.assert_array_equal, model.params, again.params)


def test_random_parameters_follow_the_seed(tiny_config: MakeConfig) -> None:
    config = tiny_config("llama")
    first, same, other = (from_config(config, seed=seed).params for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, same)
    kernel = first["layers"]["blocks"]["mlp"]["up"]["kernel"]
    assert not np.array_equal(kernel, other["layers"]["blocks"]["mlp"]["up"]["kernel"])
    assert not np.array_equal(kernel[0], kernel[1])
    assert abs(np.std(kernel) / config.initializer_range - 1) < 0.1


def test_params_are_plain_dicts_and_do_not_bake_into_functions(tiny_config: MakeConfig) -> None:
    model = from_config(tiny_config("gpt2"))
    assert type(model.params) is dict
    assert type(model.params["layers"]) is dict
    batch = batch_for(model)
    doubled = jax.tree.map(lambda p: 2 * p, model.params)
    f = jax.jit(model.loss)
    assert f(model.params, batch) != f(doubled, batch)
    assert model.with_params(doubled).params is doubled
