"""Language models of an encoder and a decoder: one embedding, two stacks, and a head."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lensjax.core.errors import InputError
from lensjax.models.family import Family, embeds_apart
from lensjax.models.layers import Bias, Embedding, LanguageModel, Linear
from lensjax.models.masks import Sight, check_causal, padding_mask, sight
from lensjax.models.options import Options


class EncoderDecoderLM(LanguageModel):
    """The skeleton that BART, T5 and Switch Transformer share; their encoders and decoders differ.

    Args:
      config: Hugging Face configuration.
      make_side: Makes the decoder if its argument is true, else the encoder. Sides are called as
        side(embedded tokens, mask) and side(embedded targets, mask, encoded tokens, their mask).
      std: Standard deviation of the embedding and the head at random initialisation.
      embed_scale: Factor of the embeddings.
      head_scale: Factor of what the head reads.
    """

    def __init__(
        self,
        config: Any,
        make_side: Callable[[bool], nnx.Module],
        options: Options,
        rngs: nnx.Rngs,
        *,
        std: float,
        embed_scale: float = 1.0,
        head_scale: float = 1.0,
    ) -> None:
        check_causal(config)
        vocabulary, width = config.vocab_size, config.d_model
        self.mesh, self.embed_scale, self.head_scale = options.mesh, embed_scale, head_scale
        self.fused = options.attention == "splash"
        self.embed = Embedding(vocabulary, width, options, rngs, std=std)
        apart = embeds_apart(config)
        self.decoder_embed = Embedding(vocabulary, width, options, rngs, std=std) if apart else None
        self.encoder = make_side(False)
        self.decoder = make_side(True)
        biased = getattr(config, "has_logits_bias", False)
        self.logits_bias = Bias((1, vocabulary), options, learned=False) if biased else None
        self.head = None if config.tie_word_embeddings else Linear(width, vocabulary, options, rngs, std=std)

    def hidden(self, batch: Mapping[str, Array]) -> Float[Array, "batch time width"]:
        """What the head reads at every position of `decoder_input_ids`."""
        padding = self._padding(batch)
        source = batch["encoded"] if "encoded" in batch else self.encoded(batch)
        decoder_padding = self._padding(batch, "decoder_attention_mask")
        embed = self.embed if self.decoder_embed is None else self.decoder_embed
        x = self.decoder(self._scaled(embed(batch["decoder_input_ids"])), decoder_padding, source, padding)
        return x * jnp.asarray(self.head_scale, x.dtype)

    def encoded(self, batch: Mapping[str, Array]) -> Float[Array, "batch time width"]:
        """What the decoder attends to at every position of `input_ids`."""
        encoded: Array = self.encoder(self._scaled(self.embed(batch["input_ids"])), self._padding(batch))
        return encoded

    def logits(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time vocabulary"]:
        """Scores of every token, given what the head reads."""
        y = super().logits(x)
        return y if self.logits_bias is None else self.logits_bias(y)

    def _padding(self, batch: Mapping[str, Array], key: str = "attention_mask") -> Array | Sight | None:
        return sight({"attention_mask": batch.get(key)}) if self.fused else padding_mask(batch, key)

    def _scaled(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        return x * jnp.asarray(self.embed_scale, x.dtype)


def start_and_padding(family: Family, config: Any) -> tuple[int | None, int]:
    """The tokens that start a decoder and that pad; the latter starts it too where no other is named, as in T5.

    None starts it where a token of the target does.
    """
    padding = getattr(config, "pad_token_id", None)
    start = getattr(config, "decoder_start_token_id", None)
    start = padding if start is None else start
    if start is None or padding is None:
        raise InputError("config.json names no pad_token_id; add the one that its tokenizer has.")
    return None if family.starts_with_last else start, padding


def start_of_answers(
    family: Family, config: Any, given: int | Sequence[int] | None = None
) -> int | Sequence[int] | None:
    """The token that starts the decoder of a model that writes, or one for each text; None where there is no encoder.

    Args:
      family, config: Of the model.
      given: What a user wants; by default what the configuration says.

    Raises:
      InputError: it is another one for each language, and none is given; or unknown; or given to a decoder alone.
    """
    if not family.encoder_decoder:
        if given is not None:
            raise InputError(f"A start was given, and {family.model_type} has no encoder; put it in the prompts.")
        return None
    if given is not None:
        return given
    start, _ = start_and_padding(family, config)
    if start is None:
        raise InputError(
            f"Answers of {family.model_type} start with the token of a language, which prompts do not name; give it as "
            "start, as in generate(params, prompts, start=model.tokenizer.convert_tokens_to_ids('es_XX'))."
        )
    return start
