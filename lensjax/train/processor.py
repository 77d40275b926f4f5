"""Seconds of programs on this machine's processor, by its rates and by what a small model takes.

Rates of single kinds of work promise more than a program gets, in which arrays go in and out of caches, products have
shapes of all kinds, and cores wait for each other. A step and an evaluation of a small model are therefore timed too,
and what they take longer than the rates say, those of all models are taken to.
"""

import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from transformers import LlamaConfig

from lensjax.core.roofline.counters import Counts, count_program
from lensjax.core.roofline.processor import measure_rates, program_seconds
from lensjax.models.loading import from_config
from lensjax.models.lora import split_trainable
from lensjax.models.sharding import make_mesh
from lensjax.train.memory import compiled
from lensjax.train.spec import TrainingSpec
from lensjax.train.step import make_programs

_FEWEST, _MOST, _ENOUGH = 3, 30, 1.0  # calls that are timed, and seconds after which they suffice
_EXAMPLES, _TOKENS = 32, 40


class Slower(NamedTuple):
    """Factors by which programs take longer than the rates say.

    Attributes:
      step, evaluation: Of a training step, and of a batch of evaluation.
    """

    step: float
    evaluation: float


def step_seconds(counts: Counts) -> float:
    """Seconds of a training step on this processor, which is measured once in a process, in a few seconds."""
    return _slower().step * program_seconds(counts, measure_rates())


def evaluation_seconds(counts: Counts) -> float:
    """Seconds of a batch of evaluation, likewise."""
    return _slower().evaluation * program_seconds(counts, measure_rates())


@cache
def _slower() -> Slower:
    """By the programs of a small model."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    mesh = make_mesh({}, jax.local_devices()[:1])
    model = from_config(config, mesh=mesh)
    programs = make_programs(model, TrainingSpec(batch_size=_EXAMPLES), mesh)
    trained, frozen = split_trainable(model.params)
    ids = jnp.arange(_EXAMPLES * _TOKENS, dtype=jnp.int32).reshape(_EXAMPLES, _TOKENS) % config.vocab_size
    batch = {"input_ids": ids, "labels": ids}
    losses = compiled(programs.losses, trained, frozen, batch)
    evaluation = median_seconds(lambda: jax.block_until_ready(losses(trained, frozen, batch)))
    state = programs.start(trained)
    step = compiled(programs.step, state, frozen, batch, 0.0)

    def take() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, frozen, batch, 0.0))

    def by_rates(program: jax.stages.Compiled) -> float:
        return program_seconds(count_program(program.as_text() or "", dict(mesh.shape)), measure_rates())

    return Slower(median_seconds(take) / by_rates(step), evaluation / by_rates(losses))


def median_seconds(call: Callable[[], object]) -> float:
    """The median time of a call, after one that does not count."""
    call()
    taken: list[float] = []
    while len(taken) < _FEWEST or (len(taken) < _MOST and sum(taken) < _ENOUGH):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
