"""A task of real examples, and tiny models of every family to fine-tune on it."""

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import lensjax.models
from lensjax.core.signals import stopping_on_signals
from lensjax.tasks.batches import choose_lengths, example_lengths
from lensjax.tasks.spec import read_spec
from lensjax.tasks.task import Example
from lensjax.tasks.tokens import tokenise
from lensjax.train.candidate import Candidate
from lensjax.train.checkpoint import Checkpoints
from lensjax.train.loop import Progress, TrainingInputs, fine_tune
from lensjax.train.placement import BatchPlacement
from lensjax.train.prepare import read_examples
from lensjax.train.recorder import Recorder
from lensjax.train.runs import open_folder
from lensjax.train.spec import FinetuneSpec, TrainingSpec
from lensjax.train.step import make_programs

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def number_words(n: int) -> str:
    """A number digit by digit in English."""
    return " ".join(_DIGITS[int(digit)] for digit in str(n))


@pytest.fixture
def save_task(tmp_path: Path) -> Callable[..., Path]:
    """Writes the task of spelling out the numbers below 1000 and its spec; arguments are fields of `training`."""

    def save(folder: Path = tmp_path, validation: int = 24, test: int = 40, **training: Any) -> Path:
        rows = [{"number": n, "words": number_words(n)} for n in range(1000)]
        (folder / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = {
            "source": {"files": "numbers.jsonl"},
            "prompt": "{number}:",
            "target": " {words}",
            "validation": validation,
            "test": test,
            "training": {"learning_rate": 3e-3, "batch_size": 16, "epochs": 2} | training,
        }
        path = folder / "numbers.yaml"
        path.write_text(json.dumps(content))  # which is YAML too
        return path

    return save


@pytest.fixture(scope="session")
def save_squares() -> Callable[..., Path]:
    """Writes a task whose batches have one small shape, and its spec; arguments are fields of `training`."""

    def save(folder: Path, **training: Any) -> Path:
        rows = [{"number": f"{n:03}", "square": f"{n * n:06}"} for n in range(1000)]
        (folder / "squares.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = {
            "source": {"files": "squares.jsonl"},
            "prompt": "{number}:",
            "target": "{square}",
            "validation": 32,
            "test": 32,
            "training": {"learning_rate": 3e-3, "batch_size": 16, "epochs": 100} | training,
        }
        path = folder / "squares.yaml"
        path.write_text(json.dumps(content))  # which is YAML too
        return path

    return save


@pytest.fixture
def make_spec(save_task: Callable[..., Path]) -> Callable[..., FinetuneSpec]:
    """Makes the spec of that task; arguments are those of `save_task`."""
    return lambda **settings: read_spec(save_task(**settings), FinetuneSpec)


@pytest.fixture(scope="session")
def pretrained(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any], make_tokenizer: Callable[..., Any]
) -> Callable[[str], Path]:
    """The folder of a tiny model of a family, with a tokenizer and random weights; made once."""
    import lensjax.models

    made: dict[str, Path] = {}

    def folder(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = tmp_path_factory.mktemp("models") / model_type
            config = tiny_config(model_type, vocab_size=288, eos_token_id=2, pad_token_id=0, bos_token_id=1)
            lensjax.models.from_config(config).save(made[model_type])
            make_tokenizer(pad_token="<pad>", bos_token="<s>").save_pretrained(made[model_type])
        return made[model_type]

    return folder


@dataclass
class Seen:
    """An observer that keeps what it is told, and sends this process SIGTERM when it hears of a step."""

    stop_at: int | None = None
    steps: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)

    def begin(self, progress: Progress, steps: int) -> None:
        pass

    def step(self, progress: Progress, steps: int, metrics: Any) -> None:
        self.steps.append((progress.step, dict(metrics)))
        if progress.step == self.stop_at:
            signal.raise_signal(signal.SIGTERM)

    def validation(self, progress: Progress, found: Any) -> None:
        self.validations.append((progress.step, found.loss))


