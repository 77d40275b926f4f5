"""The training loop: from pretrained parameters to those of the lowest validation loss, resumable at every step."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from lensjax.core.errors import InputError
from lensjax.core.processes import agreed
from lensjax.core.signals import stop_requested
from lensjax.models.model import Params
from lensjax.tasks.batches import BatchPlan, Lengths, Packing, Shape, example_lengths, fits, training_batches
from lensjax.tasks.packing import PackedShape
from lensjax.tasks.tokens import Tokens
from lensjax.train.evaluate import Evaluation, evaluate
from lensjax.train.optimiser import learning_rate
from lensjax.train.placement import BatchPlacement
from lensjax.train.spec import TrainingSpec
from lensjax.train.step import Programs, StepMetrics, shapes_of

if TYPE_CHECKING:  # Orbax is slow to import
    from lensjax.train.checkpoint import Checkpoints

_MINUTE = 60.0
_MOST_BETWEEN = 500  # steps between validations, at most
_VALIDATIONS = 32  # validations in `min_steps` steps


class Stopped(Exception):
    """Training stopped as a signal asked it to, after saving a checkpoint."""


class Diverged(Exception):
    """A loss became infinite or NaN; the message says where, and `progress` how far training had come."""

    def __init__(self, message: str, progress: "Progress") -> None:
        super().__init__(message)
        self.progress = progress


class Observer(Protocol):
    """Observes training."""

    def begin(self, progress: "Progress", steps: int) -> None:
        """Before the first step of this attempt."""

    def step(self, progress: "Progress", steps: int, metrics: Mapping[str, float]) -> None:
        """After every step."""

    def validation(self, progress: "Progress", evaluation: Evaluation) -> None:
        """After every validation."""


@dataclass(frozen=True)
class TrainingInputs:
    """Everything that training depends on besides its programs, spec and first parameters.

    Attributes:
      train, validation: The examples' tokens.
      lengths: The short and the long shape of training batches.
      packing: The packed shapes that take their place, if any do.
      evaluation_length: The shape of validation batches.
      encoder_decoder: Whether the model reads prompts with an encoder.
      padding: Token that fills rows up.
      seed: Of the order of examples.
      rate: Peak learning rate.
      flops: Floating-point operations of a step, by the shape of its batch.
      masked_flops: Those of them whose results causality masks.
      evaluation_flops: Floating-point operations of a validation batch.
      identity: Values that a checkpoint must have been made with to be resumed.
    """

    train: Tokens
    validation: Tokens
    lengths: tuple[Lengths, Lengths]
    evaluation_length: Lengths
    encoder_decoder: bool
    padding: int
    seed: int
    rate: float
    flops: Callable[[Shape], int] = lambda shape: 0
    masked_flops: Callable[[Shape], int] = lambda shape: 0
    evaluation_flops: int = 0
    identity: Mapping[str, Any] = field(default_factory=dict)
    packing: Packing = (None, None)


@dataclass(frozen=True)
class Progress:
    """How far training has come.

    Attributes:
      step: Steps done.
      best_step, best_loss: The lowest validation loss, in nats per target token, and the step that it was measured at.
      stale: Validations since then.
      tokens: Tokens trained on, with prompts and without padding.
      flops: Floating-point operations of matrix products, with those of validation.
      masked_flops: Those of training steps whose results causality masks, which fused attention leaves out.
      seconds: Time spent, over all resumptions.
      waiting: The part of these seconds in which devices waited for their next batch.
    """

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    stale: int = 0
    tokens: int = 0
    flops: int = 0
    masked_flops: int = 0
    seconds: float = 0.0
    waiting: float = 0.0


def planned_steps(spec: TrainingSpec, steps_per_epoch: int) -> tuple[int, int]:
    """Number of steps of training that is not stopped early, and of steps between validations."""
    steps = max(spec.epochs * steps_per_epoch, spec.min_steps)
    steps = steps if spec.max_steps is None else min(steps, spec.max_steps)
    usual = max(steps_per_epoch, math.ceil(spec.min_steps / _VALIDATIONS))
    return steps, spec.evaluate_every or min(usual, _MOST_BETWEEN)


def fine_tune(
    programs: Programs,
    params: Params,
    frozen: Params,
    inputs: TrainingInputs,
    spec: TrainingSpec,
    placements: tuple[BatchPlacement, BatchPlacement],
    checkpoints: "Checkpoints",
    observer: Observer,
) -> tuple[Params, Progress]:
    """Fine-tune a model, from its last checkpoint on if there is one.

    Args:
      programs: The model's compiled programs, see `lensjax.train.step.make_programs`.
      params: Pretrained parameters that are trained; their memory is donated.
      frozen: The other parameters, or {}.
      inputs: The examples, and all else that the result depends on.
      spec: How to train.
      placements: How training and validation batches lie on the devices.
      checkpoints: Where to resume from, and to save to.
      observer: Hears of every step and validation.

    Returns:
      The parameters of the lowest validation loss, and how far training came.

    Raises:
      Stopped: a signal asked to stop; a checkpoint of the last step is on disk.
      Diverged: a loss or a gradient is not finite; the last checkpoint is from before.
      InputError: the checkpoint is of another run, or cannot be read or written.
    """
    state = programs.start(params)
    progress, lengths, packing = Progress(), inputs.lengths, inputs.packing
    last = checkpoints.record()
    if last is not None:
        step, record = last
        _check_identity(record["identity"], inputs.identity, checkpoints)
        progress = Progress(**record["progress"])
        lengths = _as_lengths(record["lengths"])
        packing = _as_packing(record.get("packing", (None, None)))
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
        inputs.train,
        plan,
        lengths,
        training.local_rows(),
        inputs.padding,
        range(progress.step, steps),
        tuple(None if shape is None else (shape, training.of(shape).local_rows()) for shape in packing),
    )
    observer.begin(progress, steps)
    clock = _Clock()

    def save(now: Progress) -> None:
        record = {
            "identity": dict(inputs.identity),
            "progress": asdict(now),
            "lengths": lengths,
            "packing": [None if shape is None else (shape.rows, shape.length) for shape in packing],
        }
        checkpoints.save(now.step, state, best, record)
        clock.saved()

    pending: tuple[Progress, StepMetrics, float] | None = None
    while progress.step < steps and progress.stale < spec.patience:
        step = progress.step
        asked = time.perf_counter()
        shape, local = next(batches)
        batch = training.of(shape).to_devices(local)
        waited = time.perf_counter() - asked
        rate = learning_rate(spec, inputs.rate, step, steps)
        state, metrics = programs.step(state, frozen, batch, rate)
        _, examples = plan[step]
        progress = replace(
            progress,
            step=step + 1,
            tokens=progress.tokens + int(used[examples].sum()),
            flops=progress.flops + inputs.flops(shape),
            masked_flops=progress.masked_flops + inputs.masked_flops(shape),
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
            validated = evaluate(
                programs, state.params, frozen, inputs.validation, inputs.evaluation_length, validating, inputs.padding
            )
            if not math.isfinite(validated.loss):
                raise Diverged(f"the validation loss is {validated.loss} after step {progress.step}", progress)
            better = validated.loss < progress.best_loss
            if better:
                best = programs.copy(state.params)
            progress = replace(
                progress,
                best_step=progress.step if better else progress.best_step,
                best_loss=validated.loss if better else progress.best_loss,
                stale=0 if better else progress.stale + 1,
                flops=progress.flops + per_validation,
                seconds=progress.seconds + clock.lap(),
            )
            observer.validation(progress, validated)
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


def _check_identity(recorded: Mapping[str, Any], wanted: Mapping[str, Any], checkpoints: "Checkpoints") -> None:
    differing = [key for key in wanted if recorded.get(key) != wanted[key]]
    if differing:
        raise InputError(
            f"The checkpoint in {checkpoints.folder} was made with another {' and '.join(differing)}; remove the "
            "folder to start anew, or give the same as then."
        )


def _as_lengths(recorded: Any) -> tuple[Lengths, Lengths]:
    short, long = (tuple(int(length) for length in lengths) for lengths in recorded)
    return short, long


def _as_packing(recorded: Any) -> Packing:
    short, long = (None if shape is None else PackedShape(*map(int, shape)) for shape in recorded)
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
