"""What a fine-tuned model writes for a few test examples, beside which its loss can be understood."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from lensjax.models.model import Model, Params
    from lensjax.tasks.tokens import Tokens

_MOST = 128  # tokens of an answer


class Sample(BaseModel):
    """A test example and what a model writes for it.

    Attributes:
      prompt, target: Texts of the example, as far as the model's tokens hold them.
      answer: What the model writes greedily, to its end-of-text token or the length of the longest test target.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    target: str
    answer: str


def sample_answers(model: "Model", params: "Params", tokens: "Tokens", count: int) -> tuple[Sample, ...]:
    """What a model writes for the first examples.

    Args:
      model: Its own parameters may be shapes.
      params: Those to write with.
      tokens: The test set.
      count: Number of examples.

    Returns:
      A sample for each of them; () of conversations, in several processes, and of a model that cannot write on.
    """
    import jax

    rows = np.flatnonzero(tokens.firsts)[:count].tolist()
    if not rows or jax.process_count() > 1:
        return ()
    if not all(tokens.learned_of(row).all() for row in rows):  # turns of others are within it
        return ()
    prompts = [tokens.prompt(row) for row in rows]
    ends = {int(tokens.target(row)[-1]) for row in range(len(tokens)) if not tokens.target_cut[row]}
    mask = np.arange(max(map(len, prompts))) < np.array([[len(prompt)] for prompt in prompts])
    ids = np.zeros(mask.shape, np.int32)
    ids[mask] = np.concatenate(prompts)
    batch, new = {"input_ids": ids, "attention_mask": mask}, min(int(tokens.target_lengths.max()), _MOST)
    lasts = [int(tokens.target(row)[-1]) for row in rows]  # each names the language to write in
    start = lasts if model.family.starts_with_last else None
    try:
        written = model.generate(params, batch, max_new_tokens=new, ends=sorted(ends), start=start)
    except Exception:  # of a family or a device that cannot: a run that took hours does not fail for its samples
        return ()

    def text(some: Sequence[int] | np.ndarray) -> str:
        return str(model.tokenizer.decode(list(map(int, some)), skip_special_tokens=True))

    return tuple(
        Sample(prompt=text(prompt), target=text(tokens.target(row)), answer=text(answer))
        for row, prompt, answer in zip(rows, prompts, written, strict=True)
    )
