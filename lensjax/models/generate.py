"""Writing on from prompts, greedily or by sampling, with keys and values kept of what was read."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lensjax.core.errors import InputError, shorten
from lensjax.core.pytrees import Batch, Params
from lensjax.models.convolution import CausalConvolution
from lensjax.models.delta_rule import GatedDeltaNet
from lensjax.models.families.t5 import RelativeBias
from lensjax.models.layers import Attention
from lensjax.models.memory import Kept, Source, Start, remember, remembered

Sides = tuple[Any, Any, tuple[Any, Any] | None]  # what the decoder reads first and where it has tokens; the encoder


class Sampling(NamedTuple):
    """How the next token is chosen.

    Attributes:
      temperature: What logits are divided by; 0 takes the largest.
      top_k: Only the k most probable tokens are drawn from; 0 for all.
      top_p: Only the fewest tokens whose probabilities sum to p are, the most probable first.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self) -> None:
        """Raise InputError where a number makes no sense."""
        if not (0 <= self.temperature < float("inf") and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise InputError(
                f"temperature is {self.temperature}, top_k {self.top_k}, and top_p {self.top_p}; give a finite "
                "temperature from 0 up, a whole top_k from 0 up, and a top_p above 0 and up to 1."
            )

    def choose(self, logits: Float[Array, "batch vocabulary"], key: Array) -> Int[Array, " batch"]:
        """The next token of every row."""
        if self.temperature == 0:
            return jnp.argmax(logits, axis=-1)
        scaled = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / self.temperature
        if 0 < self.top_k < scaled.shape[-1]:
            least = jax.lax.top_k(scaled, self.top_k)[0][:, -1:]
            scaled = jnp.where(scaled < least, -jnp.inf, scaled)
        if self.top_p < 1:
            ordered = jnp.sort(scaled, axis=-1)[:, ::-1]
            shares = jax.nn.softmax(ordered, axis=-1)
            inside = jnp.cumsum(shares, axis=-1) - shares < self.top_p  # the first is, always
            least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
            scaled = jnp.where(scaled < least, -jnp.inf, scaled)
        return jax.random.categorical(key, scaled, axis=-1)


def written(
    graphdef: Any,
    config: Any,
    first: int | Sequence[int] | None,
    params: Params,
    batch: Batch,
    new: int,
    sampling: Sampling,
    seed: int,
    ends: Sequence[int] | None,
) -> list[list[int]]:
    """The tokens that a model writes after prompts; see `lensjax.models.model.Model.generate`.

    Args:
      graphdef: Of the model.
      config: Its configuration.
      first: The token that starts its decoder, where it has an encoder too, or that of each row.
      params, batch, seed, ends: See there.
      new: At most so many tokens.
      sampling: How they are chosen.

    Raises:
      InputError: see there.
    """
    sampling.check()
    if new < 1:
        raise InputError(f"max_new_tokens is {new}; give 1 or more.")
    ids, mask = _prompts(batch)
    _check(nnx.merge(graphdef, jax.eval_shape(lambda: params)), config, first is not None, ids.shape[1], new)
    stops = config.eos_token_id if ends is None else list(ends)
    stops = tuple(stops) if isinstance(stops, list | tuple) else () if stops is None else (stops,)
    if first is None:
        order = np.argsort(mask, axis=1, kind="stable")  # padding before the prompts, which end together
        sides: Sides = np.take_along_axis(ids, order, axis=1), np.take_along_axis(mask, order, axis=1), None
    else:
        start = _starts(first, len(ids), config.vocab_size).astype(ids.dtype)
        sides = start, np.ones_like(start, bool), (ids, mask)
    tokens, lengths = _write(graphdef, new, sampling, stops, params, jax.tree.map(jnp.asarray, sides), seed)
    return [row[:length].tolist() for row, length in zip(np.asarray(tokens), np.asarray(lengths), strict=True)]


def answers(model: Any, prompts: Any, write: Callable[[Batch], list[list[int]]]) -> Any:
    """What is written after prompts: tokens after a batch of them, texts after texts.

    Args:
      model: Whose `tokenizer` reads and writes texts.
      prompts: A batch, a text, or several.
      write: Writes after a batch.
    """
    if isinstance(prompts, Mapping):
        return write(prompts)
    rows = [model.tokenizer(text)["input_ids"] for text in ([prompts] if isinstance(prompts, str) else prompts)]
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int32)
    ids[mask] = [token for row in rows for token in row]
    new = write({"input_ids": ids, "attention_mask": mask})
    texts = [model.tokenizer.decode(row, skip_special_tokens=True) for row in new]
    return texts[0] if isinstance(prompts, str) else texts


