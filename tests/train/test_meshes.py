"""Meshes for pods: what is expected of each, which are compiled, and what is said where none fits."""

import re
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from transformers import LlamaConfig

from lensjax.core.errors import InputError
from lensjax.core.roofline.chips import CHIPS
from lensjax.core.roofline.estimate import StepBounds
from lensjax.core.topologies import Topology, find_topology
from lensjax.models import make_mesh
from lensjax.train import pods
from lensjax.train.memory import NoRoom, compiled_from
from lensjax.train.meshes import Choice, Forecast, Outlook, Workplace, outlooks
from lensjax.train.pods import Placement, advise
from lensjax.train.spec import TrainingSpec

CONFIG = LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=192, num_hidden_layers=3, head_dim=16, num_attention_heads=4
)
KERNELS, REST = 3 * (4 * 64**2 + 3 * 64 * 192), 2 * 256 * 64 + 7 * 64


def workplace(batch: int = 8, chip: Any = CHIPS["h100"], time: int = 32, **training: Any) -> Workplace:
    """A step on the eight devices of a CPU in place of a node of GPUs."""
    spec = TrainingSpec(batch_size=batch, **training)
    pod = Topology("h100:8", chip, jax.devices(), "cpu:8")
    return Workplace(CONFIG, pod, spec, (time,), fixed="remat" in training)


def placement(one: Outlook, times: float, **found: Any) -> Placement:
    """As if the step computed with so many times the memory that is expected."""
    choice, memory = one.choice, round(one.held + times * (one.memory - one.held))
    return Placement(mesh=choice.mesh, accumulation=choice.accumulation, remat=choice.remat, memory=memory, **found)


@pytest.mark.eight_devices
def test_what_is_expected_of_a_mesh() -> None:
    forecast = Forecast(workplace())
    assert forecast.parameters == forecast.trained == KERNELS + REST
    one = forecast(Choice(1, 8, 1, 1, "full"))
    state, scores = 16 * (KERNELS + REST) / 8, 4 * 32**2 * 4
    kept = 2 * (3 + 2) * 32 * 64  # in bfloat16 of an example: x before each layer, before and after the last norm
    assert one.memory == pytest.approx(state + kept + scores, rel=0.1)
    assert forecast(Choice(1, 8, 1, 1, "none")).memory > one.memory
    assert forecast(Choice(1, 8, 1, 1, "none")).seconds <= one.seconds
    sent = (3 + 1) * 2 * (KERNELS + REST) * 7 / 8  # gathered for three passes, and scattered once
    assert one.links == pytest.approx(sent / 450e9)
    whole = forecast(Choice(8, 1, 1, 1, "full"))
    assert whole.links == pytest.approx(4 * (KERNELS + REST) * 2 * 7 / 8 / 450e9)
    assert whole.memory - one.memory == pytest.approx(state * 7)
    parts = forecast(Choice(1, 4, 2, 2, "full"))
    layers = (3 + 2) * 3 * 2 * 32 * 64 * 2 * 2 * 1 / 2
    assert parts.links == pytest.approx((2 * (3 + 1) * 2 * (KERNELS + REST) / 2 * 3 / 4 + 2 * layers / 2) / 450e9)


def test_adapters_are_those_of_the_training() -> None:
    work = workplace(method="lora", lora_rank=2, lora_ranks={"down": 16}, dora=True)
    made = work.model(make_mesh("fsdp=1", jax.devices()[:1]), "full").options.lora
    assert made is not None
    assert made.dora
    assert {adapter.name: adapter.rank for adapter in made.adapters} == dict.fromkeys("qkvo", 2) | {
        "gate": 2,
        "up": 2,
        "down": 16,
    }


@pytest.mark.eight_devices
def test_the_best_of_each_mesh_come_first() -> None:
    found = outlooks(Forecast(workplace(batch=16)))
    meshes = [one.choice.mesh for one in found]
    distinct = len(set(meshes))
    assert len(set(meshes[:distinct])) == distinct < len(found)
    assert [one.seconds for one in found[:distinct]] == sorted(one.seconds for one in found[:distinct])
    assert all(4 % one.choice.tensor == 0 for one in found)


@pytest.mark.eight_devices
def test_where_nothing_fits_or_divides() -> None:
    with pytest.raises(InputError, match=r"No mesh of 8 chips divides a batch of 3 .* a multiple of 2\."):
        outlooks(Forecast(workplace(batch=3, remat="full")))
    assert outlooks(Forecast(workplace(batch=2, remat="full")))  # as the message says
    small = CHIPS["h100"].model_copy(update={"memory_gb": 2e-4})
    with pytest.raises(
        InputError, match=r"takes about .* moments need (\d+) chips at least; take more chips"
    ) as raised:
        outlooks(Forecast(workplace(chip=small, remat="full")))
    state = 16 * (KERNELS + REST)
    assert state / 200_000 < int(re.search(r"need (\d+) chips", str(raised.value))[1]) < 2 * state / 200_000
    tiny = CHIPS["h100"].model_copy(update={"memory_gb": 1e-6})
    with pytest.raises(InputError, match=r"computes at a time has no room on any number of them; take more"):
        outlooks(Forecast(workplace(chip=tiny, remat="full")))


