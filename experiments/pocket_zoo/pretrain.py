"""Pretrain the models of the pocket zoo.

    python experiments/pocket_zoo/pretrain.py [--models NAME …] [--folder DIR] [--bundle] [--quick]

Stopped or killed, the same command goes on. See README.md beside this file.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import transformers
import tyro
from corpora import CORPORA, SENTINELS, corrupted, passages
from zoo import END, MASK, PAD, VOCABULARY, ZOO, Recipe, hardly_trained

import lensjax.models
from lensjax.core.errors import InputError
from lensjax.core.files import make_folder, write_files
from lensjax.measure.rungs import find_runs
from lensjax.models.pocket import write_bundle
from lensjax.tasks.spec import read_spec
from lensjax.tasks.task import load_task
from lensjax.train.ladder import measure_curve
from lensjax.train.loop import Stopped
from lensjax.train.results import Result
from lensjax.train.spec import FinetuneSpec

HERE = Path(__file__).parent
BATCH = 64
HELD_OUT = 256  # passages, to stop on and again to report
EVERY = 50  # steps between validations
LONGEST = 96  # tokens of a passage; longer ones are cut
SEED = 0


def write_tokenizer(folder: Path, corpora: Iterable[str] = CORPORA) -> None:
    """Train the tokenizer that all models share, unless it is there: of bytes, and what they are often joined to."""
    if (folder / "tokenizer.json").exists():
        return
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sentinels = [f"<extra_id_{i}>" for i in range(SENTINELS)]
    teacher = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, MASK, *sentinels],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(corpora), teacher)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, bos_token=END, mask_token=MASK
    ).save_pretrained(folder)


def _sample(corpora: Iterable[str], most: int = 4000) -> Iterator[str]:
    """As many passages of every corpus, at most, so that a large one does not decide every merge."""
    for name in corpora:
        found = list(passages([name]))
        yield from random.Random(SEED).sample(found, min(most, len(found)))


def write_rows(path: Path, recipe: Recipe) -> None:
    """Write the passages of a model's corpora as rows of a task, unless they are there."""
    if path.exists():
        return
    source = random.Random(SEED)
    rows: Iterable[dict[str, str]]
    if recipe.objective == "next":
        rows = ({"prompt": "", "target": passage} for passage in passages(recipe.corpora))
    else:
        rows = (corrupted(passage, recipe.objective, source) for passage in passages(recipe.corpora))
    write_files({path: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)})


def pretraining_spec(folder: Path, recipe: Recipe) -> FinetuneSpec:
    """Pretraining as the task of saying what passages hold."""
    path = folder / "pretraining.yaml"
    rows = folder.parent / "rows" / f"{'-'.join(recipe.corpora)}-{recipe.objective}.jsonl"
    make_folder(rows.parent)
    write_rows(rows, recipe)
    training = {
        "learning_rate": recipe.learning_rate,
        "schedule": "cosine",
        "batch_size": BATCH,
        "epochs": 1000,
        "max_steps": recipe.steps,
        "evaluate_every": EVERY,
        "patience": 1000,
        "weight_decay": 0.1,
        "beta2": 0.95,
    }
    content = {
        "source": {"files": f"../rows/{rows.name}"},
        "prompt": "{prompt}",
        "target": "{target}",
        "validation": HELD_OUT,
        "test": HELD_OUT,
        "max_prompt_tokens": LONGEST,
        "max_target_tokens": LONGEST,
        "training": training,
    }
    write_files({path: json.dumps(content, indent=2) + "\n"})
    return read_spec(path, FinetuneSpec)


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model.

    Attributes:
      folder: Where it is, as `transformers` opens it.
      result: Of its pretraining.
    """

    folder: Path
    result: Result


def pretrain(name: str, recipe: Recipe, folder: Path) -> Pretrained:
    """Pretrain a model, or go on with it; the weights are rounded to bfloat16 at the end."""
    work, done = folder / "work" / name, folder / "models" / name
    make_folder(work)
    spec = pretraining_spec(work, recipe)
    start = work / "start"
    if not start.exists():
        lensjax.models.from_config(recipe.config, seed=SEED).save(start)
    for path in (folder / "tokenizer").iterdir():
        (start / path.name).write_bytes(path.read_bytes())
    examples = min(sum(1 for _ in load_task(spec).shuffled(0)), recipe.steps * BATCH)
    (result,) = measure_curve(spec, start, work / "runs", [examples], name=name, save_models=True, show=True)
    if result.loss is None:
        raise InputError(f"Pretraining {name} failed: {result.error}")
    if not done.exists():
        (run,) = find_runs([work / "runs" / name], start)
        lensjax.models.load(run.folder / "model").save(done, dtype="bfloat16")
        write_files({done / "README.md": model_card(name, recipe, result)})
    return Pretrained(done, result)


def model_card(name: str, recipe: Recipe, result: Result) -> str:
    """What a model is, as Hugging Face's hub shows it."""
    licences = sorted({CORPORA[corpus].licence for corpus in recipe.corpora})
    data = "\n".join(f"- {CORPORA[corpus].about}: {CORPORA[corpus].licence}" for corpus in recipe.corpora)
    objective = {
        "next": "the next token",
        "spans": "the words missing from gaps, as T5",
        "infilling": "the whole text from one with gaps, as BART",
    }[recipe.objective]
    return f"""---
license: apache-2.0
library_name: transformers
---

# {"pocket:" if recipe.bundled else ""}{name}

A language model of {result.size:,} parameters of the family {result.family}, made to try LensJAX with: far too small
to be of use for anything else. It was pretrained by `experiments/pocket_zoo/pretrain.py` of LensJAX, to say
{objective}, on

{data}

for {result.steps:,} steps of {BATCH} passages, {result.tokens:,} tokens in all. Its loss on passages that it has not
seen is {result.loss:.3f} nats per token, with a tokenizer of {VOCABULARY:,} tokens that all models of the zoo share, so
that their losses per token can be compared. Weights are in bfloat16.

The weights are under the Apache licence 2.0; no text is part of them. Licences of the text: {"; ".join(licences)}.
"""


def main(
    models: tuple[str, ...] = tuple(ZOO),
    folder: Path = HERE / "build",
    bundle: bool = False,
    quick: bool = False,
) -> None:
    """Pretrain models of the pocket zoo.

    Args:
        models: Which of them.
        folder: Where everything is kept; models are in FOLDER/models/NAME.
        bundle: Also put those that are part of the package where it keeps them.
        quick: Hardly train them, and on one corpus, to see that it runs.
    """
    unknown = [name for name in models if name not in ZOO]
    if unknown:
        raise InputError(f"There is no model '{unknown[0]}' in the zoo; choose of {', '.join(ZOO)}.")
    make_folder(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer", ("letters",) if quick else CORPORA)
    made: dict[str, Pretrained] = {}
    for name in models:
        recipe = hardly_trained(ZOO[name]) if quick else ZOO[name]
        made[name] = pretrain(name, recipe, folder)
        result = made[name].result
        print(
            f"{name}: {result.size:,} parameters, {result.tokens:,} tokens, {result.loss:.3f} nats per token of "
            f"passages not seen, {result.seconds:.0f} s",
            flush=True,
        )
    if bundle:
        write_bundle({name: one.folder for name, one in made.items() if ZOO[name].bundled})


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except InputError as error:
        raise SystemExit(str(error)) from error
    except Stopped as stopped:
        raise SystemExit("Stopped; the same command goes on.") from stopped
