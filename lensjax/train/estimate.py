"""What fine-tuning one candidate takes, known before its weights are: operations, memory of a device, and seconds."""

import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
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

from lensjax.core.flops import peak_flops
from lensjax.measure.kernel import kernel_flops
from lensjax.measure.probes import probe_batch
from lensjax.measure.rungs import rung_flops
from lensjax.models.abstract import CHIP_GB, abstract_model, add_abstract_lora, device_bytes
from lensjax.models.hub import find_folder, read_config
from lensjax.models.lora import split_trainable
from lensjax.models.model import Model, Params
from lensjax.models.options import make_options
from lensjax.study.plan_schema import Memory, Seconds
from lensjax.study.spec import HessianEvidence, KernelEvidence
from lensjax.tasks.batches import BatchPlan, Lengths, collate, example_lengths, fits
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import Example
from lensjax.tasks.tokens import padding_token
from lensjax.train.loop import planned_steps
from lensjax.train.placement import BatchPlacement
from lensjax.train.prepare import Examples, tokenise_all
from lensjax.train.spec import FinetuneSpec, TrainingSpec
from lensjax.train.step import make_programs, program_flops, state_shapes

_LISTED = 2_000_000  # examples of a run whose batches are planned one by one, at most
UTILISATION = 0.4  # share of the published peak that is assumed where nothing is timed
_LEAST, _MOST, _LONG = 3, 30, 1.0  # calls of a program that are timed, and seconds after which they are enough


@dataclass(frozen=True)
class Work:
    """What training does if it is not stopped early.

    Attributes:
      steps: Of the short and of the long shape of batches.
      validations: How often the validation set is gone through.
      tokens: Tokens trained on, prompts included and padding not.
    """

    steps: tuple[int, int] = (0, 0)
    validations: int = 0
    tokens: int = 0


