"""What a study will cost: what runs then take, to the last operation and byte, and what is wrong with candidates."""

import json
import math
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lensjax.models
from lensjax.core import text
from lensjax.core.devices import peak_flops
from lensjax.core.errors import InputError
from lensjax.measure.kernel import measure_kernel
from lensjax.measure.probes import probe_batch, probe_examples
from lensjax.measure.rungs import rung_flops
from lensjax.models.hub import read_config
from lensjax.models.lora import add_lora, split_trainable
from lensjax.study import plan
from lensjax.study.constraints import Constraints
from lensjax.study.plan import make_plan
from lensjax.study.plan_schema import Plan
from lensjax.study.spec import read_study
from lensjax.tasks.batches import BatchPlan, fits
from lensjax.train import workload
from lensjax.train.choices import WAYS, choices
from lensjax.train.estimate import AbstractCandidate, Work, planned_work, scaled_work
from lensjax.train.ladder import measure_curve
from lensjax.train.loop import planned_steps
from lensjax.train.memory import NoRoom
from lensjax.train.prepare import read_examples
from lensjax.train.results import read_result
from lensjax.train.runs import SEARCH
from lensjax.train.spec import TrainingSpec
from lensjax.train.step import make_programs

FAMILIES = ("gpt2", "t5")
PATIENT = {"learning_rate": [1e-4, 3e-3], "batch_size": 16, "epochs": 2, "patience": 1000, "evaluate_every": 5}


@pytest.fixture(scope="module")
def study(write_study, tmp_path_factory):
    """A study whose runs never stop early, of two seeds, two learning rates, and short and long batches."""
    folder, budget = tmp_path_factory.mktemp("planned"), {"flops": 1e30, "examples": 400}
    written = write_study(folder, *FAMILIES, training=PATIENT, seeds=[0, 1], budget=budget, target_text=" {words}")
    return read_study(written)


@pytest.fixture(scope="module")
def planned(study):
    """Its plan, without any weights."""
    return make_plan(study, timing=False)


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=90),
    batch_size=st.sampled_from([1, 4, 16]),
    epochs=st.integers(1, 3),
    max_steps=st.none() | st.integers(1, 40),
    every=st.none() | st.integers(1, 7),
)
def test_work_is_that_of_the_loop(lengths, batch_size, epochs, max_steps, every):
    least = 0 if max_steps is None else max_steps // 2
    spec = TrainingSpec(
        batch_size=batch_size, epochs=epochs, min_steps=least, max_steps=max_steps, evaluate_every=every
    )
    needed, short = np.array(lengths)[:, None], (12,)
    batches = BatchPlan(fits(needed, short), batch_size, 3)
    steps, between = planned_steps(spec, batches.steps_per_epoch)
    taken = [batches[step] for step in range(steps)]
    of_short = sum(is_short for is_short, _ in taken)
    validations = sum(step % between == 0 or step == steps for step in range(1, steps + 1))
    tokens = sum(int(needed[rows].sum()) for _, rows in taken)
    assert planned_work(needed, short, spec, 3) == Work((of_short, steps - of_short), validations, tokens)


def test_work_on_more_than_could_be_listed_is_in_proportion():
    spec = TrainingSpec(batch_size=4, epochs=2, evaluate_every=8)
    lengths = np.array([5, 20, 8, 9, 11, 3, 18, 2] * 8)[:, None]
    one = planned_work(lengths, (12,), spec, 0)
    many = scaled_work(lengths, (12,), spec, 64 * 10**6)
    assert many.steps == tuple(10**6 * steps for steps in one.steps)
    assert many.tokens == 10**6 * one.tokens
    assert many.validations == 10**6 * one.validations


@pytest.mark.parametrize("batch_size", [3, 37, 1024])
def test_work_is_in_proportion_where_batches_do_not_divide(batch_size):
    spec, lengths = TrainingSpec(batch_size=batch_size, epochs=2), np.array([5, 20, 8, 9, 11, 3, 18, 2] * 50)[:, None]
    for examples in (40_000, 40_001):
        listed = planned_work(np.resize(lengths, (examples, 1)), (12,), spec, 0)
        scaled = scaled_work(lengths, (12,), spec, examples)
        assert sum(scaled.steps) == sum(listed.steps)
        assert scaled.steps == pytest.approx(listed.steps, abs=1)
        assert scaled.tokens == pytest.approx(listed.tokens, rel=1e-4)
        assert scaled.validations == listed.validations


