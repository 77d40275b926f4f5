"""A first study.yaml, with a comment for everything that can be changed in it."""

import itertools
import json
import os
import re
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lensjax.core.errors import InputError, listing, meant, shorten
from lensjax.curves.table import MAX_EXAMPLES
from lensjax.measure.measurement import selectable
from lensjax.models.hub import is_local, local_folder, read_config
from lensjax.selection.methods import DEFAULT_METHOD, METHODS
from lensjax.study.proposals import BATCH, EPOCHS, RATES, Ladder, propose_ladder, propose_lengths
from lensjax.study.spec import read_study
from lensjax.tasks.conversations import FIELDS
from lensjax.tasks.source import SplitName, as_source
from lensjax.tasks.spec import TaskSpec
from lensjax.tasks.task import Task, TooFewExamples, load_task
from lensjax.train.prepare import FIRST_RUNG

_UNSAFE = {chr(c) for c in (*range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF)}  # to YAML: ends, or nothing
_LOOKED_AT = 1000  # training examples whose lengths are looked at
_HELD_OUT = 1000  # examples of validation, and of the test set, where there are ten times as many rows

_TEXT = """\
# A study: which of these models should be fine-tuned on this data?
#   lensjax plan {file}    its cost, before it is run
#   lensjax run {file}     run it, or go on with it
#   lensjax report {folder}      the results so far

# Folders of models, relative to this file, names on the Hugging Face hub, or pocket:NAME, which are part of LensJAX.
# One that is to be trained otherwise:
#   - {{source: org/model, name: mine, training: {{batch_size: 8, remat: full}}}}
# One model may be there twice, as here with adapters, called model+lora8:
#   - {{source: org/model, training: {{method: lora, lora_rank: 8}}}}
candidates:
{candidates}

task:
  source:
    files: {data}  # JSONL, JSON, CSV, TSV or Parquet; or hub: owner/name, tfds: name, or saved: folder
{templates}
  validation: {validation}  # examples that decide when to stop training
  test: {test}  # examples that losses are reported on
  max_prompt_tokens: {prompt_tokens}  # longer ones are cut
  max_target_tokens: {target_tokens}

training:
  method: full  # or lora
  learning_rate: [{rates}]  # of several, the best on the first rung, for every candidate
  batch_size: {batch}
  epochs: {epochs}  # at most: training stops when the validation loss has not fallen for so many validations:
  patience: 3
  min_steps: {min_steps}  # allowed on small sets, however many epochs that is; fewer could leave them half learned

# {cost}

# Where measuring ends: largest number of training examples of a run, or FLOPs, or hours, whichever comes first.
budget:
  examples: {budget}
# Number of examples that the winner will be trained on; all that the task has where not given.
{full}

seeds: [0]
evidence:
{evidence}
# Method that ranks, beside which the others are shown:
# {methods}.
method: {method}
strategy: ladder  # or adaptive: always the run that promises most for its cost
# What the chosen model may cost at inference; candidates that cost more are not measured.
# constraints: {{parameters: 1.5B, memory: 8 GB, flops_per_token: 2e9, batch: 1, context: 2048, dtype: bfloat16}}
# prefer: {{smallest_within: 0.02}}  # the smallest model whose expected loss is no more than this above the best one's
# price_per_hour: 2.5  # of the devices, in any money: the report then says what the study cost
# eliminate_below: 0.01  # P(best) under which a candidate is measured no further
# stop_when: {{probability_best: 0.95, expected_regret: 0.005}}  # either is enough; regret in bits per byte
"""


_TEMPLATES = """\
  # Fields of a row in braces. The loss is on the target's tokens only.
  prompt: {prompt}
  target: {target}"""
_CHAT = """\
  # Rows hold conversations, in messages or conversations (or messages: FIELD); each model's chat template renders them.
  # The loss is on the turns of assistants only."""


def holds_conversations(file: Path, data: str) -> bool:
    """Whether rows of a file hold conversations, so that a study of them needs no templates.

    Args:
      file: Where the study will be written.
      data: File of the rows, relative to the folder of that.

    Raises:
      InputError: the file cannot be read.
    """
    source = as_source({"files": str(file.absolute().parent / os.path.expanduser(data))})
    rows = source.open("train")
    return bool(rows) and any(isinstance(rows[0].get(field), (list, Mapping)) for field in FIELDS)


