"""A model: its configuration, its parameters, and the pure functions that compute with them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding, SingleDeviceSharding
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import DTypeLike

from lensjax.core.errors import InputError, listing
from lensjax.core.files import check_new_folder, new_folder
from lensjax.core.pytrees import Batch as Batch  # exported from here too, beside the class whose arguments they are
from lensjax.core.pytrees import Params as Params
from lensjax.core.pytrees import PyTree, path_name
from lensjax.core.tabular import Columns, Tabular
from lensjax.models.adapters import join, merge_adapters, split_trainable
from lensjax.models.encoder_decoder import start_of_answers
from lensjax.models.family import Family, building, check_layers, family_of
from lensjax.models.generate import Sampling, answers, written
from lensjax.models.hub import copy_tokenizer, read_tokenizer, write_config
from lensjax.models.linear import hold_quantised
from lensjax.models.losses import IGNORED, Reduction, greedy_hits, reduce_losses, token_losses
from lensjax.models.module_inputs import module_inputs
from lensjax.models.options import Options, as_dtype
from lensjax.models.safetensors_files import write_tensors
from lensjax.models.sharding import shardings
from lensjax.models.taps import layer_states
from lensjax.models.vocabulary import Chunks, by_chunks, chunks_of, summed_wide
from lensjax.models.weights import checkpoint_tensors


@dataclass(frozen=True, eq=False, repr=False)
class Model(Tabular):
    """A language model as pure functions of its parameters.

    `apply`, `loss` and `token_losses` compose with jit, grad, jvp, vjp, vmap and linearize. A batch is a mapping as
    Hugging Face's tokenizers and collators make it: `input_ids` [batch, time], and where needed `attention_mask` (1
    where there is a token), `position_ids`, `labels` (−100 where there is no target), and for encoder–decoders
    `decoder_input_ids` and `decoder_attention_mask`; `jax.jit` and the like need a plain dict. A single example may
    leave out the batch axis. There is no dropout: models compute as in evaluation. A row of a decoder-only model may
    hold several examples, which `segment_ids` numbers from 1 on, with 0 at padding: each attends to itself alone, and
    its positions begin at 0. Position_ids that begin anew without it, or an attention_mask, are refused; but not where
    a batch is traced, as by `jax.jit`: there a row is one example.

    Attributes:
      family: The family that it belongs to.
      config: Its Hugging Face configuration.
      options: How it computes.
      params: Its parameters, nested dicts of arrays; layers of a stack share arrays with a leading axis of layers.
      graphdef: Flax's definition of its module.
      folder: The folder it was loaded from; None for random initialisation.
    """

    family: Family
    config: Any
    options: Options
    params: Params
    graphdef: Any
    folder: Path | None = None

    @property
    def headline(self) -> str:
        """Its family, size, type, and where it was read, in a line."""
        kinds = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(self.params)})
        held = self.params
        if self.options.quantise is not None:  # whose codes are not its parameters
            adapters = {} if self.options.lora is None else split_trainable(self.params)[0]
            held = join(adapters, abstract_model(self.config, self.options.plain).params)
        size = sum(leaf.size for leaf in jax.tree.leaves(held))
        origin = "" if self.folder is None else f", from {self.folder}"
        return f"{self.family.model_type} model of {size:,} parameters in {listing(kinds)}{origin}"

    def as_columns(self) -> Columns:
        """A row for each parameter."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        return {
            "parameter": [path_name(path) for path, _ in leaves],
            "shape": [" × ".join(map(str, leaf.shape)) for _, leaf in leaves],
            "dtype": [str(leaf.dtype) for _, leaf in leaves],
            "values": [leaf.size for _, leaf in leaves],
        }

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the model's folder.

        Raises:
          InputError: there is none, or it has tokens for which the model has no embedding.
        """
        return read_tokenizer(self.folder, self.config)

    def apply(self, params: Params, batch: Batch) -> Float[Array, "batch time vocabulary"]:
        """Logits of the next token at every position, or of every target of an encoder–decoder.

        Args:
          params: Parameters of the structure of `self.params`.
          batch: See the class; labels are not needed for a decoder-only model.

        Raises:
          InputError: the batch of an encoder–decoder has neither labels nor decoder_input_ids; the batch has a key that
            the model makes no use of; or a sequence is longer than the positions that the model has learned.
        """
        return self.logits(params, self.hidden(params, batch))

    def hidden(self, params: Params, batch: Batch) -> Float[Array, "batch time width"]:
        """What the head reads at every position: `apply` gives the `logits` of it.

        Args, Raises: See `apply`.
        """
        if jnp.ndim(batch["input_ids"]) == 1:
            return self.hidden(params, _batched(batch))[0]
        return nnx.merge(self.graphdef, params).hidden(self._inputs(batch))

    def layer_states(
        self, params: Params, batch: Batch, at: Int[Array, " batch"]
    ) -> Float[Array, "layers batch width"]:
        """Output of every layer at one position of each row, of the decoder's layers where there is an encoder too.

        Args:
          params, batch: See `apply`; not of a single example.
          at: Positions, of the decoder's inputs where there is an encoder too.

        Raises:
          InputError: see `apply`.
        """
        return layer_states(nnx.merge(self.graphdef, params), self._inputs(batch), at)

    def _inputs(self, batch: Batch) -> dict[str, Array]:
        return module_inputs(self.family, self.config, batch, segments=self.takes_segments)

    def logits(self, params: Params, x: Float[Array, "... width"]) -> Float[Array, "... vocabulary"]:
        """Scores of every token, given what the head reads.

        Args:
          params: Parameters of the structure of `self.params`, or those of them that `head_of` takes.
          x: Output of `hidden`, or any part of it.
        """
        module = nnx.merge(self.graphdef, {**self._shapes, **params})
        return module.logits(x[None])[0] if x.ndim == 2 else module.logits(x)

    def head_of(self, params: Params) -> Params:
        """The parameters that `logits` reads: those of the head, or the embedding that it is tied to, and biases."""
        keys = ("head" if "head" in self._shapes else "embed", "head_bias", "logits_bias")
        return {key: params[key] for key in keys if key in self._shapes}

    def chunks(self, shape: tuple[int, ...]) -> Chunks | None:
        """How a batch of that shape, [batch, time], is taken apart where no logits of all of it need be held."""
        return chunks_of(shape, self.config.vocab_size, self.options.mesh)

    @cached_property
    def _shapes(self) -> Params:
        return self.without_params().params

    @cached_property
    def takes_segments(self) -> bool:
        """Whether rows of a batch may hold several examples, numbered by `segment_ids`."""
        return bool(getattr(nnx.merge(self.graphdef, self._shapes), "takes_segments", False))

    def token_losses(
        self, params: Params, batch: Batch
    ) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
        """Loss in nats of every token, and its weight: 1 for target tokens, else 0.

        At position t a decoder-only model predicts label t + 1, and nothing at the last. Without `labels`, its targets
        are the tokens of `input_ids` that `attention_mask` marks, as the token before them.
        """
        if jnp.ndim(batch["input_ids"]) == 1:
            losses, weights = self.token_losses(params, _batched(batch))
            return losses[0], weights[0]
        x, targets = self.hidden(params, batch), self.targets(batch)
        chunks = self.chunks(targets.shape)
        head = params if chunks is None else summed_wide(self.head_of(params))

        def of_some(x: Array, targets: Array) -> tuple[Array, Array]:
            return token_losses(self.logits(head, x), targets)

        made: tuple[Array, Array] = by_chunks(of_some, chunks, x, targets)
        return made

    def token_scores(
        self, params: Params, batch: Batch
    ) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"], Bool[Array, "batch time"]]:
        """What `token_losses` returns, and whether each target token has the highest logit.

        All of a target's tokens have it if and only if greedy decoding of its prompt gives the target. Unlike
        `token_losses` it takes batches only.
        """

        def scores(x: Array, targets: Array) -> tuple[Array, Array, Array]:
            logits = self.logits(params, x)
            losses, weights = token_losses(logits, targets)
            return losses, weights, greedy_hits(logits, targets, losses)

        x, targets = self.hidden(params, batch), self.targets(batch)
        made: tuple[Array, Array, Array] = by_chunks(scores, self.chunks(targets.shape), x, targets)
        return made

    def targets(self, batch: Batch) -> Int[Array, "batch time"]:
        """The token that each position predicts; −100 where that is not a target."""
        if self.family.encoder_decoder:
            return jnp.asarray(batch["labels"])
        labels = batch.get("labels")
        if labels is None:
            ids, mask = jnp.asarray(batch["input_ids"]), batch.get("attention_mask", batch.get("segment_ids"))
            labels = ids if mask is None else jnp.where(_seen(jnp.asarray(mask)), ids, IGNORED)
        following = jnp.roll(jnp.asarray(labels), -1, axis=1).at[:, -1].set(IGNORED)
        segments = batch.get("segment_ids")
        if segments is not None:  # the last token of an example does not predict the first of the next
            following = jnp.where(segments == jnp.roll(segments, -1, axis=1), following, IGNORED)
        return following

    def loss(self, params: Params, batch: Batch, reduction: Reduction = "mean") -> Array:
        """Negative log-likelihood in nats per target token.

        Args:
          params: Parameters of the structure of `self.params`.
          batch: See the class.
          reduction: "mean" over all target tokens of the batch, or over those of each "example".

        Returns:
          A scalar, or [batch] with reduction "example".
        """
        losses, weights = self.token_losses(params, batch)
        return reduce_losses(losses, weights, reduction)

    def generate(
        self,
        params: Params,
        prompts: Batch | str | Sequence[str],
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        ends: Sequence[int] | None = None,
        start: int | Sequence[int] | None = None,
    ) -> Any:
        """Write on from prompts, with keys, values and states kept of the tokens that were read.

        Args:
          params: Parameters of the structure of `self.params`.
          prompts: Texts, or `input_ids` [batch, time] with `attention_mask` where they are not equally long.
          max_new_tokens: At most so many new tokens.
          temperature: What logits are divided by before a token is drawn; 0 takes the most probable one.
          top_k: Only the k most probable tokens are drawn from; 0 for all.
          top_p: Only the fewest tokens whose probabilities sum to p are.
          seed: Of draws.
          ends: Tokens after which a text ends, by default the configuration's `eos_token_id`; () for none.
          start: Token that starts a decoder, or one per row, by default the configuration's; for mBART, the language's.

        Returns:
          The new tokens of every row, with that which ended it; of texts, the new texts; of one, its.

        Raises:
          InputError: nothing is kept of some layers; a prompt is empty; a number makes no sense; or prompts and new
            tokens are more than the positions that the model has learned.
        """
        settings = max_new_tokens, Sampling(temperature, top_k, top_p), seed, ends
        after = partial(written, self.graphdef, self.config, start_of_answers(self.family, self.config, start), params)
        return answers(self, prompts, lambda batch: after(batch, *settings))

    def with_params(self, params: Params) -> "Model":
        """This model with other parameters, such as fine-tuned ones."""
        return replace(self, params=params)

    def without_params(self) -> "Model":
        """This model with shapes in place of its parameters, so that functions made of it hold no arrays."""
        return self.with_params(jax.eval_shape(lambda params: params, self.params))

    @property
    def is_abstract(self) -> bool:
        """Whether the model has shapes in place of parameters."""
        return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(self.params))

    @property
    def shardings(self) -> PyTree:
        """How every parameter lies on devices."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.params)

    def merged(self) -> "Model":
        """This model in floating point and without adapters, whose kernels do what each and its adapter do together.

        They are computed in float32 or wider, then rounded to `param_dtype`, and lie on devices as kernels do. A model
        that is so already is returned unchanged.
        """
        if self.options == self.options.plain:
            return self
        plain = abstract_model(self.config, self.options.plain, self.folder)
        return plain.with_params(merge_adapters(self.params, plain.params, self.options))

    def save(self, folder: str | Path, dtype: DTypeLike | None = None) -> None:
        """Write a folder that `transformers` opens: configuration, tokenizer where there is one, safetensors.

        Adapters are merged into the kernels, and quantised kernels are dequantised. Where several processes hold the
        model, every one of them must call this; the first writes.

        Args:
          folder: A folder that does not exist yet, or is empty.
          dtype: Floating-point type on disk, by default that of the parameters.

        Raises:
          InputError: the folder exists and is not empty, or cannot be written.
        """
        target = Path(folder)
        check_new_folder(target)
        stored = self.options.param_dtype if dtype is None else as_dtype(dtype)
        params = self.merged().params
        wanted = self.family.tensors(self.config, params)
        leaves = (
            (tensor, whole(leaf).astype(stored)) for tensor, leaf in zip(wanted, jax.tree.leaves(params), strict=True)
        )
        if jax.process_index() != 0:
            for _ in leaves:  # gathering takes every process
                pass
            return
        zeros = ((name, np.zeros(shape, stored)) for name, shape in self.family.zeros(self.config).items())
        twice = self.family.written_twice(self.config)
        held = (
            (also, value)
            for name, value in checkpoint_tensors(leaves)
            for also in (name, *(copy for copy, first in twice.items() if first == name))
        )
        with new_folder(target) as staging:
            write_tensors(itertools.chain(held, zeros), staging)
            write_config(self.config, self.family.architecture, stored.name, staging)
            if self.folder is not None:
                copy_tokenizer(self.folder, staging)


