"""How fast fine-tuning is, beside Hugging Face's Trainer; how long it waits for batches; how many programs it compiles.

    python benchmarks/finetune.py [--parts trainer input ladder gpu] [--quick] [--out FILE]

Every part runs in a fresh process, all but `gpu` on the CPU. Only the parts named are measured anew; the others stay
in the file, each with the machine and the versions that it was measured with. Contenders take turns, so that other
work on the machine slows all of them alike. Without torch and accelerate, `trainer` and `gpu` measure LensJAX alone.
"""

import contextlib
import gc
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import transformers
import tyro
from fit import Json, ratios, rounded, summary, timed
from machine import describe
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, LlamaConfig

import lensjax.models
from lensjax.data.batches import collate
from lensjax.data.spec import read_spec
from lensjax.models import make_mesh
from lensjax.models.lora import split_trainable
from lensjax.train.candidate import Candidate
from lensjax.train.checkpoint import Checkpoints
from lensjax.train.flops import matmul_flops, peak_flops
from lensjax.train.ladder import measure, rungs
from lensjax.train.loop import Progress, Run, fine_tune
from lensjax.train.prepare import read_examples
from lensjax.train.recorder import Recorder
from lensjax.train.spec import FinetuneSpec
from lensjax.train.step import as_counted, make_programs, state_shapes

Part = Literal["trainer", "input", "ladder", "gpu"]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "transformers", "lensjax")
PEERS = ("torch", "accelerate")
RATE = 1e-4
SEED = 0

NOTES = {
    "times": "wall seconds of a step in the steady state: `steps` of them were timed together after `warm_up` others, "
    "with making batches, clipping, AdamW and reading off the loss",
    "ratio": "time of the peer over time of lensjax; above 1, lensjax is faster; `within_turns` is the median of the "
    "ratios within each turn, in which each contender runs once",
    "trainer": "float32 on the CPU with as many threads as cores, from the same weights, on the same rows, without "
    "dropout, evaluation, saving or logging; lensjax is `fine_tune` itself, the peer transformers' Trainer with fused "
    "AdamW, whose rows are tensors in memory, with either attention",
    "input": "`waiting` is the time in which the next batch was not on the device yet, of the time of training and "
    "validating, once compiled; the task is to spell out numbers",
    "ladder": "programs compiled for one model by every rung of a ladder, one after another, with validation and test",
    "gpu": "bfloat16 from float32 parameters; the peer compiles its model with torch.compile; `utilisation` is the "
    "share of the device's published peak that the matrix products of a step take, attention counted in full",
}


@dataclass(frozen=True)
class Plan:
    """How much is measured, of models of which size."""

    gpt2: Mapping[str, Any]
    shape: tuple[int, int]  # of a batch of `trainer`
    small: Mapping[str, Any]  # a Llama whose steps are short, for `input` and `ladder`
    warm_up: int
    steps: int
    repeats: int
    waits: tuple[int, int]  # steps of `input`, of GPT-2 and of the small model
    largest: int  # rung
    rung_steps: int
    gpu_shape: tuple[int, int]
    gpu_steps: int