@dataclass(frozen=True)
class NewStudy:
    """A new study's file.

    Attributes:
      text: YAML, with a comment for everything that can be changed.
      notes: What was found and proposed, in sentences.
    """

    text: str
    notes: tuple[str, ...]


def typed(template: str) -> str:
    """A template as it was typed into a shell, where \\n means a new line, and \\\\n a backslash and an n."""
    return re.sub(r"(\\?)\\n", lambda found: "\\n" if found[1] else "\n", template)


def new_study(
    file: Path,
    candidates: Sequence[str],
    data: str,
    prompt: str,
    target: str,
    budget: int | None = None,
    full: int | None = None,
) -> NewStudy:
    """The text of a new study's file, after a check of its models, rows and templates.

    A tenth of the rows, at most a thousand, is kept for validation, and as many for testing, unless the data have such
    splits. Runs and lengths are those of `lensjax.study.proposals`. Names on the Hugging Face hub are not looked up.

    Args:
      file: Where it will be written; relative paths are from its folder.
      candidates: Folders, hub ids or pocket:NAME of models.
      data: File of the rows.
      prompt, target: Templates; "" where rows hold conversations.
      budget: Largest number of training examples of a run; by default what the rows suggest.
      full: Number of examples that the winner will be trained on; by default all.

    Raises:
      InputError: there is no such model or file, a template names a field that a row lacks, or there are fewer rows
        than are asked for.
    """
    folder = file.absolute().parent
    for candidate in candidates:
        _check_model(candidate, folder)
    contents = {
        "file": file.name,
        "folder": file.stem,
        "templates": _TEMPLATES.format(prompt=_quoted(prompt), target=_quoted(target)) if target else _CHAT,
        "full": f"target: {full}" if full is not None else "# target: 100000",
        "batch": BATCH,
        "epochs": EPOCHS,
        "evidence": "\n".join(_evidence_lines()),
        "method": DEFAULT_METHOD,
        "methods": "\n# ".join(textwrap.wrap(", ".join(METHODS.names), 117)),
    }
    with tempfile.TemporaryDirectory() as elsewhere:  # errors come before anything is written
        trial = Path(elsewhere) / file.name
        there = [str(path) if is_local(path := folder / os.path.expanduser(one)) else one for one in candidates]
        proposed = {
            "validation": _HELD_OUT,
            "test": _HELD_OUT,
            "prompt_tokens": 512,
            "target_tokens": 128 if target else 1024,
            **_ladder_fields(Ladder(budget or 2 * FIRST_RUNG, full or MAX_EXAMPLES, RATES, 0)),
        }
        text = _text(contents | proposed, there, str(folder / os.path.expanduser(data)))
        trial.write_text(text, encoding="utf-8")
        try:
            study = read_study(trial)
        except InputError as error:
            raise InputError(str(error).replace(f"{trial}: ", "").replace(str(trial), file.name)) from error
    task = study.task
    rows = len(task.source.open("train", task.fields) or ())
    held_out = {split: _held_out(task, split, rows, data) for split in ("validation", "test")}
    loaded = _loaded(task, held_out, rows, data)
    found = loaded.available()
    least = budget or 2 * FIRST_RUNG
    if found < least:
        smaller = "give a smaller --budget, or " if found >= 2 * FIRST_RUNG else ""
        raise InputError(
            f"{data} has {found:,} examples to train on beside {held_out['validation']:,} for validation and "
            f"{held_out['test']:,} for test, and a budget of {least:,}; {smaller}add rows."
        )
    lengths = propose_lengths(task, list(itertools.islice(loaded.shuffled(0), _LOOKED_AT)), there) if target else None
    ladder = propose_ladder(found, full, budget, **held_out, row=None if lengths is None else lengths.row)
    if ladder.validation < held_out["validation"]:
        held_out |= {"validation": ladder.validation}
        loaded = _loaded(task, held_out, rows, data)
        found = loaded.available()
        ladder = replace(ladder, target=full or found)
    notes = [f"{data} has {found:,} examples to train on beside {_splits(task, held_out)}."]
    proposed |= held_out | _ladder_fields(ladder)
    if lengths is not None:
        proposed |= {"prompt_tokens": lengths.prompt, "target_tokens": lengths.target}
        notes.append(lengths.said)
    return NewStudy(_text(contents | proposed, candidates, data), (*notes, ladder.sentence))