class Trial:
    """A tiny model and a few examples that the real loop fine-tunes any number of times, compiled once."""

    def __init__(self, model: Any, run: TrainingInputs, spec: TrainingSpec, mesh: Any) -> None:
        self.model, self.run, self.spec, self.mesh = model, run, spec, mesh
        self.placements = BatchPlacement(mesh, spec.batch_size), BatchPlacement(mesh, 2 * spec.batch_size)
        self.programs = make_programs(model, spec, mesh)
        self.shardings = jax.tree.map(lambda leaf: leaf.sharding, model.params)
        self.params = jax.tree.map(np.asarray, model.params)

    def start(self) -> Any:
        """The parameters before training, which may be donated."""
        return jax.device_put(self.params, self.shardings)

    def fine_tune(
        self, folder: Path, seen: Seen | None = None, run: TrainingInputs | None = None, **settings: Any
    ) -> Any:
        """What `fine_tune` gives back; `settings` change the spec in what the programs do not depend on."""
        checkpoints = Checkpoints(folder)
        try:
            with stopping_on_signals():
                return fine_tune(
                    self.programs,
                    self.start(),
                    {},
                    self.run if run is None else run,
                    self.spec.model_copy(update=settings),
                    self.placements,
                    checkpoints,
                    Seen() if seen is None else seen,
                )
        finally:
            checkpoints.close()


@pytest.fixture(scope="session")
def observer() -> type[Seen]:
    """Makes an observer that keeps the steps and validations it is told of, and asks for an end at step `stop_at`."""
    return Seen


@pytest.fixture(scope="session")
def number_tokens(make_tokenizer: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the tokens of some numbers spelt out."""
    tokenizer = make_tokenizer(pad_token="<pad>", bos_token="<s>")

    def make(numbers: Any, encoder_decoder: bool) -> Any:
        rows = [Example(f"{n}:", f" {number_words(n)}", f"number {n}") for n in numbers]
        spec = FinetuneSpec.model_validate({"source": {"files": "numbers.jsonl"}, "target": "{words}"})
        return tokenise(rows, tokenizer, spec, encoder_decoder=encoder_decoder)

    return make


@pytest.fixture(scope="session")
def make_trial(tiny_config: Callable[..., Any], number_tokens: Callable[..., Any]) -> Callable[..., Trial]:
    """Makes a `Trial` of a family on numbers spelt out; other arguments are fields of `training`.

    The numbers are less than `below`. Batches are of one shape, which is less to compile, unless there are to be two.
    `changes` are made in the model's configuration.
    """
    import lensjax.models

    def make(
        model_type: str,
        examples: int = 40,
        below: int = 1000,
        shapes: int = 1,
        changes: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Trial:
        mesh = lensjax.models.make_mesh("data=1", jax.devices()[:1])
        special = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
        config = tiny_config(model_type, vocab_size=288, **special, **(changes or {}))
        model = lensjax.models.from_config(config, mesh=mesh)
        encoder_decoder = model.family.encoder_decoder
        numbers = np.random.default_rng(0).permutation(below)
        train = number_tokens(numbers[:examples], encoder_decoder)
        validation = number_tokens(numbers[-24:], encoder_decoder)
        needed = [example_lengths(tokens, encoder_decoder) for tokens in (train, validation)]
        short, long = choose_lengths(needed[:1])
        spec = TrainingSpec(**({"batch_size": 16, "dtype": "float32"} | settings))
        run = TrainingInputs(
            train=train,
            validation=validation,
            lengths=(short if shapes == 2 else long, long),
            evaluation_length=choose_lengths(needed)[1],
            encoder_decoder=encoder_decoder,
            padding=0,
            seed=0,
            rate=3e-3,
            identity={"spec": "a", "learning rate": 3e-3},
        )
        return Trial(model, run, spec, mesh)

    return make


@pytest.fixture(scope="session")
def with_identity() -> Callable[..., TrainingInputs]:
    """A run whose checkpoints say that they are of something else."""
    return lambda run, **changes: replace(run, identity={**run.identity, **changes})


@pytest.fixture
def prepare(
    make_spec: Callable[..., FinetuneSpec], pretrained: Callable[[str], Path], tmp_path: Path
) -> Callable[..., tuple[Candidate, Recorder]]:
    """Makes a candidate of the numbers task and its recorder; arguments are those of `make_spec`."""

    def make(
        sizes: Sequence[int],
        model_type: str = "gpt2",
        out: str = "out",
        seeds: Sequence[int] = (0,),
        name: str = "tiny",
        source: Path | None = None,
        **settings: Any,
    ) -> tuple[Candidate, Recorder]:
        spec = make_spec(**settings)
        examples = read_examples(spec, sizes, seeds)
        open_folder(tmp_path / out, spec, examples.digest)
        mesh = lensjax.models.make_mesh("data=1", jax.devices()[:1])
        candidate = Candidate(spec, str(source or pretrained(model_type)), name, examples, tmp_path / out, mesh)
        return candidate, Recorder(candidate.dtype, 1)

    return make
