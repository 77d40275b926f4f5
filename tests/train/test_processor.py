"""Programs take longer than the processor's rates say by as much as a small model's step does."""

import time
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


def test_a_step_of_another_model_takes_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds of all cores, so that others' work does not count."""
    monkeypatch.setattr(processor, "time", SimpleNamespace(perf_counter=time.process_time))
    monkeypatch.setattr(processor, "_slower", processor._slower.__wrapped__)
    model = from_config(
        GPT2Config(vocab_size=900, n_positions=64, n_embd=64, n_layer=3, n_head=4),
        mesh=make_mesh({}, jax.devices()[:1]),
    )
    programs = make_programs(model, TrainingSpec(), make_mesh({}, jax.devices()[:1]))
    state = programs.start(model.params)
    ids = jnp.arange(24 * 50).reshape(24, 50) % 900
    batch = {"input_ids": ids, "labels": ids}
    step = compiled(programs.step, state, {}, batch, 0.0)

    def take() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, {}, batch, 0.0))

    counts = count_program(step.as_text(), {})
    taken = processor.median_seconds(take)
    assert processor._slower() > 1 / 2
    assert taken / 3 < processor.expected_seconds(counts) < 3 * taken