def _loaded(task: TaskSpec, held_out: Mapping[str, int], rows: int, data: str) -> Task:
    """The examples, but those that are held out."""
    try:
        return load_task(task.model_copy(update=held_out))
    except TooFewExamples as error:
        raise InputError(
            f"{data} has too many rows that are equal: {held_out['validation']:,} examples for validation and "
            f"{held_out['test']:,} others for testing cannot be held out of its {rows:,}; add some that differ."
        ) from error


def _held_out(task: TaskSpec, split: SplitName, rows: int, data: str) -> int:
    """Number of examples of validation or test."""
    own = task.source.open(split, task.fields)
    if held_out := min(_HELD_OUT, rows // 10 if own is None else len(own)):
        return held_out
    raise InputError(f"{data} holds {rows} rows, of which none can be held out; add some.")


def _splits(task: TaskSpec, held_out: Mapping[str, int]) -> str:
    """Where validation and test come from, in words."""
    called = {split: task.source.called(split) for split in ("validation", "test")}
    said = (f"{held_out[name]:,} {f'in {own}' if own else 'held out'} for {name}" for name, own in called.items())
    return " and ".join(said)


def _ladder_fields(ladder: Ladder) -> dict[str, object]:
    rates = ", ".join(f"{rate:.1e}".replace("e-0", "e-") for rate in ladder.rates)
    cost = "\n# ".join(textwrap.wrap(ladder.sentence, 118))
    return {"budget": ladder.budget, "rates": rates, "min_steps": ladder.min_steps, "cost": cost}


def _text(contents: Mapping[str, object], candidates: Iterable[str], data: str) -> str:
    """The file with those candidates and that data."""
    listed = "\n".join(f"  - {_quoted(candidate)}" for candidate in candidates)
    return _TEXT.format(**contents, candidates=listed, data=_quoted(data))


def _evidence_lines() -> Iterator[str]:
    """A line for every measurement, with a comment that goes on below it."""
    for name, kind in selectable().items():
        line = f"  {name}: {str(kind.by_default).lower()}  "
        yield from textwrap.wrap(kind.help, 118, initial_indent=f"{line}# ", subsequent_indent=" " * len(line) + "# ")


def _check_model(candidate: str, folder: Path) -> None:
    """Raise InputError where a candidate of a study in a folder is neither a model nor a possible name on the hub."""
    beside = folder / os.path.expanduser(candidate)
    if not candidate.strip():
        raise InputError("A candidate is empty; give a folder, a name on the hub or pocket:NAME.")
    if is_local(Path(candidate)) and not is_local(beside):
        there, kind = os.path.relpath(candidate, folder), "folder" if os.path.isdir(candidate) else "file"
        raise InputError(f"{candidate} is no {kind} beside the study's file; give {there}, its path from there.")
    here = local_folder(beside if is_local(beside) else candidate)
    if here is not None:
        read_config(here)
    elif beside.parent != folder and beside.parent.is_dir():
        within = os.path.dirname(candidate)
        names = sorted(one.name for one in beside.parent.iterdir() if one.is_dir())
        near = meant(beside.name, names)
        mend = f"did you mean {within}/{near}?" if near else f"it holds {listing(names)}."
        raise InputError(f"{candidate} is no model, though {within} is a folder here; {mend}")


def _quoted(text: str) -> str:
    """A text as YAML reads it, whatever it holds.

    Raises:
      InputError: it holds half a character.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{shorten(text, 200)} holds half a character (a lone surrogate); mend it.") from error
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(f"\\u{ord(c):04x}" if c in _UNSAFE else c for c in quoted)