def planned_work(needed: Int[np.ndarray, "examples parts"], short: Lengths, training: TrainingSpec, seed: int) -> Work:
    """What training on examples of those lengths does, exactly; see `lensjax.train.loop.fine_tune`."""
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
    """What training on more examples than could be listed does, were they as those whose lengths are given."""
    fitting = int(fits(needed, short).sum()) * examples // len(needed)
    short_batches, left_over = divmod(fitting, training.batch_size)
    per_epoch = short_batches + -(-(left_over + examples - fitting) // training.batch_size)  # as `BatchPlan` has them
    steps, every = planned_steps(training, per_epoch)
    of_short = steps * short_batches // per_epoch
    tokens = steps * (int(needed.sum()) * examples // len(needed)) // per_epoch
    return Work((of_short, steps - of_short), -(-steps // every), tokens)


class NoRoom(Exception):
    """The compiler says that a program does not fit the device; the message is "needed of there is", where known."""


class AbstractCandidate:
    """A candidate as `lensjax.train.candidate.Candidate` is, with shapes in place of weights.

    Args:
      source: Folder or hub id of the model, of which configuration and tokenizer are read.
      examples: Those of the largest rung.
      mesh: Devices, which may be those of a topology.

    Raises:
      InputError: the model is not supported or cannot be made into tokens for, or the mesh does not divide it or the
        batch.
    """

    def __init__(self, spec: FinetuneSpec, source: str, examples: Examples, mesh: Mesh) -> None:
        training = spec.training
        self.mesh, self.training = mesh, training
        self._spent: dict[str, float] = {}
        self._steps: dict[Lengths, Any] = {}
        part = training.batch_size // training.accumulation
        self.placement = BatchPlacement(mesh, training.batch_size, training.accumulation)
        self.evaluation_placement = BatchPlacement(mesh, training.evaluation_batch_size or 2 * part)
        self.placement.check("batch_size")
        self.evaluation_placement.check("evaluation_batch_size")
        with self._measuring("preparing"):
            self.model = self._abstract(source)
            self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.model.params))
            if training.method == "lora":
                how = training.lora_rank, training.lora_alpha, training.lora_targets
                self.model = add_abstract_lora(self.model, *how)
            with tempfile.TemporaryDirectory() as made:  # whose files stay readable while they are mapped
                self.tokens = tokenise_all(examples, self.model, spec, Path(made))
            self.trained, self.frozen = split_trainable(self.model.params)
            self.state = state_shapes(self.model, training, mesh)
            self.programs: Any = make_programs(self.model, training, mesh)
            of_step, of_losses = program_flops(self.model, training, mesh, self.programs)
            self.step_flops = {shape: of_step(self.placement.shapes(shape)) for shape in set(self.shapes)}
            self.evaluation_flops = of_losses(self.evaluation_placement.shapes(self.tokens.evaluation_length))

    @property
    def shapes(self) -> tuple[Lengths, Lengths]:
        """The short and the long shape of training batches, which may be the same."""
        return self.tokens.lengths

    def work(self, seed: int, examples: int) -> Work:
        """What training on so many examples of a seed does; more than there are, as if the same came again."""
        tokens = self.tokens.train[seed].take(examples)
        needed = example_lengths(tokens, self.model.family.encoder_decoder)
        if examples > _LISTED:
            return scaled_work(needed, self.shapes[0], self.training, examples)
        return planned_work(np.resize(needed, (examples, needed.shape[1])), self.shapes[0], self.training, seed)

    def evaluations(self, work: Work) -> int:
        """Batches of evaluation that go with it: of every validation, and of the test."""
        batches = self.evaluation_placement.batches
        return work.validations * batches(len(self.tokens.validation)) + batches(len(self.tokens.test))

    def flops(self, work: Work) -> int:
        """Floating-point operations of a run, as its `Result` has them."""
        steps = sum(n * self.step_flops[shape] for n, shape in zip(work.steps, self.shapes, strict=True))
        return steps + self.evaluations(work) * self.evaluation_flops

    def seconds(self, work: Work, taken: Seconds) -> float:
        """Time of a run whose programs are compiled."""
        steps = sum(n * each for n, each in zip(work.steps, taken.steps, strict=True))
        return steps + self.evaluations(work) * taken.evaluation

    def compiled_step(self, shape: Lengths) -> Any:
        """The program of a training step, compiled.

        Raises:
          NoRoom: the compiler says that it does not fit.
        """
        if shape not in self._steps:
            arguments = self.state, self.frozen, self.placement.shapes(shape), 0.0
            self._steps[shape] = self._compile(self.programs.step, *arguments)
        return self._steps[shape]

    @cached_property
    def compiled_losses(self) -> Any:
        """The program of a batch of evaluation, compiled.

        Raises:
          NoRoom: the compiler says that it does not fit.
        """
        batch = self.evaluation_placement.shapes(self.tokens.evaluation_length)
        return self._compile(self.programs.losses, self.trained, self.frozen, batch)

    @cached_property
    def memory(self) -> Memory:
        """Bytes on each device.

        Raises:
          NoRoom: the compiler says that a program does not fit.
        """
        step = self.compiled_step(self.shapes[1]).memory_analysis()
        losses = self.compiled_losses.memory_analysis()
        arguments, outputs, temporaries, aliased = (
            getattr(step, f"{kind}_size_in_bytes") for kind in ("argument", "output", "temp", "alias")
        )
        whole = arguments + outputs + temporaries - aliased
        evaluation = losses.argument_size_in_bytes + losses.output_size_in_bytes + losses.temp_size_in_bytes
        moments, best = device_bytes(self.state.optimiser), device_bytes(self.trained)
        return Memory(
            arguments=arguments,
            outputs=outputs,
            temporaries=temporaries,
            aliased=aliased,
            step=whole,
            evaluation=evaluation,
            moments=moments,
            best=best,
            peak=max(whole, evaluation + moments) + best,
        )

    def timed(self) -> Seconds:
        """Time the programs on these devices, with made-up weights and real examples.

        Raises:
          NoRoom: the compiler says that a program does not fit.
        """
        steps, losses = {shape: self.compiled_step(shape) for shape in self.shapes}, self.compiled_losses
        trained, frozen = split_trainable(_made_up(self.model.params))
        with self._measuring("compiling"):
            state = jax.block_until_ready(self.programs.start(trained))
        taken = {}
        for shape, step in steps.items():
            rows = self.rows(shape, self.placement)

            def take(step: Any = step, rows: Mapping[str, Any] = rows) -> None:
                nonlocal state
                state, metrics = step(state, frozen, self.placement.to_devices(rows), 0.0)
                float(metrics.loss)

            taken[shape] = _median_seconds(take)
        rows = self.rows(self.tokens.evaluation_length, self.evaluation_placement)

        def evaluate() -> None:
            jax.block_until_ready(losses(state.params, frozen, self.evaluation_placement.to_devices(rows)))

        short, long = (taken[shape] for shape in self.shapes)
        return Seconds(steps=(short, long), evaluation=_median_seconds(evaluate), **self._spent)

    def from_peak(self) -> Seconds | None:
        """What the devices' published peak lets expect; None where there is none."""
        peak = peak_flops(self.mesh.devices.flat[0], self.dtype)
        if peak is None:
            return None
        speed = UTILISATION * peak * self.mesh.size
        short, long = (self.step_flops[shape] / speed for shape in self.shapes)
        return Seconds(steps=(short, long), evaluation=self.evaluation_flops / speed)

    def kernel_flops(self, task: TaskSpec, examples: list[Example], evidence: KernelEvidence) -> int:
        """Operations of the neural tangent kernel; on devices that are not attached, those that one of ours would do.

        Raises:
          InputError: the memory does not suffice for it, or see `lensjax.measure.kernel.measure_kernel`.
        """
        model = self._for_evidence
        return kernel_flops(model, probe_batch(model, task, examples), evidence.functional)

    def terms_flops(self, task: TaskSpec, examples: list[Example], evidence: HessianEvidence) -> int:
        """Operations of the terms of the bound at a fine-tuned model.

        Raises:
          InputError: see `lensjax.curvature.bound.layer_terms`.
        """
        model = self._for_evidence
        batch = probe_batch(model, task, examples)
        return rung_flops(model, [batch], block=evidence.block, positive_steps=evidence.positive_steps)

    @property
    def _for_evidence(self) -> Model:
        """The model as its curvature is measured."""
        mesh = self.mesh if self._attached else None
        return abstract_model(self.model.config, make_options("float32", mesh=mesh), self.model.folder)

    @property
    def _attached(self) -> bool:
        return self.mesh.devices.flat[0] in jax.devices()

    def _compile(self, program: Any, *arguments: Any) -> Any:
        with self._measuring("compiling"):
            try:
                return program.lower(*arguments).compile()
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                found = re.search(r"Used ([\d.]+\w) of ([\d.]+\w)", str(error))
                raise NoRoom("" if found is None else f"{found[1]} of {found[2]}") from error

    @contextmanager
    def _measuring(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._spent[what] = self._spent.get(what, 0.0) + time.perf_counter() - began

    def _abstract(self, source: str) -> Model:
        """The model as it is before it has adapters."""
        training = self.training
        automatic = "float32" if self.mesh.devices.flat[0].platform == "cpu" else "bfloat16"
        self.dtype = automatic if training.dtype == "auto" else training.dtype
        held = "float32" if training.method == "full" else self.dtype
        options = make_options(self.dtype, held, training.remat, training.attention, self.mesh)
        folder = find_folder(source, what="tokenizer")
        return abstract_model(read_config(folder), options, folder)

    def rows(self, shape: Lengths, placement: BatchPlacement) -> Mapping[str, np.ndarray]:
        """A batch of training examples that fit a shape."""
        tokens = next(iter(self.tokens.train.values()))
        needed = example_lengths(tokens, self.model.family.encoder_decoder)
        fitting = np.flatnonzero(fits(needed, shape))[: placement.rows]
        return collate(tokens, fitting, placement.local_rows(), shape, padding_token(self.model.tokenizer))


def device_memory(mesh: Mesh, topology: str | None = None) -> int | None:
    """Bytes that each device has, of which CPU devices share the host's; None where nobody knows."""
    if topology is not None:
        return CHIP_GB[topology.partition(":")[0]] * 10**9
    device = mesh.devices.flat[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if device.platform != "cpu":
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(mesh.local_devices)


def _made_up(shapes: Params) -> Params:
    """Small weights, quickly made: random ones take seconds to compile, and of zeros GPUs compute faster."""

    def make() -> Any:
        def leaf(of: jax.ShapeDtypeStruct) -> jax.Array:
            places = (
                jax.lax.broadcasted_iota(jnp.float32, of.shape, axis) * (axis + 1) for axis in range(len(of.shape))
            )
            return (0.02 * jnp.sin(sum(places, jnp.ones(of.shape)))).astype(of.dtype)

        return jax.tree.map(leaf, shapes)

    return jax.jit(make, out_shardings=jax.tree.map(lambda shape: shape.sharding, shapes))()


def _median_seconds(call: Callable[[], None]) -> float:
    """Of a call, after one that does not count."""
    call()
    taken: list[float] = []
    while len(taken) < _LEAST or (len(taken) < _MOST and sum(taken) < _LONG):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