@pytest.mark.long
def test_a_target_beyond_memory_is_planned(write_study, tmp_path):
    spec = read_study(write_study(tmp_path, "gpt2", "opt", target=10**12))
    small = read_study(write_study(tmp_path, "gpt2", "opt", target=3200, name="small"))
    (large, *_), (usual, *_) = (make_plan(one, timing=False).candidates for one in (spec, small))
    assert large.full_tuning.examples == 10**12
    assert large.full_tuning.flops == pytest.approx(10**12 / 3200 * usual.full_tuning.flops, rel=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_runs_take_what_was_planned(study, planned, family, tmp_path):
    candidate = next(one for one in planned.candidates if one.model == family)
    spec, sizes = study.finetune_spec(study.candidate(family)), [rung.examples for rung in candidate.rungs]
    results = list(measure_curve(spec, candidate.source, tmp_path / "out", sizes, seeds=study.seeds))
    for rung in candidate.rungs:
        runs = [result for result in results if result.examples == rung.examples]
        assert len(runs) == rung.runs == 2
        for field in ("flops", "steps", "tokens"):
            assert sum(getattr(run, field) for run in runs) == getattr(rung, field)
    assert {result.size for result in results} == {candidate.parameters}
    searched = [read_result(folder) for folder in (tmp_path / "out" / family / SEARCH).iterdir()]
    of_rung = next(result for result in results if (result.examples, result.seed) == (200, 0))
    assert candidate.search.runs == 1
    assert candidate.search.flops == sum(run.flops for run in searched) - of_rung.flops


def test_totals_add_up(study, planned):
    for one in planned.candidates:
        assert one.total.flops == one.search.flops + sum(rung.flops for rung in one.rungs)
        assert one.full_tuning.examples == planned.target == 3200
        steps, _ = planned_steps(TrainingSpec(**PATIENT), 3200 // 16)
        assert one.full_tuning.steps == pytest.approx(2 * steps, rel=0.01)  # a batch may hold fewer
        assert one.full_tuning.tokens == pytest.approx(8 * one.rungs[-1].tokens, rel=1e-9)
    (row,) = planned.budgets
    assert row.examples == planned.reached == 400
    assert row.flops == sum(one.total.flops for one in planned.candidates)
    assert planned.full_tuning.flops == sum(one.full_tuning.flops for one in planned.candidates)
    assert row.share == row.flops / planned.full_tuning.flops
    assert planned.basis == "rates"
    assert row.seconds == pytest.approx(sum(one.total.seconds for one in planned.candidates))
    assert planned.sentence == (
        f"At most {text.flops(row.flops)}, about {text.duration(row.seconds)} on this device; {text.share(row.share)} "
        "of fine-tuning every candidate on all 3,200 examples."
    )


@pytest.mark.parametrize("violated", ["refuse", "measure"])
def test_what_costs_too_much_at_inference_is_told(study, planned, violated):
    small, large = sorted(planned.candidates, key=lambda one: one.parameters)
    assert (small.inference.parameters, small.ineligible) == (small.parameters, "")
    limits = Constraints(memory=large.inference.memory - 1, violated=violated)
    constrained = study.model_copy(update={"constraints": limits})
    context, most = large.inference.context, large.inference.memory - 1
    why = (
        f"it takes {most + 1:,} bytes of memory at inference with a context of {context} tokens in bfloat16, and at "
        f"most {most:,} bytes are allowed"
    )
    if violated == "refuse":
        with pytest.raises(InputError, match=f"The constraints leave {small.model} to choose from ") as error:
            make_plan(constrained, timing=False)
        assert f"({large.model}: {why}); raise a limit" in str(error.value)
        assert str(error.value).endswith("or set constraints.violated to measure.")
    else:
        found = make_plan(constrained, timing=False)
        assert {one.model: one.ineligible for one in found.candidates} == {small.model: "", large.model: why}
        assert [one.flops for one in found.budgets] == [one.flops for one in planned.budgets]


@pytest.mark.long
def test_a_rung_whose_model_is_kept_takes_the_search_s_run_if_it_is_the_first(study):
    kept = study.model_copy(update={"keep_models": True})
    for seeds, runs in (((0, 1), 1), ((1, 0), 2)):
        found = make_plan(kept.model_copy(update={"seeds": seeds}), timing=False)
        assert [one.search.runs for one in found.candidates] == [runs] * len(FAMILIES)


def test_a_plan_is_read_back(planned):
    assert Plan.model_validate_json(planned.model_dump_json()) == planned
    assert set(json.loads(planned.model_dump_json())) == set(Plan.model_json_schema()["properties"])


def test_full_tuning_of_what_the_ladder_reaches_is_a_rung(study):
    training = study.training.model_copy(update={"learning_rate": (1e-3,)})
    found = make_plan(study.model_copy(update={"target": 400, "training": training}), timing=False)
    for one in found.candidates:
        assert one.full_tuning == one.rungs[-1]
        assert one.search is None


@pytest.mark.eight_devices
@pytest.mark.parametrize(
    ("family", "mesh", "settings"),
    [("llama", "fsdp=4,tensor=2", {}), ("gpt2", "fsdp=8", {"method": "lora", "lora_rank": 2, "accumulation": 2})],
)
def test_memory_is_that_of_the_program_with_real_arrays_and_work_that_of_one_device(
    write_study, tmp_path, family, mesh, settings
):
    spec = read_study(write_study(tmp_path, family, "opt", training={"batch_size": 16, **settings}))
    one = spec.candidates[0]
    devices = lensjax.models.make_mesh(mesh)
    finetuning = spec.finetune_spec(one)
    examples = read_examples(finetuning, [200], [0])
    found = AbstractCandidate(finetuning, one.source, examples, devices)
    alone = AbstractCandidate(finetuning, one.source, examples, lensjax.models.make_mesh(devices=jax.devices()[:1]))
    assert found.evaluation_flops == alone.evaluation_flops
    assert [*map(found.step_flops, found.lengths)] == [*map(alone.step_flops, alone.lengths)]
    dtypes = {"dtype": "float32", "param_dtype": "float32"}
    model = lensjax.models.load(one.source, mesh=devices, **dtypes)
    model = add_lora(model, rank=2) if settings else model
    programs = make_programs(model, finetuning.training, devices)
    trained, frozen = split_trainable(model.params)
    best = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(trained))
    state = programs.start(trained)
    moments = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.optimiser))
    rows = found.rows(found.lengths[1], found.placement)
    batch = found.placement.to_devices(rows)
    compiled = programs.step.lower(state, frozen, batch, 0.0).compile().memory_analysis()
    memory = found.memory
    assert memory.arguments == compiled.argument_size_in_bytes
    assert memory.outputs == compiled.output_size_in_bytes
    assert memory.temporaries == compiled.temp_size_in_bytes
    assert memory.aliased == compiled.alias_size_in_bytes > 0
    assert (memory.best, memory.moments) == (best, moments)
    assert memory.peak == max(memory.step, memory.evaluation + moments) + best