def abstract_model(config: Any, options: Options, folder: Path | None = None) -> Model:
    """A model with shapes in place of parameters, for devices that need not be attached.

    Programs can be traced and compiled for it; `with_params` gives it parameters.

    Args:
      config: Hugging Face configuration.
      options: How it computes; its mesh may be one of devices that are not there.
      folder: Where its tokenizer lies.

    Returns:
      A model whose parameters are `jax.ShapeDtypeStruct`s with shardings.

    Raises:
      InputError: the configuration is of a family, or a variant of it, that is not supported, or the mesh's tensor axis
        does not divide the heads.
    """
    family = family_of(config.model_type)
    with building(config):
        check_layers(config, family)
        module = nnx.eval_shape(lambda: family.module(config, options, nnx.Rngs(0)))
    if options.quantise is not None:
        hold_quantised(module, options.quantise)
    graphdef, state = nnx.split(module)
    return Model(family, config, options, placed(nnx.to_pure_dict(state), family, config, options), graphdef, folder)


def placed(shapes: Params, family: Family, config: Any, options: Options) -> Params:
    """Shapes with the sharding that each has on the mesh, or on one device where there is none.

    Raises:
      InputError: the mesh's tensor axis does not divide the heads.
    """
    if options.mesh is None:
        device: Sharding = SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    size, heads = options.mesh.shape["tensor"], config.num_attention_heads
    if heads % size:
        raise InputError(f"tensor={size} does not divide the model's {heads} attention heads; choose a divisor, or 1.")
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, family.rules, options.mesh),
    )


def _seen(mask: Int[Array, "batch time"]) -> Bool[Array, "batch time"]:
    """Where there is a token with another before it to predict it from."""
    return mask.astype(bool) & jnp.roll(mask.astype(bool), 1, axis=1)


def _batched(batch: Batch) -> dict[str, Any]:
    return {key: jnp.asarray(value)[None] for key, value in batch.items() if value is not None}


def whole(leaf: jax.Array) -> np.ndarray[Any, Any]:
    """All of a parameter, on every process."""
    if leaf.is_fully_addressable:
        return np.asarray(leaf)
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(leaf, tiled=True))