FULL = Plan(
    gpt2={},
    shape=(8, 128),
    small={"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4},
    warm_up=1,
    steps=4,
    repeats=3,
    waits=(5, 200),
    largest=12_800,
    rung_steps=30,
    gpu_shape=(16, 1024),
    gpu_steps=20,
)
QUICK = Plan(
    gpt2={"vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4},
    shape=(2, 16),
    small={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    warm_up=1,
    steps=2,
    repeats=1,
    waits=(4, 8),
    largest=400,
    rung_steps=4,
    gpu_shape=(2, 64),
    gpu_steps=2,
)


def benchmark(
    parts: tuple[Part, ...] = ("trainer", "input", "ladder", "gpu"),
    quick: bool = False,
    out: Path = Path("benchmarks/results/finetune.json"),
) -> None:
    """Measure, print a table, and write JSON.

    Args:
        parts: What is measured: trainer, input and ladder on the CPU, and, where JAX has one, training on a GPU.
        quick: Only try the script on tiny models; one process does all parts, and the numbers mean nothing.
        out: File to write.
    """
    plan, console = QUICK if quick else FULL, Console()
    found: Json = {"benchmark": "finetune", "quick": quick, "notes": NOTES, "parts": {}}
    if out.exists():
        before = json.loads(out.read_text(encoding="utf-8"))
        found["parts"] = before["parts"] if before["quick"] == quick else {}
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # processes inherit it
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # torch needs memory of the same GPU
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=None if quick else 1) as fresh:
        for part in parts:
            with console.status(part):
                described = describe(*PACKAGES)
                measured = fresh.submit(MEASURES[part], plan).result()
            if measured is None:
                console.print(f"{part} is skipped: JAX has no GPU here.")
            else:
                found["parts"][part] = described | measured
    found["parts"] = {name: found["parts"][name] for name in MEASURES if name in found["parts"]}
    found["targets"] = targets(found["parts"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rounded(found), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    show(found, console)
    console.print(f"Wrote {out}")


def trainer(plan: Plan) -> Json:
    """Times of a step of GPT-2 on the CPU, ours and the Trainer's."""
    use_cpu()
    config = gpt2_config(plan, plan.shape[1])
    with prepared(config, plan, plan.shape, dtype="float32") as candidate:
        contenders: dict[str, Callable[[], float]] = {"lensjax": partial(our_step, candidate, plan)}
        for name in ("eager", "sdpa") if peers() else ():
            theirs = make_trainer(candidate, plan, {"attn_implementation": name}, use_cpu=True)
            contenders[f"Trainer, {name}"] = partial(their_step, theirs, plan)
        found = {"threads": os.cpu_count(), **compared(contenders, plan, plan.shape)}
        return about(candidate, plan.shape) | found


def gpu(plan: Plan) -> Json | None:
    """Times of a step on a GPU, ours and the Trainer's, and shares of its peak; None without a GPU."""
    if jax.default_backend() != "gpu":
        return None
    device, shape = jax.devices()[0], plan.gpu_shape
    plan = replace(plan, warm_up=5, steps=plan.gpu_steps)
    peak = peak_flops(device, "bfloat16")
    with prepared(gpt2_config(plan, shape[1]), plan, shape, dtype="bfloat16", attention="cudnn") as candidate:
        contenders: dict[str, Callable[[], float]] = {"lensjax": partial(our_step, candidate, plan)}
        if peers():
            settings = {"bf16": True, "tf32": True, "torch_compile": True, "dataloader_pin_memory": True}
            theirs = make_trainer(candidate, plan, {"attn_implementation": "sdpa"}, **settings)
            contenders["Trainer, compiled"] = partial(their_step, theirs, plan)
        found = compared(contenders, plan, shape)
        flops = step_flops(candidate)
    for times in (found[name] for name in contenders):
        times["utilisation"] = None if peak is None else flops / times["median_s"] / peak
    known = {"device": device.device_kind, "peak_flops": peak, "step_flops": float(flops)}
    return known | about(candidate, shape) | found


def waiting(plan: Plan) -> Json:
    """Shares of the time of training that are spent waiting for batches, of GPT-2 and of a model with short steps."""
    use_cpu()
    cases = {"gpt2": (gpt2_config(plan, 128), plan.waits[0], 8), "small": (small_config(plan), plan.waits[1], 32)}
    found = {}
    for name, (config, steps, batch_size) in cases.items():
        with candidate_on(config, numbers(2200), steps, batch_size, 2000, dtype="float32") as candidate:
            _, progress = [train(candidate, Stopwatch(0, 0)) for _ in range(2)]  # the first compiles
            found[name] = {
                "parameters": candidate.size,
                "batch": [batch_size, *candidate.tokens.lengths[1]],
                "steps": progress.step,
                "seconds": progress.seconds,
                "waiting": progress.waiting,
                "share": progress.waiting / progress.seconds,
            }
    return found


def ladder(plan: Plan) -> Json:
    """Numbers of programs that all rungs of a ladder compile."""
    use_cpu()
    sizes = rungs(plan.largest)
    with candidate_on(small_config(plan), numbers(plan.largest + 50), plan.rung_steps, 16, sizes) as candidate:
        with contextlib.redirect_stdout(io.StringIO()):
            recorder = Recorder(candidate.dtype, candidate.mesh.size)
            seconds, results = timed(lambda: list(measure(candidate, sizes, [SEED], recorder)))
        assert [result.status for result in results] == ["ok"] * len(sizes), results
        programs = {name: getattr(candidate.programs, name)._cache_size() for name in ("step", "losses")}
        return {
            "parameters": candidate.size,
            "rungs": sizes,
            "steps": [result.steps for result in results],
            "training_lengths": [list(lengths) for lengths in candidate.tokens.lengths],
            "evaluation_length": list(candidate.tokens.evaluation_length),
            "programs": programs,
            "programs_in_all": sum(programs.values()),
            "seconds": seconds,
        }


@contextlib.contextmanager
def prepared(config: Any, plan: Plan, shape: tuple[int, int], **training: Any) -> Iterator[Candidate]:
    """A candidate whose examples all take a row of the given shape, half of it the prompt."""
    rows, tokens = shape
    steps = plan.warm_up + plan.steps
    each = numbers(rows * steps + 2 * rows)
    texts = [{name: text * 4 * tokens for name, text in row.items()} for row in each]  # long enough to be cut
    limits = {"max_prompt_tokens": tokens // 2, "max_target_tokens": tokens - tokens // 2}
    with candidate_on(config, texts, steps, rows, rows * steps, limits, **training) as candidate:
        assert set(candidate.tokens.lengths) == {(tokens,)}, candidate.tokens.lengths
        yield candidate


@contextlib.contextmanager
def candidate_on(
    config: Any,
    rows: list[dict[str, str]],
    steps: int,
    batch_size: int,
    examples: int | list[int],
    limits: Mapping[str, int] | None = None,
    **training: Any,
) -> Iterator[Candidate]:
    """A candidate with random weights, on one device, and the task of those rows, all in a folder that goes away."""
    held_out = {"validation": batch_size, "test": batch_size}
    how = {"batch_size": batch_size, "max_steps": steps, "epochs": 1000, "learning_rate": RATE, "patience": 1000}
    content = {"source": {"files": "rows.jsonl"}, "prompt": "{number}:", "target": " {words}", **held_out}
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
        mesh = make_mesh("fsdp=1", jax.devices()[:1])
        yield Candidate(spec, str(folder / "model"), "model", chosen, folder / "results", mesh)


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of the words of the task."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
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


class Stopwatch:
    """Observes a run, and times the steps between two of them."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.began = self.ended = 0.0

    def begin(self, progress: Progress, steps: int) -> None:
        pass

    def step(self, progress: Progress, steps: int, metrics: Mapping[str, float]) -> None:
        self.mark(progress.step)

    def validation(self, progress: Progress, found: Any) -> None:
        pass

    def mark(self, step: int) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self.began = now if step == self.first else self.began
        self.ended = now if step == self.last else self.ended

    @property
    def seconds(self) -> float:
        """Of one step."""
        return (self.ended - self.began) / (self.last - self.first)


def train(candidate: Candidate, observer: Any) -> Progress:
    """Train with the loop that users train with."""
    trained, frozen = split_trainable(candidate.pretrained().params)
    tokens, training = candidate.tokens, candidate.spec.training
    run = Run(
        train=tokens.train[SEED],
        validation=tokens.validation,
        lengths=tokens.lengths,
        evaluation_length=tokens.evaluation_length,
        encoder_decoder=False,
        padding=candidate.padding,
        seed=SEED,
        rate=RATE,
    )
    placements = candidate.placement, candidate.evaluation_placement
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        _, progress = fine_tune(candidate.programs, trained, frozen, run, training, placements, checkpoints, observer)
        checkpoints.close()
    return progress


def our_step(candidate: Candidate, plan: Plan) -> float:
    """Seconds of a step of ours."""
    assert candidate.spec.training.max_steps is not None
    watch = Stopwatch(plan.warm_up, candidate.spec.training.max_steps)
    train(candidate, watch)
    return watch.seconds


def make_trainer(candidate: Candidate, plan: Plan, model: Mapping[str, Any], **settings: Any) -> Any:
    """A Trainer of the same model on the same rows; settings are fields of its TrainingArguments."""
    import torch

    tokens, training = candidate.tokens.train[SEED], candidate.spec.training
    rows = collate(tokens, range(len(tokens)), range(len(tokens)), candidate.tokens.lengths[1], candidate.padding)
    columns = {name: torch.from_numpy(array).long() for name, array in rows.items()}
    quiet = dict.fromkeys(("logging_strategy", "save_strategy", "eval_strategy", "report_to"), "no")
    arguments = transformers.TrainingArguments(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=training.batch_size,
        max_steps=training.max_steps,
        learning_rate=RATE,
        weight_decay=training.weight_decay,
        max_grad_norm=training.clip,
        optim="adamw_torch_fused",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        seed=SEED,
        **(quiet | {"report_to": "none", "dataloader_pin_memory": False} | settings),
    )
    made = transformers.AutoModelForCausalLM.from_pretrained(candidate.source, dtype=torch.float32, **model)
    check_same_loss(candidate, made, {name: column[: training.batch_size] for name, column in columns.items()})
    trainer = transformers.Trainer(
        model=made,
        args=arguments,
        train_dataset=[{name: column[i] for name, column in columns.items()} for i in range(len(tokens))],
        data_collator=transformers.default_data_collator,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def check_same_loss(candidate: Candidate, peer: Any, batch: Mapping[str, Any]) -> None:
    """Fail where the two models do not compute the same."""
    import torch

    with torch.no_grad():
        theirs = float(peer.eval()(**batch).loss)
    trained, frozen = split_trainable(candidate.pretrained().params)
    arrays = candidate.placement.to_devices({name: column.numpy().astype(np.int32) for name, column in batch.items()})
    sums, counts = candidate.programs.losses(trained, frozen, arrays)
    ours = float(sums.sum() / counts.sum())
    precision = 1e-5 if candidate.dtype == "float32" else 1e-2
    assert np.isclose(ours, theirs, rtol=precision), f"the contenders do not compute the same: {ours}, {theirs}"


def their_step(trainer: Any, plan: Plan) -> float:
    """Seconds of a step of the Trainer's."""
    import torch

    watch = Stopwatch(plan.warm_up, trainer.args.max_steps)

    class Callback(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if torch.cuda.is_available() and state.global_step in (watch.first, watch.last):
                torch.cuda.synchronize()
            watch.mark(state.global_step)

    callback = Callback()
    trainer.add_callback(callback)
    trainer.train()
    trainer.remove_callback(callback)
    return watch.seconds


def compared(contenders: Mapping[str, Callable[[], float]], plan: Plan, shape: tuple[int, int]) -> Json:
    """Seconds of a step of every contender, all taking turns, and the ratios of the others to the first."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(plan.repeats):
        for name, call in contenders.items():
            gc.collect()
            times[name].append(call())
    first, *others = times
    found = {name: summary(measured) for name, measured in times.items()}
    for name in times:
        found[name]["tokens_per_second"] = shape[0] * shape[1] / found[name]["median_s"]
    for name in others:
        within = float(np.median(np.divide(times[name], times[first])))
        found[name] |= ratios(found[name], found[first]) | {"ratio_within_turns": within}
    return {"warm_up": plan.warm_up, "repeats": plan.repeats, **found}


def about(candidate: Candidate, shape: tuple[int, int]) -> Json:
    installed = {name: version(name) for name in PEERS if find_spec(name)}
    steps = candidate.spec.training.max_steps
    return {"peers": installed, "parameters": candidate.size, "batch": list(shape), "steps": steps}


def step_flops(candidate: Candidate) -> int:
    """FLOPs of the matrix products of a step, those of attention too, which cuDNN's kernel hides."""
    training = candidate.spec.training.model_copy(update={"attention": "xla"})
    plain = lensjax.models.load(candidate.source, dtype=candidate.dtype, param_dtype="float32", mesh=candidate.mesh)
    model = as_counted(plain)
    programs = make_programs(model, training, candidate.mesh)
    state = state_shapes(model, training, candidate.mesh)
    return matmul_flops(programs.step, state, {}, candidate.placement.shapes(candidate.tokens.lengths[1]), 0.0)


def gpt2_config(plan: Plan, tokens: int) -> Any:
    """GPT-2, small where the plan changes nothing, without the dropout that ours has not."""
    settings = {"n_positions": max(1024, tokens), "bos_token_id": 0, "eos_token_id": 0} | plan.gpt2
    return GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **settings)


def small_config(plan: Plan) -> Any:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(vocab_size=512, bos_token_id=0, eos_token_id=0, **heads, **plan.small)


def peers() -> bool:
    """Whether torch and what its Trainer needs are installed."""
    return all(find_spec(name) is not None for name in PEERS)


def targets(parts: Mapping[str, Json]) -> list[Json]:
    """What we promised ourselves, beside what was measured, in turns."""
    promised: list[tuple[str, float, float]] = []
    for part in ("trainer", "gpu"):
        found = parts.get(part, {})
        within = [found[name]["ratio_within_turns"] for name in found if name.startswith("Trainer")]
        if within:
            promised.append((f"a step of {part}, over the Trainer's faster one", 1.0, 1 / min(within)))
    if "input" in parts:
        shares = ((model, parts["input"][model]["share"]) for model in ("gpt2", "small"))
        promised += [(f"share of the time of {model} spent waiting", 0.05, share) for model, share in shares]
    if "ladder" in parts:
        promised.append(("programs compiled by a ladder", 3, parts["ladder"]["programs_in_all"]))
    return [
        {"what": what, "at_most": limit, "measured": value, "met": value <= limit} for what, limit, value in promised
    ]


def show(found: Json, console: Console) -> None:
    """Print the numbers as two tables."""
    times = Table("", "median s", "tokens/s", "ratio", "of peak", box=SIMPLE, title="A step")
    for part, measured in found["parts"].items():
        for name, value in measured.items():
            if isinstance(value, dict) and "median_s" in value:
                keys = ("median_s", "tokens_per_second", "ratio_within_turns", "utilisation")
                cells = (f"{value[key]:.3g}" if value.get(key) is not None else "" for key in keys)
                times.add_row(f"{part}, {name}", *cells)
    goals = Table("", "at most", "measured", "met", box=SIMPLE, title="Targets")
    for goal in found["targets"]:
        goals.add_row(goal["what"], f"{goal['at_most']:g}", f"{goal['measured']:.3g}", "yes" if goal["met"] else "no")
    console.print(times, goals)


def use_cpu() -> None:
    """All cores for both sides, and no messages of transformers among the tables."""
    jax.config.update("jax_platforms", "cpu")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if peers():
        import torch

        torch.set_num_threads(os.cpu_count() or 1)


MEASURES: Mapping[Part, Callable[[Plan], Json | None]] = {
    "trainer": trainer,
    "input": waiting,
    "ladder": ladder,
    "gpu": gpu,
}


if __name__ == "__main__":
    tyro.cli(benchmark)