@pytest.mark.eight_devices
def test_steps_are_timed_without_weights(write_study, tmp_path):
    path = write_study(tmp_path, *FAMILIES, budget={"hours": 100, "examples": 400})
    content = json.loads(json.dumps(read_study(path).model_dump(mode="json")))
    for one in content["candidates"]:
        shutil.copytree(one["source"], tmp_path / one["name"], ignore=shutil.ignore_patterns("*.safetensors"))
    path.write_text(path.read_text().replace(str(Path(content["candidates"][0]["source"]).parent), str(tmp_path)))
    found = make_plan(read_study(path))
    assert found.basis == "timed"
    assert found.reached == 400
    for one in found.candidates:
        assert one.source.startswith(str(tmp_path))
        assert not one.problem
        assert min(*one.each.steps, one.each.evaluation, one.each.preparing, one.each.compiling) > 0
        runs = sum(rung.seconds for rung in one.rungs)
        assert one.total.seconds == pytest.approx(runs + one.each.preparing + one.each.compiling)
    assert found.budgets[-1].seconds == pytest.approx(sum(one.total.seconds for one in found.candidates))
    assert " on these 8 devices; " in found.sentence


@pytest.mark.long
def test_kernels_are_counted(write_study, tmp_path):
    evidence = {"ntk": {"examples": 8, "functional": "loss"}}
    spec = read_study(write_study(tmp_path, *FAMILIES, evidence=evidence))
    found = make_plan(spec, timing=False).candidates[0]
    devices = lensjax.models.make_mesh()
    model = lensjax.models.load(found.source, dtype="float32", param_dtype="float32", mesh=devices)
    batch = probe_batch(model, spec.task, probe_examples(spec.task, 8))
    assert found.evidence["ntk"].flops == measure_kernel(model, batch).flops
    runs = sum(rung.flops for rung in found.rungs)
    assert found.total.flops == found.evidence["ntk"].flops + runs
    along = read_study(write_study(tmp_path, *FAMILIES, evidence={"ntk": evidence["ntk"] | {"along_ladder": True}}))
    found = make_plan(along, timing=False).candidates[0]
    assert found.evidence_of_rung == found.evidence
    assert found.total.flops == 3 * found.evidence["ntk"].flops + runs  # before, and after 200 and 400 examples


