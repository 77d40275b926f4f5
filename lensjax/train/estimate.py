"""Estimates for fine-tuning a model, made without its weights: operations, memory of a device, and seconds."""

import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from lensjax.core.devices import peak_flops
from lensjax.core.pytrees import PyTree
from lensjax.core.roofline.chips import Chip
from lensjax.core.roofline.counters import Counts, count_program
from lensjax.core.roofline.estimate import Layout, StepBounds, estimate_step, step_bounds
from lensjax.core.specs import Strict
from lensjax.models.hub import find_folder, read_config
from lensjax.models.lora import split_trainable
from lensjax.models.model import Model, Params, abstract_model
from lensjax.models.options import make_options
from lensjax.tasks.batches import BatchPlan, Lengths, Shape, collate, example_lengths, fits
from lensjax.tasks.packing import PackedShape, collate_packed, fill_rows
from lensjax.train.loop import planned_steps
from lensjax.train.memory import Memory, compiled, memory_of
from lensjax.train.placement import BatchPlacement
from lensjax.train.prepare import Examples
from lensjax.train.processor import evaluation_seconds, median_seconds, step_seconds
from lensjax.train.spec import FinetuneSpec, TrainingSpec
from lensjax.train.step import state_shapes
from lensjax.train.workload import Workload, adapted

_LISTED = 2_000_000  # examples of a run whose batches are planned one by one, at most
UTILISATION = 0.4  # share of the published peak that is assumed where nothing is timed


@dataclass(frozen=True)
class Work:
    """The work of training that is not stopped early.

    Attributes:
      steps: Numbers of steps with batches of the short and of the long shape.
      validations: Number of evaluations of the validation set.
      tokens: Tokens trained on, with prompts and without padding.
    """

    steps: tuple[int, int] = (0, 0)
    validations: int = 0
    tokens: int = 0


