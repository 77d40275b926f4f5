"""The training loop: from pretrained parameters to those with the lowest validation loss, resumable at every step."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from lensjax.core.errors import InputError
from lensjax.core.processes import agreed
from lensjax.core.signals import stop_requested
from lensjax.models.model import Params
from lensjax.tasks.batches import BatchPlan, Lengths, example_lengths, fits, training_batches
from lensjax.tasks.tokens import Tokens
from lensjax.train.checkpoint import Checkpoints
from lensjax.train.evaluate import Evaluation, evaluate
from lensjax.train.optimiser import learning_rate
from lensjax.train.placement import BatchPlacement
from lensjax.train.spec import TrainingSpec
from lensjax.train.step import Programs, StepMetrics, shapes_of

_MINUTE = 60.0
_OFTEN = 500  # steps between validations, at most
_VALIDATIONS = 32  # of the least steps


class Stopped(Exception):
    """Training was asked to stop, and has saved what it had."""


class Diverged(Exception):
    """A loss became infinite or NaN; the message says where, `progress` what had been done."""

    def __init__(self, message: str, progress: "Progress") -> None:
        super().__init__(message)
        self.progress = progress


class Observer(Protocol):
    """Is told what happens while training goes on."""

    def begin(self, progress: "Progress", steps: int) -> None:
        """Before the first step of this attempt."""

    def step(self, progress: "Progress", steps: int, metrics: Mapping[str, float]) -> None:
        """After every step."""

    def validation(self, progress: "Progress", found: Evaluation) -> None:
        """After every validation."""


@dataclass(frozen=True)
class TrainingInputs:
    """Everything that training depends on besides the programs and the first parameters.

    Attributes:
      train, validation: The examples.
      lengths: Of the short and the long shape of training batches.
      evaluation_length: Of validation batches.
      encoder_decoder: Whether prompts and targets are apart.
      padding: Token that fills rows up.
      seed: Of the order of examples.
      rate: Peak learning rate.
      flops: Floating-point operations of a step, given the lengths of its batch.
      evaluation_flops: Of a validation batch.
      identity: What a checkpoint must agree with to be resumed.
    """

    train: Tokens
    validation: Tokens
    lengths: tuple[Lengths, Lengths]
    evaluation_length: Lengths
    encoder_decoder: bool
    padding: int
    seed: int
    rate: float
    flops: Callable[[Lengths], int] = lambda lengths: 0
    evaluation_flops: int = 0
    identity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far training has come.

    Attributes:
      step: Steps done.
      best_step, best_loss: Where the validation loss was lowest, and what it was.
      stale: Validations since then.
      tokens: Tokens trained on, prompts included and padding not.
      flops: Floating-point operations of matrix products, validation included.
      seconds: Time spent, over all resumptions.
      waiting: Of them, the seconds in which the devices' next batch was not ready.
    """

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    stale: int = 0
    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0
    waiting: float = 0.0


def planned_steps(spec: TrainingSpec, steps_per_epoch: int) -> tuple[int, int]:
    """Steps that training takes if it is not stopped early, and those between validations."""
    steps = max(spec.epochs * steps_per_epoch, spec.min_steps)
    steps = steps if spec.max_steps is None else min(steps, spec.max_steps)
    usual = max(steps_per_epoch, math.ceil(spec.min_steps / _VALIDATIONS))
    return steps, spec.evaluate_every or min(usual, _OFTEN)


