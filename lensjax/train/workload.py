"""All that fine-tuning a model on a task needs besides its weights: tokens, compiled programs, and their cost."""

from functools import cache
from pathlib import Path

import jax
from jax.sharding import Mesh

from lensjax.models.lora import split_trainable
from lensjax.models.model import Model
from lensjax.tasks.batches import Lengths
from lensjax.tasks.tokens import padding_token
from lensjax.train.placement import BatchPlacement
from lensjax.train.prepare import Examples, tokenise_all
from lensjax.train.spec import FinetuneSpec
from lensjax.train.step import make_programs, program_flops, shapes_of


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
      step_flops: Floating-point operations of a training step, given the lengths of its batch.
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
        pretrained = self.trained if training.method == "full" else self.frozen
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(pretrained))
        self.tokens = tokenise_all(self.examples, model, self.spec, out)
        self.padding = padding_token(model.tokenizer)
        self.programs = make_programs(self.abstract, training, self.mesh)
        of_step, of_losses = program_flops(self.abstract, training, self.mesh, self.programs)
        self.step_flops = cache(lambda lengths: of_step(self.placement.shapes(lengths)))
        placement, choices = self.evaluation_placement, self.tokens.choices
        self.evaluation_flops = of_losses(placement.shapes(self.tokens.evaluation_length))
        self.test_flops = placement.batches(len(self.tokens.test)) * self.evaluation_flops
        if choices is not None:
            self.test_flops += placement.batches(len(choices.tokens)) * of_losses(placement.shapes(choices.lengths))

    @property
    def lengths(self) -> tuple[Lengths, Lengths]:
        """The short and the long shape of training batches, which may be the same."""
        return self.tokens.lengths
