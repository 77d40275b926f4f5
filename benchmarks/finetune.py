"""How fast fine-tuning is, beside Hugging Face's Trainer; how long it waits for batches; how many programs it compiles.

    python benchmarks/finetune.py [--parts trainer input ladder packing metrics gpu] [--quick] [--out FILE]

Every part runs in a fresh process, all but `gpu` on the CPU. Only the parts named are measured anew; the others stay
in the file, each with the machine and the versions that it was measured with. Contenders take turns, so that other
work on the machine slows all of them alike. Without torch and accelerate, `trainer` and `gpu` measure LensJAX alone.
"""

import contextlib
import io
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import hf_trainer
import jax
import numpy as np
import tyro
from parts import RATIO, Json, Promise, Stopwatch, compared, run_parts, timed, use_cpu, utilisations
from spelling import RATE, SEED, candidate_on, numbers
from transformers import GPT2Config, LlamaConfig

from lensjax.core.devices import peak_flops
from lensjax.models.lora import join, split_trainable
from lensjax.tasks.batches import Packing, evaluation_batches
from lensjax.train.candidate import Candidate
from lensjax.train.checkpoint import Checkpoints
from lensjax.train.ladder import measure
from lensjax.train.loop import Progress, TrainingInputs, fine_tune
from lensjax.train.prepare import rungs
from lensjax.train.recorder import Recorder

Part = Literal["trainer", "input", "ladder", "packing", "metrics", "gpu"]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers", "lensjax")
COLUMNS = {
    "median s": "median_s",
    "tokens/s": "tokens_per_second",
    "ratio": "ratio_within_turns",
    "of peak": "utilisation",
}