def fine_tune(
    programs: Programs,
    params: Params,
    frozen: Params,
    inputs: TrainingInputs,
    spec: TrainingSpec,
    placements: tuple[BatchPlacement, BatchPlacement],
    checkpoints: Checkpoints,
    observer: Observer,
) -> tuple[Params, Progress]:
    """The parameters of the lowest validation loss, from the last checkpoint on where there is one.

    Args:
      params: Pretrained parameters, of which those that are trained are donated.
      placements: How training and validation batches lie on the devices.

    Raises:
      Stopped: the process was told to end; a checkpoint of the step that was reached is on disk.
      Diverged: a loss is not finite; the last checkpoint is from before.
      InputError: the checkpoint is of something else, or cannot be read or written.
    """
    state = programs.start(params)
    progress, lengths = Progress(), inputs.lengths
    found = checkpoints.record()
    if found is not None:
        step, record = found
        _check_identity(record["identity"], inputs.identity, checkpoints)
        progress = Progress(**record["progress"])
        lengths = _as_lengths(record["lengths"])
        like = shapes_of(state)
        del state  # for its room
        state, best = checkpoints.restore(step, like, like.params)
    else:
        best = programs.copy(state.params)

    needed = example_lengths(inputs.train, inputs.encoder_decoder)
    plan = BatchPlan(fits(needed, lengths[0]), spec.batch_size, inputs.seed)
    steps, every = planned_steps(spec, plan.steps_per_epoch)
    training, validating = placements
    used = needed.sum(axis=1)
    per_validation = inputs.evaluation_flops * validating.batches(len(inputs.validation))
    batches = training_batches(
        inputs.train, plan, lengths, training.local_rows(), inputs.padding, range(progress.step, steps)
    )
    observer.begin(progress, steps)
    clock = _Clock()

    def save(now: Progress) -> None:
        record = {"identity": dict(inputs.identity), "progress": asdict(now), "lengths": lengths}
        checkpoints.save(now.step, state, best, record)
        clock.saved()

    pending: tuple[Progress, StepMetrics, float] | None = None
    while progress.step < steps and progress.stale < spec.patience:
        step = progress.step
        asked = time.perf_counter()
        batch = training.to_devices(next(batches))
        waited = time.perf_counter() - asked
        rate = learning_rate(spec, inputs.rate, step, steps)
        state, metrics = programs.step(state, frozen, batch, rate)
        short, examples = plan[step]
        progress = replace(
            progress,
            step=step + 1,
            tokens=progress.tokens + int(used[examples].sum()),
            flops=progress.flops + inputs.flops(lengths[0] if short else lengths[1]),
            waiting=progress.waiting + waited,
            seconds=progress.seconds + clock.lap(),
        )
        if pending is not None:  # of the step before, so that the devices always have the next one to do
            _report(*pending, steps, observer)
        pending = progress, metrics, rate
        validate = progress.step % every == 0 or progress.step == steps
        stop = stop_requested(progress.step)
        due = spec.checkpoint_every is not None and progress.step % spec.checkpoint_every == 0
        if validate or due or stop:
            _report(*pending, steps, observer)
            pending = None
        if validate:
            found_loss = evaluate(
                programs, state.params, frozen, inputs.validation, inputs.evaluation_length, validating, inputs.padding
            )
            if not math.isfinite(found_loss.loss):
                raise Diverged(f"the validation loss is {found_loss.loss} after step {progress.step}", progress)
            better = found_loss.loss < progress.best_loss
            if better:
                best = programs.copy(state.params)
            progress = replace(
                progress,
                best_step=progress.step if better else progress.best_step,
                best_loss=found_loss.loss if better else progress.best_loss,
                stale=0 if better else progress.stale + 1,
                flops=progress.flops + per_validation,
                seconds=progress.seconds + clock.lap(),
            )
            observer.validation(progress, found_loss)
            due = due or (spec.checkpoint_every is None and agreed(clock.since_saved > _MINUTE))
        if stop or due:
            save(progress)
        if stop:
            checkpoints.wait()
            raise Stopped
    return best, progress


def _report(progress: Progress, metrics: StepMetrics, rate: float, steps: int, observer: Observer) -> None:
    loss = float(metrics.loss)
    if not math.isfinite(loss):
        raise Diverged(f"the loss is {loss} at step {progress.step}", progress)
    norm = float(metrics.gradient_norm)
    if not math.isfinite(norm):
        raise Diverged(f"the gradient's norm is {norm} at step {progress.step}", progress)
    shown = {"loss": loss, "gradient_norm": norm, "learning_rate": rate, "tokens": float(metrics.tokens)}
    observer.step(progress, steps, shown)


def _check_identity(recorded: Mapping[str, Any], wanted: Mapping[str, Any], checkpoints: Checkpoints) -> None:
    differing = [key for key in wanted if recorded.get(key) != wanted[key]]
    if differing:
        raise InputError(
            f"The checkpoint in {checkpoints.folder} was made with another {' and '.join(differing)}; remove the "
            "folder to start anew, or give what it was made with."
        )


def _as_lengths(recorded: Any) -> tuple[Lengths, Lengths]:
    short, long = (tuple(int(length) for length in lengths) for lengths in recorded)
    return short, long


class _Clock:
    """Time since the last lap, and since the last checkpoint."""

    def __init__(self) -> None:
        self._lap = self._saved = time.perf_counter()

    def lap(self) -> float:
        before, self._lap = self._lap, time.perf_counter()
        return self._lap - before

    def saved(self) -> None:
        self._saved = time.perf_counter()

    @property
    def since_saved(self) -> float:
        return time.perf_counter() - self._saved
