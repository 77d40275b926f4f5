"""All that fine-tuning a model on a task needs besides its weights: tokens, compiled programs, and their cost."""

from functools import cache
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from lensjax.core.errors import InputError
from lensjax.models.lora import add_lora, split_trainable
from lensjax.models.model import Model, abstract_model
from lensjax.tasks.batches import Lengths, Packing, Shape, choose_packing, example_lengths
from lensjax.tasks.tokens import padding_token
from lensjax.train.placement import BatchPlacement
from lensjax.train.prepare import Examples, tokenise_all
from lensjax.train.spec import FinetuneSpec, TrainingSpec
from lensjax.train.step import make_programs, masked_flops, program_flops, shapes_of


class Workload:
    """A model and a task on given devices, without weights: what `Candidate` and `AbstractCandidate` have in common.

    Args:
      spec: The task, and how models are fine-tuned on it.
      examples: Those of the largest rung.
      mesh: Devices, which may be those of a topology.

    Attributes:
      dtype, param_dtype: Types of the computation, and of parameters when they are loaded.
      placement, evaluation_placement: How batches of training and of evaluation lie on the devices.
      abstract: The model with shapes in place of parameters; `prepare` makes it and all attributes below.
      parameters: Number of parameters, without adapters.
      trained, frozen: Shapes of the parameters that training changes, and of the others.
      tokens: The examples as this model's tokens.
      padding: Token that fills rows up.
      programs: Compiled once for each shape of batch.
      packing: The packed shapes that take the place of `lengths`; None where batches are not packed.
      step_flops: Floating-point operations of a training step, given the shape of its batch.
      masked_flops: Those of them whose results causality masks.
      evaluation_flops: Floating-point operations of a batch of evaluation.
      test_flops: Those of the test, of all choices too.

    Raises:
      InputError: the mesh does not divide the batch.
    """

    def __init__(self, spec: FinetuneSpec, examples: Examples, mesh: Mesh) -> None:
        training = spec.training
        self.spec, self.examples, self.mesh = spec, examples, mesh
        self.dtype, self.param_dtype = training.dtypes(mesh.devices.flat[0].platform)
        part = training.batch_size // training.accumulation
        self.placement = BatchPlacement(mesh, training.batch_size, training.accumulation)
        self.evaluation_placement = BatchPlacement(mesh, training.evaluation_batch_size or 2 * part)
        self.placement.check("batch_size")
        self.evaluation_placement.check("evaluation_batch_size")

    def prepare(self, model: Model, out: Path) -> None:
        """Tokenise the examples for a model, make its programs, and count their operations.

        Args:
          model: With adapters where those are trained; of its parameters, only the shapes are kept.
          out: Folder to keep the tokens in.

        Raises:
          InputError: see `tokenise_all`.
        """
        training = self.spec.training
        self.abstract = model.with_params(shapes_of(model.params))
        self.trained, self.frozen = split_trainable(self.abstract.params)
        plain = abstract_model(model.config, model.options.plain)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(plain.params))
        self.tokens = tokenise_all(self.examples, model, self.spec, out)
        self.padding = padding_token(model.tokenizer, model.config.vocab_size)
        self.programs = make_programs(self.abstract, training, self.mesh)
        of_step, of_losses = program_flops(self.abstract, training, self.mesh, self.programs)
        self.step_flops = cache(lambda shape: of_step(self.placement.shapes(shape)))
        self.masked_flops = cache(lambda shape: masked_flops(self.abstract, self.placement.shapes(shape)))
        self.packing = self._packing() if training.packing else (None, None)
        placement, choices = self.evaluation_placement, self.tokens.choices
        self.evaluation_flops = of_losses(placement.shapes(self.tokens.evaluation_length))
        self.test_flops = placement.batches(len(self.tokens.test)) * self.evaluation_flops
        if choices is not None:
            self.test_flops += placement.batches(len(choices.tokens)) * of_losses(placement.shapes(choices.lengths))

    @property
    def lengths(self) -> tuple[Lengths, Lengths]:
        """The short and the long shape of training batches, which may be the same."""
        return self.tokens.lengths

    @property
    def step_shapes(self) -> tuple[Shape, Shape]:
        """The shapes of short and long training batches, packed where that saves tokens."""
        short, long = (packed or plain for packed, plain in zip(self.packing, self.lengths, strict=True))
        return short, long

    def _packing(self) -> Packing:
        check_packing(self.abstract)
        held_out = [example_lengths(tokens, False) for tokens in (self.tokens.validation, self.tokens.test)]
        axes, training = self.mesh.shape, self.spec.training
        multiple = axes["data"] * axes["fsdp"] * training.accumulation
        needed = np.concatenate(held_out)
        return choose_packing(needed, self.lengths, training.batch_size, multiple, self.step_flops)


def adapted(model: Model, training: TrainingSpec) -> Model:
    """The model with the adapters that are trained; the same where all of it is trained.

    Raises:
      InputError: a target, rank or alpha does not suit it.
    """
    if training.method == "full":
        return model
    return add_lora(
        model,
        training.lora_rank,
        training.lora_alpha,
        training.lora_targets,
        training.lora_seed,
        ranks=training.lora_ranks,
        alphas=training.lora_alphas,
        rslora=training.rslora,
        dora=training.dora,
    )


def check_packing(model: Model) -> None:
    """Raise InputError if a model cannot keep several examples of a row apart."""
    if not model.takes_segments:
        raise InputError(
            f"training.packing is true, and {model.family.model_type} models cannot keep several examples of a row "
            "apart; set it to false for this model."
        )