NOTES = {
    "times": "wall seconds of a step in the steady state: `steps` of them were timed together after `warm_up` others, "
    "with making batches, clipping, AdamW and reading off the loss",
    "ratio": RATIO,
    "trainer": "float32 on the CPU with as many threads as cores, from the same weights, on the same rows, without "
    "dropout, evaluation, saving or logging; lensjax is `fine_tune` itself, the peer transformers' Trainer with fused "
    "AdamW, whose rows are tensors in memory, with either attention",
    "input": "`waiting` is the time in which the next batch was not on the device yet, of the time of training and "
    "validating, once compiled; the task is to spell out numbers",
    "ladder": "programs compiled for one model by every rung of a ladder, one after another, with validation and test",
    "packing": "an epoch of `fine_tune` with its validation, once compiled, on conversations whose answers have "
    "log-normal lengths (median 24 words, 200 at most); both have the same examples in every step; tokens per second "
    "are those of examples, without padding; `shapes` are those of short and long batches",
    "metrics": "a batch of evaluation, once compiled: `losses` are those of tokens alone, `scores` what tests of "
    "models compute, with the metrics that need no other pass",
    "gpu": "bfloat16 from float32 parameters; the peer compiles its model with torch.compile; `utilisation` is the "
    "share of the device's published peak that the matrix products of a step take, attention counted in full; `causal` "
    "is that without the half of attention that causality masks",
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
    waits: Mapping[str, tuple[int, int]]  # steps and batch sizes of `input`
    waits_examples: int
    largest: int  # rung
    rung_steps: int
    medium: Mapping[str, Any]  # what is larger in the other model of `packing`
    packed: Mapping[str, tuple[int, int]]  # examples and batch sizes of `packing`
    longest: int  # words of its answers
    gpu_shape: tuple[int, int]
    gpu_steps: int


FULL = Plan(
    gpt2={},
    shape=(8, 128),
    small={"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4},
    warm_up=1,
    steps=4,
    repeats=5,
    waits={"gpt2": (5, 8), "small": (200, 32)},
    waits_examples=2000,
    largest=12_800,
    rung_steps=30,
    medium={"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4},
    packed={"small": (256, 32), "medium": (128, 32)},
    longest=200,
    gpu_shape=(16, 1024),
    gpu_steps=20,
)
QUICK = Plan(  # whose parts have programs in common
    gpt2={"vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4},
    shape=(8, 40),
    small={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    warm_up=1,
    steps=2,
    repeats=1,
    waits={"gpt2": (1, 8), "small": (8, 16)},
    waits_examples=400,
    largest=400,
    rung_steps=4,
    medium={},
    packed={"small": (32, 16), "medium": (32, 16)},
    longest=40,
    gpu_shape=(2, 64),
    gpu_steps=2,
)


def benchmark(
    parts: tuple[Part, ...] = ("trainer", "input", "ladder", "packing", "metrics", "gpu"),
    quick: bool = False,
    out: Path = Path("benchmarks/results/finetune.json"),
) -> None:
    """Measure, print a table, and write JSON.

    Args:
        parts: What is measured: trainer, input, ladder, packing and metrics on the CPU, and, if JAX has one, training
            on a GPU.
        quick: Only try the script on tiny models; one process does all parts, and the numbers mean nothing.
        out: File to write.
    """
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # torch needs memory of the same GPU
    run_parts(
        "finetune",
        MEASURES,
        QUICK if quick else FULL,
        parts,
        out,
        quick=quick,
        notes=NOTES,
        packages=PACKAGES,
        targets=targets,
        columns=COLUMNS,
    )


def trainer(plan: Plan) -> Json:
    """Times of a step of GPT-2 on the CPU, ours and the Trainer's."""
    use_cpu()
    config = gpt2_config(plan, plan.shape[1])
    with prepared(config, plan, plan.shape, dtype="float32") as candidate:
        contenders: dict[str, Callable[[], float]] = {"lensjax": partial(our_step, candidate, plan)}
        for name in ("eager", "sdpa") if hf_trainer.installed() else ():
            theirs = hf_trainer.make_trainer(candidate, SEED, {"attn_implementation": name}, use_cpu=True)
            contenders[f"Trainer, {name}"] = partial(hf_trainer.their_step, theirs, plan.warm_up)
        found = {"threads": os.cpu_count(), **step_times(contenders, plan, plan.shape)}
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
        if hf_trainer.installed():
            settings = {"bf16": True, "tf32": True, "torch_compile": True, "dataloader_pin_memory": True}
            theirs = hf_trainer.make_trainer(candidate, SEED, {"attn_implementation": "sdpa"}, **settings)
            contenders["Trainer, compiled"] = partial(hf_trainer.their_step, theirs, plan.warm_up)
        found = step_times(contenders, plan, shape)
        flops, masked = (count(candidate.tokens.lengths[1]) for count in (candidate.step_flops, candidate.masked_flops))
    for times in (found[name] for name in contenders):
        times |= utilisations(flops, flops - masked, times["median_s"], peak)
    known = {"device": device.device_kind, "peak_flops": peak, "step_flops": float(flops)}
    return known | about(candidate, shape) | found


def waiting(plan: Plan) -> Json:
    """Shares of the time of training that are spent waiting for batches, of GPT-2 and of a model with short steps."""
    use_cpu()
    found, examples = {}, plan.waits_examples
    for name, config in (("gpt2", gpt2_config(plan, 128)), ("small", small_config(plan))):
        steps, batch_size = plan.waits[name]
        with candidate_on(config, numbers(examples + 200), steps, batch_size, examples, dtype="float32") as candidate:
            _, progress = [train(candidate, Steps(0, 0)) for _ in range(2)]  # the first compiles
            found[name] = {
                "parameters": candidate.parameters,
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
            "parameters": candidate.parameters,
            "rungs": sizes,
            "steps": [result.steps for result in results],
            "training_lengths": [list(lengths) for lengths in candidate.tokens.lengths],
            "evaluation_length": list(candidate.tokens.evaluation_length),
            "programs": programs,
            "programs_in_all": sum(programs.values()),
            "seconds": seconds,
        }


def packing(plan: Plan) -> Json:
    """Times of an epoch on conversations of all lengths, with and without packing, by the same programs."""
    use_cpu()
    found: Json = {}
    for name, config in (("small", small_config(plan)), ("medium", small_config(plan, **plan.medium))):
        examples, batch_size = plan.packed[name]
        held_out = {"validation": 2 * batch_size, "test": 2 * batch_size}
        rows, steps = conversations(examples + 4 * batch_size, plan.longest), examples // batch_size
        with candidate_on(config, rows, steps, batch_size, examples, held_out, packing=True) as candidate:
            kinds = {"unpacked": (None, None), "packed": candidate.packing}
            (tokens,) = {train(candidate, Steps(0, 0), kind).tokens for kind in kinds.values()}  # which compiles too
            contenders = {of: partial(epoch, candidate, kind) for of, kind in kinds.items()}
            times = compared(contenders, plan.repeats)
            for of, shapes in (("unpacked", candidate.lengths), ("packed", candidate.step_shapes)):
                times[of]["tokens_per_second"] = tokens / times[of]["median_s"]
                times[of]["shapes"] = [list(candidate.placement.shapes(shape)["input_ids"].shape) for shape in shapes]
            found[name] = {"parameters": candidate.parameters, "batch_size": batch_size, "steps": steps, **times}
    return found


def metrics(plan: Plan) -> Json:
    """Times of a batch of evaluation, with losses alone and with task metrics."""
    use_cpu()
    found: Json = {}
    for name, config in (("gpt2", gpt2_config(plan, plan.shape[1])), ("small", small_config(plan))):
        with prepared(config, plan, plan.shape, dtype="float32") as candidate:
            trained, frozen = split_trainable(candidate.pretrained().params)
            placement, lengths = candidate.evaluation_placement, candidate.tokens.evaluation_length
            held_out = evaluation_batches(
                candidate.tokens.test, lengths, placement.rows, placement.local_rows(), candidate.padding
            )
            batch = placement.to_devices(next(held_out))
            losses = jax.jit(partial(summed_losses, candidate))
            contenders = {
                of: partial(batch_seconds, partial(program, trained, frozen, batch), plan.steps)
                for of, program in (("losses", losses), ("scores", candidate.programs.losses))
            }
            times = compared(contenders, 3 * plan.repeats, warm_up=1)
            size = {"parameters": candidate.parameters, "batch": [placement.rows, *lengths]}
            found[name] = size | times
    return found


def summed_losses(candidate: Candidate, trained: Any, frozen: Any, batch: Any) -> Any:
    losses, weights = candidate.abstract.token_losses(join(trained, frozen), batch)
    return losses.sum(axis=1), weights.sum(axis=1)


def batch_seconds(program: Callable[[], Any], times: int) -> float:
    """Seconds of a call, of which several are timed together."""
    seconds, _ = timed(lambda: jax.block_until_ready([program() for _ in range(times)]))
    return seconds / times


def epoch(candidate: Candidate, packing: Packing) -> float:
    """Seconds of an epoch."""
    return train(candidate, Steps(0, 0), packing).seconds


def conversations(count: int, longest: int) -> list[dict[str, Any]]:
    """Questions, and answers of very different lengths, in words."""
    names = numbers(count)
    words = np.exp(np.random.default_rng(SEED).normal(np.log(24), 1.0, count)).clip(1, longest).astype(int)

    def turns(row: Mapping[str, str], length: int) -> list[dict[str, str]]:
        answer = " ".join(itertools.islice(itertools.cycle(row["words"].split()), int(length)))
        return [{"role": "user", "content": row["number"]}, {"role": "assistant", "content": answer}]

    return [{"messages": turns(row, length)} for row, length in zip(names, words, strict=True)]


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


class Steps(Stopwatch):
    """Observes a run of ours."""

    def begin(self, progress: Progress, steps: int) -> None:
        pass

    def step(self, progress: Progress, steps: int, metrics: Mapping[str, float]) -> None:
        self.mark(progress.step)

    def validation(self, progress: Progress, found: Any) -> None:
        pass


def train(candidate: Candidate, observer: Any, packing: Packing = (None, None)) -> Progress:
    """Train with the loop that users train with."""
    trained, frozen = split_trainable(candidate.pretrained().params)
    tokens, training = candidate.tokens, candidate.spec.training
    run = TrainingInputs(
        train=tokens.train[SEED],
        validation=tokens.validation,
        lengths=tokens.lengths,
        evaluation_length=tokens.evaluation_length,
        encoder_decoder=False,
        padding=candidate.padding,
        packing=packing,
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
    watch = Steps(plan.warm_up, candidate.spec.training.max_steps)
    train(candidate, watch)
    return watch.seconds


def step_times(contenders: Mapping[str, Callable[[], float]], plan: Plan, shape: tuple[int, int]) -> Json:
    """Seconds of a step of every contender, and what they make of them."""
    found = compared(contenders, plan.repeats)
    for times in found.values():
        times["tokens_per_second"] = shape[0] * shape[1] / times["median_s"]
    return {"warm_up": plan.warm_up, "repeats": plan.repeats, **found}


def about(candidate: Candidate, shape: tuple[int, int]) -> Json:
    installed = {name: version(name) for name in hf_trainer.PACKAGES if find_spec(name)}
    steps = candidate.spec.training.max_steps
    return {"peers": installed, "parameters": candidate.parameters, "batch": list(shape), "steps": steps}


def gpt2_config(plan: Plan, tokens: int) -> Any:
    """GPT-2, small where the plan changes nothing, without the dropout that ours has not."""
    settings = {"n_positions": max(1024, tokens), "bos_token_id": 0, "eos_token_id": 0} | plan.gpt2
    return GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **settings)


def small_config(plan: Plan, **changes: Any) -> Any:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(vocab_size=512, bos_token_id=0, eos_token_id=0, **heads, **{**plan.small, **changes})


def targets(parts: Mapping[str, Json]) -> list[Promise]:
    """What we promised ourselves, beside what was measured, in turns."""
    promised: list[Promise] = []
    for part in ("trainer", "gpu"):
        found = parts.get(part, {})
        within = [found[name]["ratio_within_turns"] for name in found if name.startswith("Trainer")]
        if within:
            promised.append((f"a step of {part}, over the Trainer's faster one", 1.0, 1 / min(within)))
    if "input" in parts:
        shares = ((model, parts["input"][model]["share"]) for model in ("gpt2", "small"))
        promised += [(f"share of the time of {model} spent waiting", 0.05, share) for model, share in shares]
    if "packing" in parts:
        found = parts["packing"]
        promised += [
            (f"an epoch of {model}, packed, over one unpacked", 1.0, found[model]["packed"]["ratio_within_turns"])
            for model in ("small", "medium")
        ]
    if "metrics" in parts:
        found, within = parts["metrics"], "ratio_within_turns"
        promised += [
            (f"a batch of evaluation of {model} with metrics, over losses alone", 1.03, found[model]["scores"][within])
            for model in ("gpt2", "small")
        ]
    if "ladder" in parts:
        promised.append(("programs compiled by a ladder", 3, parts["ladder"]["programs_in_all"]))
    return promised


MEASURES: Mapping[Part, Callable[[Plan], Json | None]] = {
    "trainer": trainer,
    "input": waiting,
    "ladder": ladder,
    "packing": packing,
    "metrics": metrics,
    "gpu": gpu,
}


if __name__ == "__main__":
    tyro.cli(benchmark)