@pytest.mark.long
def test_terms_of_the_bound_are_counted_on_every_rung(write_study, tmp_path):
    evidence = {"ntk": False, "hessian": {"examples": 4}}
    spec = read_study(write_study(tmp_path, *FAMILIES, evidence=evidence, seeds=[0, 1]))
    found = make_plan(spec, timing=False).candidates[0]
    model = lensjax.models.load(found.source, dtype="float32", param_dtype="float32")
    batches = [probe_batch(model, spec.task, probe_examples(spec.task, 4, seed)) for seed in spec.seeds]
    assert found.evidence_of_rung["hessian"].flops == sum(rung_flops(model, [batch]) for batch in batches)
    halves = [{name: rows[part] for name, rows in batches[0].items()} for part in (slice(2), slice(2, 4))]
    assert rung_flops(model, halves) == rung_flops(model, batches[:1])
    assert [rung.examples for rung in found.rungs] == [0, 200, 400]
    assert found.total.flops == 2 * found.evidence_of_rung["hessian"].flops + sum(rung.flops for rung in found.rungs)


@pytest.mark.long
def test_choices_are_those_of_each_candidate(study, planned, monkeypatch):
    ways = [WAYS[0], {"method": "lora", "quantise": "nf4", "remat": "full"}]
    monkeypatch.setattr(plan, "choices_of", lambda found, room: choices(found, room, ways))
    monkeypatch.setattr(plan, "device_memory", lambda mesh: 10**9)
    found = make_plan(study, timing=False, choices=True)
    for one, without in zip(found.candidates, planned.candidates, strict=True):
        assert [choice.settings for choice in one.choices] == [
            "method: full, remat: none",
            "method: lora, quantise: nf4, remat: full",
        ]
        whole, adapters = one.choices
        assert whole.fits
        assert adapters.fits
        assert adapters.memory < whole.memory
        assert (one.memory, one.total.flops, without.choices) == (without.memory, without.total.flops, ())


def test_a_candidate_that_does_not_fit_is_named_and_left_out(study, planned, monkeypatch):
    small, large = sorted(one.memory.peak for one in planned.candidates)
    room = (small + large) // 2
    monkeypatch.setattr(plan, "device_memory", lambda mesh: room)
    found = make_plan(study, timing=False)
    (wrong,) = (one for one in found.candidates if one.problem)
    (right,) = (one for one in found.candidates if not one.problem)
    assert wrong.memory.peak > room == wrong.room
    assert wrong.problem.startswith("It needs ")
    assert wrong.problem.endswith(
        "of memory on each device; what helps: more devices along fsdp or tensor, a smaller batch_size or more "
        "accumulation, remat full, method lora."
    )
    assert found.budgets[-1].flops == right.total.flops
    assert found.full_tuning.flops == right.full_tuning.flops
    assert f"every candidate but {wrong.model} on all" in found.sentence


def test_what_the_compiler_has_no_room_for_is_a_problem(study, monkeypatch):
    class Full:
        trace = jax.jit(lambda *arguments: None).trace

        def lower(self, *arguments):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory. Used 21.40G of 15.75G hbm.")

    monkeypatch.setattr(workload, "make_programs", lambda *arguments: SimpleNamespace(step=Full(), losses=Full()))
    found = make_plan(study, timing=True)
    assert all("It needs 21.40G of 15.75G of memory on each device" in one.problem for one in found.candidates)
    assert found.sentence == "No candidate fits the devices."
    with pytest.raises(NoRoom, match=r"21.40G of 15.75G"):
        raise NoRoom("21.40G of 15.75G")


