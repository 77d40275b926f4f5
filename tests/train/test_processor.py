"""Programs take longer than the processor's rates say by as much as a small model's step does."""

import time
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from transformers import GPT2Config

from lensjax.core.roofline.counters import count_program
from lensjax.models.loading import from_config
from lensjax.models.sharding import make_mesh
from lensjax.train import processor
from lensjax.train.memory import compiled
from lensjax.train.spec import TrainingSpec
from lensjax.train.step import make_programs


def test_programs_of_another_model_take_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds of all cores, so that others' work does not count."""
    monkeypatch.setattr(processor, "time", SimpleNamespace(perf_counter=time.process_time))
    monkeypatch.setattr(processor, "_slower", cache(processor._slower.__wrapped__))
    mesh = make_mesh({}, jax.devices()[:1])
    model = from_config(GPT2Config(vocab_size=900, n_positions=64, n_embd=64, n_layer=3, n_head=4), mesh=mesh)
    programs = make_programs(model, TrainingSpec(), mesh)
    ids = jnp.arange(24 * 50).reshape(24, 50) % 900
    batch = {"input_ids": ids, "labels": ids}
    losses = compiled(programs.losses, model.params, {}, batch)
    taken = processor.median_seconds(lambda: jax.block_until_ready(losses(model.params, {}, batch)))
    assert taken / 3 < processor.evaluation_seconds(count_program(losses.as_text(), {})) < 3 * taken

    state = programs.start(model.params)
    step = compiled(programs.step, state, {}, batch, 0.0)

    def take() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, {}, batch, 0.0))

    taken = processor.median_seconds(take)
    assert taken / 3 < processor.step_seconds(count_program(step.as_text(), {})) < 3 * taken
    assert min(processor._slower()) > 1 / 2