def _prompts(batch: Batch) -> tuple[Int[np.ndarray, "batch time"], Bool[np.ndarray, "batch time"]]:
    """Tokens, and where they are."""
    if unused := sorted({key for key, value in batch.items() if value is not None} - {"input_ids", "attention_mask"}):
        raise InputError(f"The batch has {shorten(unused[0])}, of which generating makes no use; leave it out.")
    ids, given = np.atleast_2d(np.asarray(batch["input_ids"])), batch.get("attention_mask")
    mask = np.ones(ids.shape, bool) if given is None else np.atleast_2d(np.asarray(given)) > 0
    if not mask.any(axis=1).all():
        raise InputError("A prompt has no tokens; give it one at least, such as the model's beginning of text.")
    return ids, mask


def _starts(first: int | Sequence[int], rows: int, vocabulary: int) -> Int[np.ndarray, "rows 1"]:
    """The token that starts the decoder in each row."""
    tokens = np.atleast_1d(np.asarray(first))
    if len(tokens) not in (1, rows) or not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(f"start is {shorten(first)}; give one token, or one for each of {rows} prompts.")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise InputError(f"start is {shorten(first)}; give tokens from 0 to {vocabulary - 1}.")
    return np.broadcast_to(tokens, rows)[:, None]


def _check(module: Any, config: Any, both_sides: bool, prompt: int, new: int) -> None:
    depth = sum(layer.q.shape[0] for layer in [*_attention(module), *_mixers(module)])
    layers = depth if both_sides else config.num_hidden_layers
    if depth != layers:
        raise InputError(
            f"{layers - depth} of the {layers} layers of this {config.model_type} mix tokens in a way of which "
            "LensJAX keeps no state; save the model, and generate with transformers."
        )
    sides = [(module.encoder, prompt), (module.decoder, 1 + new)] if both_sides else [(module, prompt + new)]
    for side, length in sides:
        learned = side.length if hasattr(side, "positions") else length
        if length > learned:
            raise InputError(
                f"Prompts and new tokens take {length} positions, and the model has learned {learned}; lower "
                "max_new_tokens, or shorten the prompts."
            )


def _attention(module: nnx.Module) -> list[Attention]:
    """The causal attention of a decoder's layers; one for all layers of a stack."""
    nodes = (node for _, node in nnx.iter_graph(module))
    return [node for node in nodes if isinstance(node, Attention) and node.causal]


def _mixers(module: nnx.Module) -> list[Any]:
    """The layers that mix tokens otherwise; one for all layers of a stack."""
    return [node for _, node in nnx.iter_graph(module) if getattr(node, "mixes_tokens", False)]


def _keeping(module: nnx.Module) -> list[Any]:
    """All parts that keep something of the tokens before."""
    others = (node for _, node in nnx.iter_graph(module) if isinstance(node, CausalConvolution | GatedDeltaNet))
    own = (layer for layer in _attention(module) if layer.k is not None)  # others use the keys of these
    return [*own, *others]


def _across(module: nnx.Module) -> list[Attention]:
    """The attention of a decoder's layers onto an encoder."""
    nodes = nnx.iter_graph(module)
    return [node for path, node in nodes if isinstance(node, Attention) and "cross" in path]


def _keys_and_values(layer: Attention, source: Array) -> Kept:
    """Of every layer of a stack."""
    graphdef, state = nnx.split(layer)
    return jax.vmap(lambda one: nnx.merge(graphdef, one).keys_and_values(source))(state)