@pytest.mark.eight_devices
def test_a_candidate_of_its_own_mesh_that_cannot_be_is_left_out(write_study, tiny_models, tmp_path):
    odd, even = tiny_models("gpt2", "opt")
    candidates = [{"source": odd, "mesh": "tensor=8"}, {"source": even}]
    found = make_plan(read_study(write_study(tmp_path, candidates=candidates)), timing=False)
    assert "tensor=8 does not divide the model's 4 attention heads" in found.candidates[0].problem
    assert not found.candidates[1].problem
    with pytest.raises(InputError, match="No candidate can be fine-tuned like this; of gpt2: tensor=8"):
        make_plan(read_study(write_study(tmp_path, candidates=candidates)), timing=False, mesh="tensor=8")


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5e", "'v5e' is no topology; write chip and shape of a TPU slice as in v5e:16x16"),
        ("v9:2x2", "Nothing is known about the chip 'v9', only about v4, v5e"),
        ("v5e:2x2", r"pip install 'jax\[tpu\]'"),
    ],
)
def test_topologies_that_cannot_be_are_named(study, topology, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=message):
        make_plan(study, topology=topology)


@pytest.mark.eight_devices
@pytest.mark.parametrize(("mesh", "message"), [("fsdp=3", "3 devices and there are 8"), ("rows=8", "rows=8")])
def test_meshes_that_cannot_be_are_named(study, mesh, message):
    with pytest.raises(InputError, match=message):
        make_plan(study, mesh=mesh, timing=False)


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_pod_that_is_not_attached(study, planned, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # the TPU's compiler ends the process at flags that only others know
    found = make_plan(study, topology="v5e:2x2", mesh="fsdp=2,tensor=2")
    assert (found.topology, found.devices, found.basis) == ("v5e:2x2", 4, "programs")
    for here, there in zip(planned.candidates, found.candidates, strict=True):
        assert there.room == 16 * 10**9
        assert there.dtype == "bfloat16"
        assert there.memory.moments == 2 * there.memory.best + 4  # two of every parameter, and the count of steps
        assert there.memory.peak > there.memory.step > 3 * there.memory.best
        assert [rung.flops for rung in there.rungs] == [rung.flops for rung in here.rungs]
        bounds = there.bounds
        assert bounds.seconds == there.each.steps[1] >= max(bounds.compute, bounds.memory, *bounds.networks.values())
        assert set(bounds.networks) <= {"links fsdp", "links tensor", "links fsdp·tensor"}
        assert there.rungs[-1].seconds > there.rungs[-1].flops / (4 * 197e12)  # more than at the peak
        assert 0 < bounds.utilisation_causal <= bounds.utilisation < 1
        assert here.bounds is None
    with pytest.raises(InputError, match="The TPU compiler does not know the topology v5e:3x7"):
        make_plan(study, topology="v5e:3x7")


def test_the_config_alone_gives_the_size(tiny_models):
    from lensjax.models.model import abstract_model
    from lensjax.models.options import make_options

    (source,) = tiny_models("llama")
    model = abstract_model(read_config(Path(source)), make_options())
    real = lensjax.models.load(source)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), real.params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), model.params) == shapes
    assert peak_flops(jax.devices()[0], "float32") is None  # so that plans without timing measure the processor


def test_a_study_that_cannot_save_says_how_to_cut_it(write_study, tmp_path):
    dear = {"learning_rate": [1e-3, 3e-3], "min_steps": 500, "batch_size": 16}
    spec = read_study(write_study(tmp_path, "gpt2", "opt", training=dear, budget=800, target=800))
    found = make_plan(spec, timing=False)
    assert found.budgets[-1].share > 1
    assert found.sentence.endswith(
        "examples. Caution: that is more than it can save. To cut it: a single learning_rate spares the search for "
        "one; training.min_steps below 500 makes small runs shorter."
    )
    spec = read_study(tmp_path / "study.yaml", ["training.min_steps=0", "training.learning_rate=1e-3", "target=3200"])
    cheaper = make_plan(spec, timing=False)
    assert cheaper.budgets[-1].share < 1
    assert "Caution" not in cheaper.sentence


def test_the_best_mesh_needs_a_topology(study):
    with pytest.raises(InputError, match="mesh 'auto' is for topologies; name one as in --topology v5p:8x8x8"):
        make_plan(study, mesh="auto", timing=False)


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_best_mesh_of_a_pod(study, monkeypatch, tmp_path):
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr("lensjax.train.pods.compiled_folder", lambda: tmp_path)
    found = make_plan(study, topology="v5e:2x2", mesh="auto")
    for one in found.candidates:
        assert not one.problem
        assert math.prod(one.mesh.values()) == 4
        (note,) = (note for note in found.notes if note.startswith(f"Of {one.model}, ") and "s a step at least" in note)
        assert ",".join(f"{axis}={size}" for axis, size in one.mesh.items() if size > 1) in note
