"""A finished study to damage, whose losses are made up in place of training, so that a case takes a blink."""

import json
import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from chaos_study import Scene

_FALL = {"small": 0.30, "large": 0.55}  # of the loss with every doubling of the examples


@pytest.fixture
def scene(finished: tuple[Scene, list[tuple[Any, str, Any]]], monkeypatch: pytest.MonkeyPatch) -> Scene:
    """The finished study; in the test, models are stood for by made-up losses and kernels."""
    here, stand_ins = finished
    for place, name, value in stand_ins:
        monkeypatch.setattr(place, name, value)
    here.computed.clear()
    return here


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, list[tuple[Any, str, Any]]]:
    """The study, finished once for all tests, and what stands for what, as `monkeypatch.setattr` takes it."""
    from lensjax.measure.kinds.ntk import TangentKernel
    from lensjax.measure.measurement import Measured, Subject
    from lensjax.models import hub
    from lensjax.models import model as of_models
    from lensjax.models.model import abstract_model
    from lensjax.models.options import make_options
    from lensjax.selection import ranking
    from lensjax.study import bench, checks, inference
    from lensjax.train import ladder, prepare
    from lensjax.train.candidate import Candidate
    from lensjax.train.prepare import Examples, tokenise_all
    from lensjax.train.recorder import LOG, Recorder
    from lensjax.train.results import Result
    from lensjax.train.runs import Run
    from lensjax.train.spec import FinetuneSpec

    folder = tmp_path_factory.mktemp("chaos")
    rows = [
        {"n": f"{n:04}", "letters": f"{n:04}".translate(str.maketrans("0123456789", "abcdefghij"))} for n in range(500)
    ]
    (folder / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    study = {
        "candidates": [
            {"source": "pocket:gpt2-0.2m", "name": "small"},
            {"source": "pocket:llama-0.3m", "name": "large"},
        ],
        "task": {
            "source": {"files": "numbers.jsonl"},
            "prompt": "{n}:",
            "target": "{letters}",
            "validation": 16,
            "test": 16,
        },
        "training": {"learning_rate": [1e-3, 3e-3], "batch_size": 16, "epochs": 1},
        "budget": 400,
        "target": 400,
        "seeds": [0, 1],
        "evidence": {"ntk": {"examples": 4}},
        "method": "last_three",
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    here = Scene(file)

    class StandIn(Candidate):
        """A candidate that makes up its losses."""

        def __init__(
            self,
            spec: FinetuneSpec,
            source: str,
            name: str,
            examples: Examples,
            out: Path,
            mesh: Any = None,
            **how: Any,
        ) -> None:
            self.spec, self.source, self.name, self.examples, self.out = spec, source, name, examples, out
            place = hub.find_folder(source)
            self.weights = ladder.model_fingerprint(place)
            self.tokens = tokenise_all(examples, model_of(place), spec, out)

        def train(self, run: Run, recorder: Recorder, *, save_model: bool = False) -> Result:
            here.computed.append(f"{self.name} {run.folder.name}")
            (run.folder / LOG).write_text('{"step": 1}\n')
            return self.finish(run, self._made_up(run))

        def _made_up(self, run: Run) -> Result:
            loss = 3.0 * math.exp(-_FALL[self.name] * math.log2(1 + run.examples / 100)) + 0.01 * run.seed
            return Result(
                model=self.name,
                examples=run.examples,
                loss=loss + abs(math.log10(run.rate / 3e-3)) if run.rate else loss,
                seed=run.seed,
                size=1000,
                family="gpt2",
                standard_error=0.01,
                validation_loss=loss + run.rate,
                learning_rate=run.rate or None,
                steps=2,
                best_step=1,
                flops=10 * (run.examples + 16),
                seconds=0.001,
                device="cpu",
                spec=self.examples.digest,
                data=self.fingerprint(run),
                weights=self.weights,
                writing=self.tokens.writing,
            )

    config_of, made = cache(hub.read_config), dict[Any, Any]()

    def once(key: Any, make: Callable[[], Any]) -> Any:
        if key not in made:
            made[key] = make()
        return made[key]

    @cache
    def model_of(place: Path) -> Any:
        return abstract_model(config_of(place), make_options(), place)

    def tokenizer_of(place: Path, config: Any) -> Any:
        return once(("tokenizer", place), lambda: read_tokenizer(place, config))

    def cost_of(config: Any, *lengths: int, **how: Any) -> Any:
        return once(("cost", config.model_type), lambda: inference_cost(config, *lengths, **how))

    def judge(examples: Any, tokenizer: Any, **how: Any) -> Any:
        return once(("writing", id(tokenizer)), lambda: examine(examples, tokenizer, **how))

    def kernel(self: Any, subject: Subject) -> Measured:
        here.computed.append(str(subject.cell))
        theta = np.eye(4) * (1 + len(subject.cell.model))
        values = np.full(4, 0.25 * theta[0, 0])
        summary = {"functional": "loss", "size": 4, "effective_rank": 4.0, "target_alignment": 0.5}
        times = np.geomspace(0.1, 10, 5)
        arrays = {"theta": theta, "f0": np.arange(4.0), "y": np.zeros(4), "eigenvalues": values}
        return Measured(summary, arrays | {"times": times, "residuals": 1 / times}, 1000)

    read_tokenizer, inference_cost, examine = hub.read_tokenizer, inference.inference_cost, checks.examine
    taken = bench.sample
    stand_ins: list[tuple[Any, str, Any]] = [
        (ladder, "Candidate", StandIn),
        (ladder.Curve, "_recorder", None),
        (TangentKernel, "measure", kernel),
        (ranking, "methods_in_order", lambda: ["last_three"]),  # and reports fit no other
        # What does not depend on the study's folder is made once.
        (checks, "read_config", config_of),
        (inference, "read_config", config_of),
        (checks, "read_tokenizer", tokenizer_of),
        (of_models, "read_tokenizer", tokenizer_of),
        (inference, "inference_cost", cost_of),
        (checks, "examine", judge),
        (prepare, "examine", judge),
        (checks, "tokenise", lambda *args, **how: None),
        *((module, "sample", lambda task: once("sample", lambda: taken(task))) for module in (bench, prepare)),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for place, name, value in stand_ins:
            patch.setattr(place, name, value)
        here.run(here.whole)
    return here, stand_ins