def _begin(module: Any, start: Array, slots: int) -> None:
    """Tell what depends on positions in a decoder where the new tokens begin."""
    for _, node in nnx.iter_graph(module.decoder):
        if isinstance(node, RelativeBias):
            node.memory = Start(jnp.broadcast_to(start, node.embedding.shape[:-2]), slots)
    if hasattr(module.decoder, "positions"):
        module.decoder.memory = Start(start, slots)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _write(
    graphdef: Any,
    new: int,
    sampling: Sampling,
    ends: tuple[int, ...],
    params: Params,
    sides: Sides,
    seed: int,
) -> tuple[Int[Array, "batch new"], Int[Array, " batch"]]:
    """New tokens, and how many of them each row has.

    Sides are what the decoder reads first, where it has tokens, and the same of the encoder, if there is one.
    """
    ids, mask, encoder = sides
    rows, time = ids.shape
    slots = time + new
    marked = jnp.concatenate([mask, jnp.ones((rows, new), bool)], axis=1)  # those to come are after all queries
    lengths = mask.sum(axis=1)

    def read(kept: list[Kept], ids: Array, places: Array, start: Any) -> tuple[list[Kept], Array]:
        """The logits after the last of some tokens."""
        module = nnx.merge(graphdef, params)
        layers = _keeping(module)
        remember(layers, kept, jnp.asarray(start))
        if encoder is None:
            x = module.hidden({"input_ids": ids, "attention_mask": marked, "position_ids": places, "start": start})
        else:
            _begin(module, jnp.asarray(start), slots)
            for layer, read_before in zip(_across(module), source, strict=True):
                layer.memory = Source(*read_before)
            x = module.hidden(
                {
                    "encoded": encoded,
                    "attention_mask": encoder[1],
                    "decoder_input_ids": ids,
                    "decoder_attention_mask": marked,
                }
            )
        return remembered(layers), module.logits(x[:, -1:])[:, 0]

    def empty(layer: Any) -> Kept:
        if isinstance(layer, CausalConvolution):
            depth, taps, _, channels = layer.kernel.shape
            return (jnp.zeros((depth, rows, taps - 1, channels), layer.dtype),)
        if isinstance(layer, GatedDeltaNet):
            depth, _, heads = layer.rate.shape
            memory = depth, rows, heads, layer.key_dim, layer.value_dim
            return (jnp.zeros(memory, jnp.promote_types(layer.dtype, jnp.float32)),)
        depth, _, width = layer.k.shape
        shape = (depth, rows, slots, width // layer.head_dim, layer.head_dim)
        kind = layer.k.dtype
        return jnp.zeros(shape, kind), jnp.zeros(shape, kind)

    def choose(logits: Array, step: Any) -> Array:
        return sampling.choose(logits, jax.random.fold_in(jax.random.key(seed), step)).astype(ids.dtype)

    def ended(token: Array) -> Array:
        return jnp.isin(token, jnp.asarray(ends, token.dtype)) if ends else jnp.zeros(rows, bool)

    def goes_on(state: tuple[Any, ...]) -> Array:
        step, _, _, _, done, _ = state
        return (step < new) & ~done.all()

    def write(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, kept, token, tokens, done, counts = state
        kept, logits = read(kept, token[:, None], (lengths + step - 1)[:, None], time + step - 1)
        token = choose(logits, step)
        tokens = tokens.at[:, step].set(token)
        return step + 1, kept, token, tokens, done | ended(token), jnp.where(done, counts, counts + 1)

    module = nnx.merge(graphdef, params)
    if encoder is not None:
        encoded = module.encoded({"input_ids": encoder[0], "attention_mask": encoder[1]})
        source = [_keys_and_values(layer, encoded) for layer in _across(module)]
    layers = _keeping(module)
    places = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    kept, logits = read([empty(layer) for layer in layers], ids, places, 0)
    token = choose(logits, 0)
    tokens = jnp.zeros((rows, new), ids.dtype).at[:, 0].set(token)
    state = (jnp.asarray(1), kept, token, tokens, ended(token), jnp.ones(rows, int))
    _, _, _, tokens, _, counts = jax.lax.while_loop(goes_on, write, state)
    return tokens, counts
