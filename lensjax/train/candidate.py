"""One model and one task, ready to be fine-tuned on any number of the task's examples."""

import math
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import jax
from jax.sharding import Mesh

from lensjax.core.artefacts import Damaged, read_sealed, sealed, set_aside
from lensjax.core.errors import InputError, shorten
from lensjax.core.files import LOCK, locked, make_folder, remove_leftovers, write_files
from lensjax.core.presets import preset_in_use
from lensjax.core.processes import is_first, on_first, wait_for_all
from lensjax.core.signals import stop_requested, stopping_on_signals
from lensjax.core.terminal import say
from lensjax.core.version import __version__
from lensjax.models.gguf.header import provenance
from lensjax.models.hub import find_folder
from lensjax.models.inputs import check_finite_weights, model_fingerprint
from lensjax.models.loading import load
from lensjax.models.lora import join, split_trainable
from lensjax.models.model import Model, Params
from lensjax.models.peft import save_adapters, unwritable
from lensjax.models.sharding import make_mesh
from lensjax.train.evaluate import Evaluation, evaluate
from lensjax.train.loop import Diverged, Progress, Stopped, TrainingInputs, fine_tune
from lensjax.train.memory import check_room, compiled, memory_of
from lensjax.train.prepare import Examples, TokenSets
from lensjax.train.recorder import Recorder
from lensjax.train.results import Result, metric_fields, read_result, write_curves, write_result
from lensjax.train.runs import CLAIM, Claim, Run, note_model, opened_folder
from lensjax.train.samples import sample_answers
from lensjax.train.spec import FinetuneSpec
from lensjax.train.step import state_shapes
from lensjax.train.workload import Workload, adapted

_NO_ROOM = "the devices ran out of memory; lower batch_size, or raise accumulation, remat or the number of devices"


