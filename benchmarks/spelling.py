"""Spelling out numbers: a task of any size without a download, and models with random weights to fine-tune on it."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import transformers

import lensjax.models
from lensjax.tasks.spec import read_spec
from lensjax.train.candidate import Candidate
from lensjax.train.prepare import read_examples
from lensjax.train.runs import open_folder
from lensjax.train.spec import FinetuneSpec

RATE = 1e-4
SEED = 0


@contextlib.contextmanager
def candidate_on(
    config: Any,
    rows: list[dict[str, Any]],
    steps: int,
    batch_size: int,
    examples: int | list[int],
    limits: Mapping[str, int] | None = None,
    **training: Any,
) -> Iterator[Candidate]:
    """A candidate with random weights, on one device, and the task of those rows, all in a folder that goes away."""
    held_out = {"validation": batch_size, "test": batch_size}
    how = {"batch_size": batch_size, "max_steps": steps, "epochs": 1000, "learning_rate": RATE, "patience": 1000}
    content = {"source": {"files": "rows.jsonl"}, **held_out}
    if "messages" not in rows[0]:
        content |= {"prompt": "{number}:", "target": " {words}"}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / "task.yaml").write_text(json.dumps(content | dict(limits or {}) | {"training": how | training}))
        save_tokenizer(folder / "model")
        model = lensjax.models.from_config(config)
        model.save(folder / "weights")
        for file in (folder / "weights").iterdir():
            file.rename(folder / "model" / file.name)
        del model
        spec = read_spec(folder / "task.yaml", FinetuneSpec)
        chosen = read_examples(spec, [examples] if isinstance(examples, int) else examples, [SEED])
        open_folder(folder / "results", spec, chosen.digest)
        mesh = lensjax.models.make_mesh("fsdp=1", jax.devices()[:1])
        yield Candidate(spec, str(folder / "model"), "model", chosen, folder / "results", mesh)


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of the words of the task."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    teacher = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([f"{row['number']}: {row['words']}" for row in numbers(1000)], teacher)
    end = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **end).save_pretrained(folder)


def numbers(count: int) -> list[dict[str, str]]:
    """Different numbers and their names, a third of them small ones."""
    chosen = (i if i % 3 == 0 else 100_000 + i * 7919 % 9_000_000 for i in range(count))
    return [{"number": f"{n:,}", "words": name_of(n)} for n in chosen]


def name_of(n: int) -> str:
    """A number below ten million in English."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")
    size, unit = next((size, unit) for size, unit in UNITS if n >= size)
    return f"{name_of(n // size)} {unit}" + (f" {name_of(n % size)}" if n % size else "")


ONES = tuple("zero one two three four five six seven eight nine ten eleven twelve".split())  # noqa: SIM905
ONES += tuple(f"{start}teen" for start in ("thir", "four", "fif", "six", "seven", "eigh", "nine"))
TENS = ("zero", "ten", *(f"{start}ty" for start in ("twen", "thir", "for", "fif", "six", "seven", "eigh", "nine")))
UNITS = ((10**6, "million"), (1000, "thousand"), (100, "hundred"))