@pytest.mark.skipif(find_spec("libtpu") is None, reason="compiling for a TPU that is not attached needs libtpu")
def test_compiled_meshes_are_ranked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS")  # the TPU's compiler ends the process at flags that only others know
    monkeypatch.setattr(pods, "compiled_folder", lambda: tmp_path)
    pod = find_topology("v5e:2x2")
    work = Workplace(CONFIG, pod, TrainingSpec(batch_size=4, remat="full"), (32,), fixed=True)
    advice = advise(work, compiled=2)
    seconds = [one.bounds.seconds for one in advice.placements if one.bounds is not None]
    assert len(seconds) == 2
    assert seconds == sorted(seconds)
    assert advice.best.memory is not None
    assert advice.best.memory > 12 * advice.parameters / 4  # parameters and moments, on four chips
    assert str(advice.best) in advice.reason
    assert {one.remat for one in advice.placements} == {"full"}
    monkeypatch.setattr(pods, "compiled_from", None)  # what is kept is not compiled again
    assert advise(work, compiled=2) == advice
    small = pod._replace(chip=CHIPS["v5e"].model_copy(update={"memory_gb": 0.0008}))
    with pytest.raises(InputError, match=r"No mesh of these 4 chips has room|Nothing that was compiled"):
        advise(replace(work, pod=small), compiled=2)


@pytest.mark.eight_devices
def test_what_did_not_fit_teaches_what_will(monkeypatch: pytest.MonkeyPatch) -> None:
    work = workplace(batch=16)
    every, tried = outlooks(Forecast(work)), []
    room = 1.5 * min(one.memory for one in every)

    def place(work: Workplace, one: Outlook) -> Placement:
        tried.append(one)
        return placement(one, 100, problem="it takes more")

    monkeypatch.setattr(pods, "place", place)
    small = replace(work, pod=work.pod._replace(chip=work.chip.model_copy(update={"memory_gb": room / 1e9})))
    with pytest.raises(InputError, match=r"Nothing that was compiled for h100:8 fits: .*; take more chips"):
        advise(small, compiled=2)
    assert [one.choice.tensor for one in tried] == [2, 1]  # a mesh that is as wide as one that did not fit is not tried


@pytest.mark.eight_devices
def test_what_did_not_fit_says_nothing_of_narrower_meshes(monkeypatch: pytest.MonkeyPatch) -> None:
    work = workplace(batch=16)
    every, tried = outlooks(Forecast(work)), []
    widest = max(every, key=lambda one: (one.choice.tensor, one.memory - one.held))
    room = 1.2 * min(one.memory for one in every if one.choice.tensor == 1)

    def place(work: Workplace, one: Outlook) -> Placement:  # of which `tensor` splits nothing but parameters
        tried.append(one)
        made = placement(one, one.choice.tensor**2, bounds=StepBounds.model_construct(seconds=1.0, binding="compute"))
        fits = made.memory is not None and made.memory <= room
        return made if fits else made.model_copy(update={"bounds": None, "problem": "it takes more"})

    monkeypatch.setattr(pods, "place", place)
    monkeypatch.setattr(pods, "outlooks", lambda forecast: [widest, *(one for one in every if one != widest)])
    small = replace(work, pod=work.pod._replace(chip=work.chip.model_copy(update={"memory_gb": room / 1e9})))
    advice = advise(small, compiled=1)
    assert "tensor" not in advice.best.mesh
    assert {one.choice.tensor for one in tried} > {1}


@pytest.mark.parametrize(
    "said",
    [
        "Ran out of memory in hbm. Used 16.61G of 15.75G hbm.",
        "HLO temporaries (16.61G) exceeds available HBM (15.75G).",
    ],
)
def test_what_the_compiler_says_of_memory(said: str) -> None:
    def compile_() -> None:
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {said}")

    with pytest.raises(NoRoom, match=r"^16\.61G of 15\.75G$") as raised:
        compiled_from(SimpleNamespace(compile=compile_))
    assert raised.value.needed == round(16.61 * 2**30)


def test_programs_that_the_cache_of_jax_cannot_read_again_are_compiled_in_silence(
    recwarn: pytest.WarningsRecorder,
) -> None:
    def compile_() -> str:
        warnings.warn("Error reading persistent compilation cache entry for 'jit_step': INVALID_ARGUMENT", stacklevel=1)
        warnings.warn("another", stacklevel=1)
        return "compiled"

    assert compiled_from(SimpleNamespace(compile=compile_)) == "compiled"
    assert [str(one.message) for one in recwarn] == ["another"]