class Candidate(Workload):
    """A model and a task, ready to be fine-tuned on any of the ladder's subsets; programs are compiled once.

    Args:
      spec: The task, and how models are fine-tuned on it.
      source: Folder or hub id of the model.
      name: The model's name in results.
      examples: Those of the largest rung.
      out: Folder of the spec's results.
      mesh: Devices; by default all, along `fsdp`.
      over_memory: Train also where the machine's memory is not enough.
      samples: Number of test examples that fine-tuned models write answers to.

    Raises:
      InputError: the model cannot be loaded, or is too large for the memory; its tokenizer cannot be used; or the mesh
        does not divide the model or the batch.
    """

    def __init__(
        self,
        spec: FinetuneSpec,
        source: str,
        name: str,
        examples: Examples,
        out: Path,
        mesh: Mesh | None = None,
        *,
        over_memory: bool = False,
        samples: int = 0,
    ) -> None:
        super().__init__(spec, examples, make_mesh() if mesh is None else mesh)
        self.source, self.name, self.out = source, name, out
        self._over_memory, self._samples = over_memory, samples
        try:
            model = self.pretrained()
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            devices = "one device" if self.mesh.size == 1 else f"{self.mesh.size} devices"
            lora = "" if spec.training.method == "lora" else ", or method lora, which trains few parameters"
            raise InputError(
                f"{shorten(source, 400)} does not fit in the memory of {devices}; take a smaller model, or more "
                f"devices along fsdp{lora}."
            ) from error
        self._loaded: Model | None = model  # for the first run; later runs load it again
        self.weights = model_fingerprint(find_folder(source))
        self.remark = provenance(find_folder(source))
        self.prepare(model, out)

    @property
    def folder(self) -> Path:
        """Folder of this model's runs."""
        return self.out / self.name

    def pretrained(self) -> Model:
        """The model before fine-tuning, with adapters if those are trained."""
        training = self.spec.training
        model = load(
            self.source,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            mesh=self.mesh,
            remat=training.remat,
            attention=training.attention,
            quantise=training.quantise,
        )
        return adapted(model, training)

    def _check_unchanged(self) -> None:
        """Raise InputError where the model's files are no longer those that this was made of."""
        if on_first(lambda: model_fingerprint(find_folder(self.source))) != self.weights:
            raise InputError(
                f"The files of {shorten(self.source, 400)} changed while it was fine-tuned; give back those that it "
                "had, or give the changed model another name."
            )

    def _check_memory(self) -> None:
        """Raise TooLarge where batches need more memory than the machine has, unless they are wanted all the same."""
        if self._over_memory:
            return
        state = state_shapes(self.abstract, self.spec.training, self.mesh)
        batches = (
            self.placement.shapes(self.step_shapes[1]),
            self.evaluation_placement.shapes(self.tokens.evaluation_length),
        )
        step = compiled(self.programs.step, state, self.frozen, batches[0], 0.0)
        losses = compiled(self.programs.losses, self.trained, self.frozen, batches[1])
        check_room(self.name, memory_of(step, losses, state), self.spec.training, self.mesh)

    def planned(self, examples: int, seed: int, rate: float) -> Run:
        """The run of a rung, which `make` makes."""
        return Run.of(self.folder, examples, seed, rate)

    def claim_folder(self) -> None:
        """Record in this model's folder that it holds the results of this model.

        Raises:
          InputError: it holds those of another.
        """

        def note() -> None:
            path = self.folder / CLAIM
            try:
                claim = read_sealed(path, Claim, required=False)
            except Damaged as error:
                set_aside(path, error.why, self.out)
                claim = None
            if claim is None:
                make_folder(self.folder)
                if not self._are_all_ours():
                    raise _of_another_model(self.folder, "")
                ours = Claim(source=self.source, weights=self.weights)
                write_files({path: sealed(ours.model_dump())}, follow=False)
            elif claim.weights != self.weights:
                raise _of_another_model(self.folder, f" ({shorten(claim.source, 200)}, as its files were then)")

        on_first(note)

    def _are_all_ours(self) -> bool:
        """Whether all results in this model's folder are of this model, as far as they say."""
        for folder in self.folder.glob("examples-*"):
            try:
                result = read_result(folder)
            except Damaged:  # it is made again
                continue
            if result is not None and result.weights not in ("", self.weights):
                return False
        return True

    def make(self, run: Run, recorder: Recorder, *, save_model: bool = False) -> Result:
        """Make a run while no other command does.

        Raises:
          Stopped: a signal asked to stop; the same call goes on from there.
          InputError: another command is making it; or see `train`.
        """
        with ExitStack() as held, stopping_on_signals():

            def lock() -> None:
                # Another spec may have taken the folder as long as there were no runs in it.
                with opened_folder(self.out, self.spec, self.examples.digest):
                    make_folder(run.folder)
                try:
                    held.enter_context(locked(run.folder / LOCK, blocking=False))
                except BlockingIOError as error:
                    raise InputError(
                        f"Another command is making {shorten(run.folder, 400)} at this moment; wait for it, or stop it."
                    ) from error
                remove_leftovers(run.folder)

            on_first(lock)
            result = self.train(run, recorder, save_model=save_model)
            if stop_requested():
                raise Stopped
        return result

    def train(self, run: Run, recorder: Recorder, *, save_model: bool = False) -> Result:
        """Fine-tune and test, from the last checkpoint of an earlier attempt on, and write the result.

        Args:
          run: The run.
          recorder: Observes it.
          save_model: Whether to save the fine-tuned model too.

        Returns:
          The result, which has failed if training diverged or ran out of memory.

        Raises:
          Stopped: a signal asked to stop; the same call goes on from there.
          TooLarge: a batch needs more memory than the machine has.
          InputError: a file cannot be written, the checkpoint is of another run, or losses are NaN from the start
            because the model's weights are.
        """
        from lensjax.train.checkpoint import Checkpoints  # Orbax is slow to import

        progress, damaged, checkpoints = Progress(), "", None
        try:
            checkpoints = Checkpoints(run.checkpoints) if run.examples else None
            model, self._loaded = self._loaded or self.pretrained(), None
            self._check_unchanged()
            began = time.perf_counter()
            if run.examples:
                self._check_memory()
            compiling = time.perf_counter() - began
            trained, frozen = split_trainable(model.params)
            del model  # so that its parameters are freed once training has used them
            if checkpoints is not None:
                placements = (self.placement, self.evaluation_placement)
                with recorder.run(f"{self.name}, {run.examples:,} examples", run.folder):
                    trained, progress = fine_tune(
                        self.programs,
                        trained,
                        frozen,
                        self._inputs(run),
                        self.spec.training,
                        placements,
                        checkpoints,
                        recorder,
                    )
            began = time.perf_counter()
            test = self.test(trained, frozen)
            progress = replace(progress, seconds=progress.seconds + compiling + time.perf_counter() - began)
            if not math.isfinite(test.loss):
                raise Diverged(f"the test loss is {test.loss}", progress)
            result = self._result(run, progress, test)
            if self._samples and run.examples:
                some = sample_answers(self.abstract, join(trained, frozen), self.tokens.test, self._samples)
                result = result.model_copy(update={"samples": some})
            if save_model and not on_first(run.model.exists):
                self._save(self.abstract.with_params(join(trained, frozen)), run)
        except Damaged as error:
            if error.path != run.checkpoints.absolute() or jax.process_count() > 1:
                raise
            damaged = error.why
        except Diverged as error:
            if error.progress.step <= 1:
                on_first(lambda: check_finite_weights(find_folder(self.source)))
            result = self._result(run, error.progress, None, str(error))
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            result = self._result(run, progress, None, _NO_ROOM)
        finally:
            if checkpoints is not None:
                checkpoints.close()
        if damaged:  # and training has used the model
            say(set_aside(run.checkpoints, damaged, self.out), error=True)
            return self.train(run, recorder, save_model=save_model)
        return self.finish(run, result)

    def _save(self, model: Model, run: Run) -> None:
        """Keep a fine-tuned model: its adapters in PEFT's format, where that has a place for them, and all of it."""
        if model.options.lora is not None and not unwritable(model) and not on_first(run.adapters.exists):
            save_adapters(model, run.adapters, self.source)
        model.save(run.model)
        on_first(lambda: note_model(run.folder))

    def finish(self, run: Run, result: Result) -> Result:
        """Write the result of a run, and the table of all."""
        if is_first():
            make_folder(run.folder)
            write_result(run.folder, result)
            write_curves(self.out, self.spec.max_unwritable)
            if result.status == "ok":
                shutil.rmtree(run.checkpoints, ignore_errors=True)
        wait_for_all("result")
        return result

    def fingerprint(self, run: Run) -> str:
        """Hash of the training examples of a run."""
        return self.examples.fingerprint(run.seed, run.examples)

    def test(self, trained: Params, frozen: Params) -> Evaluation:
        """Evaluate the model on the test set."""
        return evaluate(
            self.programs,
            trained,
            frozen,
            self.tokens.test,
            self.tokens.evaluation_length,
            self.evaluation_placement,
            self.padding,
            self.tokens.test_bytes,
            self.tokens.choices,
        )

    def _inputs(self, run: Run) -> TrainingInputs:
        tokens = self.tokens
        return TrainingInputs(
            train=tokens.train[run.seed].take(run.examples),
            validation=tokens.validation,
            lengths=tokens.lengths,
            packing=self.packing,
            evaluation_length=tokens.evaluation_length,
            encoder_decoder=self.abstract.family.encoder_decoder,
            padding=self.padding,
            seed=run.seed,
            rate=run.rate,
            flops=self.step_flops,
            masked_flops=self.masked_flops,
            evaluation_flops=self.evaluation_flops,
            identity={
                "spec": self.examples.digest,
                "training examples": self.fingerprint(run),
                "model": self.weights,
                "learning rate": run.rate,
                "dtype": self.dtype,
            },
        )

    def _result(self, run: Run, progress: Progress, test: Evaluation | None, error: str = "") -> Result:
        return Result(
            model=self.name,
            examples=run.examples,
            loss=None if test is None else test.loss,
            seed=run.seed,
            size=self.parameters,
            family=self.abstract.family.model_type,
            standard_error=None if test is None or math.isnan(test.standard_error) else test.standard_error,
            **({} if test is None else metric_fields(test)),
            status="failed" if error else "ok",
            validation_loss=progress.best_loss if progress.best_step else None,
            learning_rate=run.rate or None,
            best_step=progress.best_step,
            steps=progress.step,
            tokens=progress.tokens,
            flops=progress.flops + (0 if test is None else self.test_flops),
            seconds=round(progress.seconds, 3),
            test_examples=0 if test is None else test.examples,
            test_tokens=0 if test is None else test.tokens,
            method=self.spec.training.method,
            dtype=self.dtype,
            device=jax.devices()[0].device_kind,
            devices=self.mesh.size,
            xla=preset_in_use(),
            spec=self.examples.digest,
            data=self.fingerprint(run),
            weights=self.weights,
            origin=self.examples.origin,
            lensjax=__version__,
            jax=jax.__version__,
            error=error,
            note="" if test is None else _note(test, self.tokens, self.remark),
            writing=self.tokens.writing,
        )


def _of_another_model(folder: Path, which: str) -> InputError:
    return InputError(
        f"{shorten(folder, 400)} holds results of another model{which}; give this one another name, or the files back "
        "that the model had."
    )


def _note(test: Evaluation, tokens: TokenSets, remark: str) -> str:
    """Remarks on weights and conversations, and why metrics are missing that whole texts would have had."""
    cut, said = int(tokens.test.target_cut.sum()), [one for one in (remark, tokens.remark) if one]
    if cut:
        unknown = "nats_per_example is" if test.bits_per_byte is not None else "nats_per_example and bits_per_byte are"
        without = f"{unknown} not known: {cut:,} of the test targets were cut at max_target_tokens"
        said.append(without if test.bits_per_byte is not None else f"{without}, and the tokenizer does not say where")
    if tokens.choices is not None and test.choice_accuracy is None:
        said.append(f"choice_accuracy is not known: {cut + tokens.choices.cut:,} choices were cut at max_target_tokens")
    return "; ".join(said)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that the host or the devices have too little memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
