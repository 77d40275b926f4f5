"""A first study.yaml, with a comment for everything that can be changed in it."""

import json
from collections.abc import Sequence
from pathlib import Path

_TEXT = """\
# A study: which of these models should be fine-tuned on this data?
#   lensjax plan {file}    what it will cost
#   lensjax run {file}     run it, or go on with it
#   lensjax report {folder}      what is known so far

# Folders of models, relative to this file, names on the Hugging Face hub, or pocket:NAME, which are part of LensJAX.
# One that is to be trained otherwise:
#   - {{source: org/model, name: mine, training: {{batch_size: 8, remat: full}}}}
candidates:
{candidates}

task:
  source:
    files: {data}  # JSONL, CSV or Parquet; or tfds: name, or saved: folder of HF datasets
  # Fields of a row in braces. The loss is on the target's tokens only.
  prompt: {prompt}
  target: {target}
  validation: 1000  # examples that decide when to stop training
  test: 1000  # examples that losses are reported on
  max_prompt_tokens: 512
  max_target_tokens: 128

training:
  method: full  # or lora
  learning_rate: [3.0e-5, 1.0e-4, 3.0e-4]  # the best of these on the first rung, for every candidate
  batch_size: 32
  epochs: 10  # at most: training stops when the validation loss has not fallen for so many validations:
  patience: 3
  min_steps: 500  # small sets may take so many, however many epochs that is; otherwise they are left half learned

# Where measuring ends: largest number of training examples of a run, or FLOPs, or hours, whichever comes first.
budget:
  examples: {budget}
# Number of examples that the winner will be trained on; all that the task has where not given.
{full}

seeds: [0]
evidence:
  ntk: true  # the kernel of every pretrained model, which tells how fast it could learn; {{along_ladder: true}} adds
             # that of every model that is fine-tuned with the first seed, which tells how far it moves
  hessian: false  # the terms of the PAC-Bayes bound at every fine-tuned model
  weights: false  # heavy tails of the weights (NLPmetrics)
method: joint  # or lensllm, ats, sub_tuning, ...: what ranks; the others are shown beside it
strategy: ladder  # or adaptive: always the run that promises most for its cost
# eliminate_below: 0.01  # P(best) under which a candidate is measured no further
# stop_when: {{probability_best: 0.95, expected_regret: 0.005}}  # either is enough
"""


def study_text(
    file: Path,
    candidates: Sequence[str],
    data: str,
    prompt: str,
    target: str,
    budget: int,
    full: int | None = None,
) -> str:
    """The text of a study's file.

    Args:
      file: Where it will be written.
      candidates: Folders or hub ids of models.
      data: File of the rows.
      prompt, target: Templates.
      budget: Largest number of training examples of a run.
      full: Number of examples that the winner will be trained on; all there are where not given.
    """
    return _TEXT.format(
        file=file.name,
        folder=file.stem,
        candidates="\n".join(f"  - {_quoted(candidate)}" for candidate in candidates),
        data=_quoted(data),
        prompt=_quoted(prompt),
        target=_quoted(target),
        budget=budget,
        full=f"target: {full}" if full is not None else "# target: 100000",
    )


def _quoted(text: str) -> str:
    """A text as YAML reads it, whatever it holds."""
    return json.dumps(text, ensure_ascii=False)