def planned_work(needed: Int[np.ndarray, "examples parts"], short: Lengths, training: TrainingSpec, seed: int) -> Work:
    """The exact work of `lensjax.train.loop.fine_tune`.

    Args:
      needed: Lengths of the examples, see `lensjax.tasks.batches.example_lengths`.
      short: The short shape of batches.
      training: How to train.
      seed: Of the order of examples.
    """
    if not len(needed):
        return Work()
    plan = BatchPlan(fits(needed, short), training.batch_size, seed)
    steps, every = planned_steps(training, plan.steps_per_epoch)
    epochs, rest = divmod(steps, plan.steps_per_epoch)
    last = [plan[epochs * plan.steps_per_epoch + step] for step in range(rest)]
    used = needed.sum(axis=1)
    of_short = epochs * (int(plan.short.sum()) // training.batch_size) + sum(is_short for is_short, _ in last)
    tokens = epochs * int(used.sum()) + sum(int(used[rows].sum()) for _, rows in last)
    return Work((of_short, steps - of_short), -(-steps // every), tokens)


def scaled_work(
    needed: Int[np.ndarray, "examples parts"], short: Lengths, training: TrainingSpec, examples: int
) -> Work:
    """The work on a large number of examples, in proportion to that on those whose lengths are given."""
    fitting = int(fits(needed, short).sum()) * examples // len(needed)
    short_batches, left_over = divmod(fitting, training.batch_size)
    per_epoch = short_batches + -(-(left_over + examples - fitting) // training.batch_size)  # as `BatchPlan` has them
    steps, every = planned_steps(training, per_epoch)
    of_short = steps * short_batches // per_epoch
    tokens = steps * (int(needed.sum()) * examples // len(needed)) // per_epoch
    return Work((of_short, steps - of_short), -(-steps // every), tokens)


class Seconds(Strict):
    """How long a candidate's programs take.

    Attributes:
      steps: A training step of the short and of the long shape.
      evaluation: A batch of evaluation.
      preparing: Tokenising, and tracing the model, once.
      compiling: All programs, once.
    """

    steps: tuple[float, float]
    evaluation: float
    preparing: float = 0.0
    compiling: float = 0.0


class AbstractCandidate(Workload):
    """A candidate with shapes in place of weights, to plan with.

    Args:
      spec: The task, and how models are fine-tuned on it.
      source: Folder or hub id of the model, whose configuration and tokenizer are read.
      examples: Those of the largest rung.
      mesh: Devices, which may be those of a topology.

    Raises:
      InputError: the model is not supported, its tokenizer cannot be used, or the mesh does not divide the model or the
        batch.
    """

    def __init__(self, spec: FinetuneSpec, source: str, examples: Examples, mesh: Mesh) -> None:
        super().__init__(spec, examples, mesh)
        training = spec.training
        self._spent: dict[str, float] = {}
        self._steps: dict[Shape, jax.stages.Compiled] = {}
        with self._measuring("preparing"):
            how = training.remat, training.attention, mesh, training.quantise
            options = make_options(self.dtype, self.param_dtype, *how)
            folder = find_folder(source, what="tokenizer")
            model = adapted(abstract_model(read_config(folder), options, folder), training)
            with tempfile.TemporaryDirectory() as made:  # its files stay readable while they are mapped
                self.prepare(model, Path(made))
            self.state = state_shapes(model, training, mesh)
            for shape in self.step_shapes:
                self.step_flops(shape)

    @property
    def curvature_model(self) -> Model:
        """The model as its curvature is measured: in float32, on these devices if they are attached."""
        attached = self.mesh.devices.flat[0] in jax.devices()
        options = make_options("float32", mesh=self.mesh if attached else None)
        return abstract_model(self.abstract.config, options, self.abstract.folder)

    def work(self, seed: int, examples: int) -> Work:
        """The work of training on a number of examples of a seed; more than there are count as repetitions."""
        tokens = self.tokens.train[seed].take(examples)
        needed = example_lengths(tokens, self.abstract.family.encoder_decoder)
        rows = round(len(needed) * examples / max(tokens.examples, 1))  # conversations may have several
        if rows > _LISTED:
            return scaled_work(needed, self.lengths[0], self.spec.training, rows)
        return planned_work(np.resize(needed, (rows, needed.shape[1])), self.lengths[0], self.spec.training, seed)

    def _evaluation(self, work: Work) -> int:
        """Floating-point operations of all validations and the test."""
        validation = self.evaluation_placement.batches(len(self.tokens.validation)) * self.evaluation_flops
        return work.validations * validation + self.test_flops

    def flops(self, work: Work) -> int:
        """Floating-point operations of a run, as its `Result` will have them."""
        steps = sum(n * self.step_flops(shape) for n, shape in zip(work.steps, self.step_shapes, strict=True))
        return steps + self._evaluation(work)

    def seconds(self, work: Work, taken: Seconds) -> float:
        """Seconds of a run whose programs are compiled."""
        steps = sum(n * each for n, each in zip(work.steps, taken.steps, strict=True))
        return steps + self._evaluation(work) / self.evaluation_flops * taken.evaluation

    def compiled_step(self, shape: Shape) -> jax.stages.Compiled:
        """The compiled program of a training step.

        Raises:
          NoRoom: it does not fit the device.
        """
        if shape not in self._steps:
            arguments = self.state, self.frozen, self.placement.shapes(shape), 0.0
            self._steps[shape] = self._compile(self.programs.step, *arguments)
        return self._steps[shape]

    @cached_property
    def compiled_losses(self) -> jax.stages.Compiled:
        """The compiled program of a batch of evaluation.

        Raises:
          NoRoom: it does not fit the device.
        """
        batch = self.evaluation_placement.shapes(self.tokens.evaluation_length)
        return self._compile(self.programs.losses, self.trained, self.frozen, batch)

    @cached_property
    def memory(self) -> Memory:
        """Bytes on each device; of a step that is not packed, which a packed one needs less than.

        Raises:
          NoRoom: a program does not fit the device.
        """
        return memory_of(self.compiled_step(self.lengths[1]), self.compiled_losses, self.state)

    def timed(self) -> Seconds:
        """Time the programs on these devices, with made-up weights and real examples.

        Raises:
          NoRoom: a program does not fit the device.
        """
        steps, losses = {shape: self.compiled_step(shape) for shape in self.step_shapes}, self.compiled_losses
        trained, frozen = split_trainable(_made_up(self.abstract.params))
        with self._measuring("compiling"):
            state = jax.block_until_ready(self.programs.start(trained))
        taken = {}
        for shape, step in steps.items():
            rows, placement = self.rows(shape, self.placement), self.placement.of(shape)

            def take(
                step: jax.stages.Compiled = step,
                rows: Mapping[str, np.ndarray] = rows,
                placement: BatchPlacement = placement,
            ) -> None:
                nonlocal state
                state, metrics = step(state, frozen, placement.to_devices(rows), 0.0)
                float(metrics.loss)

            taken[shape] = median_seconds(take)
        rows = self.rows(self.tokens.evaluation_length, self.evaluation_placement)

        def evaluate() -> None:
            jax.block_until_ready(losses(state.params, frozen, self.evaluation_placement.to_devices(rows)))

        short, long = (taken[shape] for shape in self.step_shapes)
        return Seconds(steps=(short, long), evaluation=median_seconds(evaluate), **self._spent)

    def from_peak(self) -> Seconds | None:
        """Seconds estimated from the devices' published peak; None if there is none."""
        peak = peak_flops(self.mesh.devices.flat[0], self.dtype)
        if peak is None:
            return None
        speed = UTILISATION * peak * self.mesh.size
        short, long = (self.step_flops(shape) / speed for shape in self.step_shapes)
        return Seconds(steps=(short, long), evaluation=self.evaluation_flops / speed)

    def from_rates(self) -> Seconds:
        """Seconds of the compiled programs by what this machine's processor does, which is measured in a few.

        Raises:
          NoRoom: a program does not fit the device.
        """
        devices = len(self.mesh.local_devices)  # which share the processor

        def counted(program: jax.stages.Compiled) -> Counts:
            return count_program(program.as_text() or "", dict(self.mesh.shape))

        short, long = (devices * step_seconds(counted(self.compiled_step(shape))) for shape in self.step_shapes)
        evaluation = devices * evaluation_seconds(counted(self.compiled_losses))
        return Seconds(steps=(short, long), evaluation=evaluation, **self._spent)

    def bounds(self, shape: Shape, chip: Chip) -> StepBounds:
        """Bounds of the time of a step, from its compiled program, on the TPU slice that the mesh's devices are of.

        Raises:
          NoRoom: it does not fit the device.
        """
        counts = count_program(self.compiled_step(shape).as_text() or "", dict(self.mesh.shape))
        fields = self.placement.shapes(shape)
        read = ("input_ids", "labels") if self.abstract.family.encoder_decoder else ("input_ids",)
        return step_bounds(
            counts,
            chip,
            Layout.of(list(self.mesh.devices.flat), chip),
            flops=self.step_flops(shape),
            masked=self.masked_flops(shape),
            tokens=sum(math.prod(fields[name].shape) for name in read),
        )

    def from_programs(self, chip: Chip) -> Seconds:
        """Seconds of the compiled programs at the chip's published rates, which they take at least; see `bounds`.

        Raises:
          NoRoom: a program does not fit the device.
        """
        short, long = (self.bounds(shape, chip).seconds for shape in self.step_shapes)
        counts = count_program(self.compiled_losses.as_text() or "", dict(self.mesh.shape))
        unseen = bool(counts.kernels or counts.endless)
        evaluation = estimate_step(
            counts,
            chip,
            Layout.of(list(self.mesh.devices.flat), chip),
            self.evaluation_flops / self.mesh.size if unseen else None,
        )
        return Seconds(steps=(short, long), evaluation=evaluation.seconds)

    def _compile(self, program: Any, *arguments: PyTree) -> jax.stages.Compiled:
        with self._measuring("compiling"):
            return compiled(program, *arguments)

    @contextmanager
    def _measuring(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._spent[what] = self._spent.get(what, 0.0) + time.perf_counter() - began

    def rows(self, shape: Shape, placement: BatchPlacement) -> Mapping[str, np.ndarray]:
        """A batch of training examples that fit a shape."""
        tokens = next(iter(self.tokens.train.values()))
        needed = example_lengths(tokens, self.abstract.family.encoder_decoder)
        if isinstance(shape, PackedShape):
            some = np.arange(min(len(tokens), placement.rows))
            while (held := fill_rows(needed[some, 0], shape.rows, shape.length)) is None:
                some = some[:-1]
            return collate_packed(tokens, some, held, placement.of(shape).local_rows(), shape.length, self.padding)
        fitting = np.flatnonzero(fits(needed, shape))[: placement.rows]
        return collate(tokens, fitting, placement.local_rows(), shape, self.padding)


def _made_up(shapes: Params) -> Params:
    """Small weights that are quickly made: random ones take seconds to compile, and GPUs are faster on zeros."""

    def make() -> Params:
        def leaf(of: jax.ShapeDtypeStruct) -> jax.Array:
            places = (
                jax.lax.broadcasted_iota(jnp.float32, of.shape, axis) * (axis + 1) for axis in range(len(of.shape))
            )
            return (0.02 * jnp.sin(sum(places, jnp.ones(of.shape)))).astype(of.dtype)

        return jax.tree.map(leaf, shapes)

    return jax.jit(make, out_shardings=jax.tree.map(lambda shape: shape.sharding, shapes))()
